"""Models laid out for the steps of a search, and kept for the next one."""

import weakref
from typing import Any, NamedTuple

import jax

from jaxformer.backends.cpu import FEW_ROWS
from jaxformer.generation.arrays import is_traced
from jaxformer.generation.compiling import Flat


class Kept(NamedTuple):
    """A model laid out, and what it was made of: the structure and, held weakly, the weights."""

    laid_out: Flat
    structure: Any
    weights: "list[weakref.ref[jax.Array]]"


KEPT: dict[tuple[int, int], Kept] = {}


def laid_out(model: Any, rows: int) -> tuple[Flat, Flat]:
    """Return the model as it reads prompts and as it decodes `rows` rows: made once while it has the same weights.

    To transpose the weights of GPT-2 small takes as long as ten tokens. For up to four rows, what is kept takes as much
    memory as the decoder's matrices; for more, as the tied output. Arrays never change, so that the same arrays
    are the same weights.
    """
    flat = Flat(model)
    if is_traced(flat.leaves):  # a compiler would undo the transpositions
        return flat, Flat(model.with_position_ids_from("mask"))
    rows = FEW_ROWS if rows <= FEW_ROWS else FEW_ROWS + 1  # one layout serves all numbers that are few, one all others
    key = (id(model), rows)
    kept = KEPT.get(key)
    if kept is not None and kept.structure == flat.structure and all(map(is_the_same, kept.weights, flat.leaves)):
        return flat, kept.laid_out
    made = Flat(model.with_position_ids_from("mask").optimize_for_decoding(rows))
    if all(isinstance(weight, jax.Array) for weight in flat.leaves) and type(model).__weakrefoffset__:
        if kept is None:
            weakref.finalize(model, KEPT.pop, key, None)
        KEPT[key] = Kept(made, flat.structure, [weakref.ref(weight) for weight in flat.leaves])
    return flat, made


def is_the_same(kept: "weakref.ref[jax.Array]", weight: jax.Array) -> bool:
    """Whether a weight is the array that was kept."""
    return kept() is weight
