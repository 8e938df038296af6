"""Models laid out for the steps of a search, and kept for the next one."""

import weakref
from typing import Any, NamedTuple

import jax

from jaxformer.ops.matmul import FEW_ROWS


class Kept(NamedTuple):
    """A model laid out, and what it was made of: the structure and, held weakly, the weights."""

    laid_out: Any
    structure: Any
    weights: "list[weakref.ref[jax.Array]]"


KEPT: dict[tuple[int, int], Kept] = {}


def laid_out(model: Any, rows: int) -> Any:
    """`model.for_decoding().for_steps(rows)`, made once for as long as the model lives and has the same weights.

    To transpose the weights of GPT-2 small takes as long as ten tokens. For up to four rows, what is kept takes as much
    memory as the matrices of the decoder; for more, as the tied output. Arrays never change, so that the same arrays
    are the same weights.
    """
    weights, structure = jax.tree.flatten(model)
    rows = FEW_ROWS if rows <= FEW_ROWS else FEW_ROWS + 1  # one layout serves all numbers that are few, one all others
    key = (id(model), rows)
    kept = KEPT.get(key)
    if kept is not None and kept.structure == structure and all(map(is_the_same, kept.weights, weights)):
        return kept.laid_out
    made = model.for_decoding().for_steps(rows)
    if all(isinstance(weight, jax.Array) for weight in weights):
        if kept is None:
            weakref.finalize(model, KEPT.pop, key, None)
        KEPT[key] = Kept(made, structure, [weakref.ref(weight) for weight in weights])
    return made


def is_the_same(kept: "weakref.ref[jax.Array]", weight: jax.Array) -> bool:
    """Whether a weight is the array that was kept."""
    return kept() is weight
