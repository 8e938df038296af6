"""What a decoder remembers."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.layers import Memory

BLOCK = 16  # slots that are moved at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a decoder remembers of the tokens it has seen: an immutable pytree, in and out.

    layers: what each block keeps, keys and values (`KeyValue`) or latents. cross: the same of the encoder's output,
    of B' rows, where B = B' or a multiple (beams over one source). source_valid: boolean [B', S]. valid: boolean
    [B, slots], real tokens (None: all). history: token ids [B, slots], kept where they may have to be read again
    (None: not). length: slots in use; in a fresh cache the Python integer 0, so that a compiler sees a constant.
    writers: int32 [B, slots], once rows have been selected: rows with the same writer hold the same in a slot.
    """

    layers: tuple[Memory, ...]
    cross: tuple[Memory, ...] = ()
    source_valid: jax.Array | None = None
    valid: jax.Array | None = None
    history: jax.Array | None = None
    length: int | jax.Array = 0
    writers: jax.Array | None = None

    @property
    def slots(self) -> int:
        """How many tokens it can hold."""
        return self.layers[0].slots

    def select(self, rows: jax.Array) -> "Cache":
        """The cache of the batch rows `rows` [R], in that order. `cross` stays: rows of one source share it.

        Beams over one source have a common past. So where as many rows are selected as there are, as in every step of a
        beam search, no slot moves before the first in which a row becomes another.
        """
        R = rows.shape[0]
        take = partial(jax.tree.map, lambda leaf: leaf[rows])
        valid, history, writers = take((self.valid, self.history, self.writers))
        if writers is None:
            writers = jnp.broadcast_to(rows[:, None], (R, self.slots)).astype(jnp.int32)
        if self.writers is None or len(self.writers) != R:
            layers = tuple(layer.select(rows) for layer in self.layers)
        else:
            changes = jnp.any(writers != self.writers, axis=0)
            layers = self._moved(rows, jnp.where(jnp.any(changes), jnp.argmax(changes), self.length))
        return dataclasses.replace(self, layers=layers, valid=valid, history=history, writers=writers)

    def _moved(self, rows: jax.Array, first: jax.Array) -> tuple[Memory, ...]:
        """What each block keeps, with the slots from `first` to `length` taken from the batch rows `rows` [B]."""
        size = math.gcd(self.slots, BLOCK)

        def move(index: jax.Array, layers: tuple[Memory, ...]) -> tuple[Memory, ...]:
            return tuple(layer.move(rows, index * size, size) for layer in layers)

        return lax.fori_loop(first // size, -(-self.length // size), move, self.layers)

    def written(self, rows: int, tokens: int) -> jax.Array | None:
        """`writers` once so many rows have taken in so many tokens each."""
        if self.writers is None:
            return None
        own = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], (rows, tokens))
        return lax.dynamic_update_slice_in_dim(self.writers, own, self.length, axis=1)


def mark_valid(cache: Cache, valid: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Which slots hold real tokens once `valid` [B, T] (None: all real) is written: boolean [B, slots]; None: all.

    Slots not yet written count as real: no query reaches them before they are.
    """
    if cache.valid is None and valid is None:
        return None
    before = jnp.ones((shape[0], cache.slots), bool) if cache.valid is None else cache.valid
    now = jnp.ones(shape, bool) if valid is None else valid
    return lax.dynamic_update_slice_in_dim(before, now, cache.length, axis=1)
