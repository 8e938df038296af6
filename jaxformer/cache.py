"""What a decoder remembers."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxformer.layers import Memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a decoder remembers of the tokens it has seen: an immutable pytree, in and out.

    layers: what each block keeps, keys and values [B, K, slots, H] or latents. cross: the same of the encoder's output,
    of B' rows, where B = B' or a multiple (beams over one source). source_valid: boolean [B', S]. valid: boolean
    [B, slots], real tokens (None: all). history: token ids [B, slots], kept where they may have to be read again
    (None: not). length: slots in use; in a fresh cache the Python integer 0, so that a compiler sees a constant.
    """

    layers: tuple[Memory, ...]
    cross: tuple[Memory, ...] = ()
    source_valid: jax.Array | None = None
    valid: jax.Array | None = None
    history: jax.Array | None = None
    length: int | jax.Array = 0

    @property
    def slots(self) -> int:
        """How many tokens it can hold."""
        return self.layers[0].slots

    def select(self, rows: jax.Array) -> "Cache":
        """The cache of the batch rows `rows` [R], in that order. `cross` stays: rows of one source share it."""
        by_row = (self.layers, self.valid, self.history)
        layers, valid, history = jax.tree.map(lambda leaf: leaf[rows], by_row)
        return dataclasses.replace(self, layers=layers, valid=valid, history=history)


def mark_valid(cache: Cache, valid: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Which slots hold real tokens once `valid` [B, T] (None: all real) is written: boolean [B, slots]; None: all.

    Slots not yet written count as real: no query reaches them before they are.
    """
    if cache.valid is None and valid is None:
        return None
    before = jnp.ones((shape[0], cache.slots), bool) if cache.valid is None else cache.valid
    now = jnp.ones(shape, bool) if valid is None else valid
    return jax.lax.dynamic_update_slice_in_dim(before, now, cache.length, axis=1)
