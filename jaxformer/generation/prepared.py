"""Weights as decoding wants them, kept by a `Generator` or, for the one-call form, as long as the model lives."""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.backends.cpu import FEW_ROWS, few_rows
from jaxformer.generation.arrays import is_traced
from jaxformer.generation.compiling import Flat


class Kept(NamedTuple):
    """A prepared model, and the model that it was made of.

    Attributes:
        prepared: The prepared model.
        structure: Structure of the original as a pytree, without its leaves.
        weights: Weak references to the leaves of the original.
    """

    prepared: Flat
    structure: Any
    weights: "list[weakref.ref[jax.Array]]"


class PreparedWeights:
    """A model's weights as it decodes few rows and as it decodes many, made once while it has the same weights.

    To transpose the weights of GPT-2 small takes as long as ten tokens. For up to four rows, what is kept takes as much
    memory as the decoder's matrices; for more, as the tied output. Arrays never change, so that the same arrays are the
    same weights.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Kept] = {}

    def layouts(self, model: Any, rows: int) -> tuple[Flat, Flat]:
        """Return the model as it reads prompts, and as it decodes `rows` rows."""
        flat = Flat(model)
        if is_traced(flat.leaves):  # a compiler would undo the transpositions
            return flat, Flat(model.with_position_ids_from("mask"))
        few = few_rows(weights_dtype(flat.leaves))
        rows = few if rows <= few else FEW_ROWS + 1  # one serves all numbers that are few, one all others
        kept = self.kept.get(rows)
        if kept is not None and kept.structure == flat.structure and all(map(is_the_same, kept.weights, flat.leaves)):
            return flat, kept.prepared
        made = Flat(model.with_position_ids_from("mask").optimize_for_decoding(rows))
        if all(isinstance(weight, jax.Array) for weight in flat.leaves):
            self.kept[rows] = Kept(made, flat.structure, [weakref.ref(weight) for weight in flat.leaves])
        return flat, made


OF_MODELS: "weakref.WeakKeyDictionary[Any, PreparedWeights]" = weakref.WeakKeyDictionary()


def model_and_weights(model: Any) -> tuple[Any, PreparedWeights]:
    """Return the model and the prepared weights of a generator; or a model, and those kept while it lives."""
    if isinstance(weights := getattr(model, "prepared_weights", None), PreparedWeights):
        return model.model, weights
    try:
        return model, OF_MODELS.setdefault(model, PreparedWeights())
    except TypeError:  # it cannot be a key, or not be referred to weakly
        return model, PreparedWeights()


def weights_dtype(leaves: Sequence[Any]) -> jnp.dtype:
    """Return the type of the first weights that are numbers with a point; float32 where there are none."""
    types = (leaf.dtype for leaf in leaves if isinstance(leaf, jax.Array))
    return next((dtype for dtype in types if jnp.issubdtype(dtype, jnp.floating)), jnp.dtype(jnp.float32))


def is_the_same(kept: "weakref.ref[jax.Array]", weight: jax.Array) -> bool:
    """Return whether a weight is the array that was kept."""
    return kept() is weight
