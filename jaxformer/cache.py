"""The cache of a decoder: an immutable pytree, in and out."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.errors import InputError
from jaxformer.layers import LayerCache

BLOCK = 16  # slots that are copied at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens that a decoder has read, in slots that are filled from the left.

    Attributes:
        layers: One cache for each block, of keys and values or of latents.
        cross: Keys and values of the encoder's output for each block, of B' rows, where B is B' or a multiple (beams
            over one source). Empty without an encoder.
        encoder_valid: Boolean [B', S'], True at real tokens of the source. None: all are.
        valid: Boolean [B, S], True at real tokens. None: all are.
        length: Number of slots in use; in a fresh cache the Python integer 0, so that a compiler sees a constant.
        ancestors: int32 [B, S], which row wrote each slot: equal values mean equal contents. None until the first
            `reorder`.
    """

    layers: tuple[LayerCache, ...]
    cross: tuple[LayerCache, ...] = ()
    encoder_valid: jax.Array | None = None
    valid: jax.Array | None = None
    length: int | jax.Array = 0
    ancestors: jax.Array | None = None

    @property
    def capacity(self) -> int:
        """Number of tokens S that there is room for."""
        return self.layers[0].capacity

    def reorder(self, rows: jax.Array) -> "Cache":
        """Return the cache of the batch rows `rows` [R], in that order. `cross` stays: rows of a source share it.

        Beams over one source have a common past. So where as many rows are selected as there are, as in every step of a
        beam search, no slot moves before the first in which a row becomes another.
        """
        R = rows.shape[0]
        take = partial(jax.tree.map, lambda leaf: leaf[rows])
        valid, ancestors = take((self.valid, self.ancestors))
        if ancestors is None:
            ancestors = jnp.broadcast_to(rows[:, None], (R, self.capacity)).astype(jnp.int32)
        if self.ancestors is None or len(self.ancestors) != R:
            layers = tuple(layer.reorder(rows) for layer in self.layers)
        else:
            changes = jnp.any(ancestors != self.ancestors, axis=0)
            layers = self._copied(rows, jnp.where(jnp.any(changes), jnp.argmax(changes), self.length))
        return dataclasses.replace(self, layers=layers, valid=valid, ancestors=ancestors)

    def _copied(self, rows: jax.Array, first: jax.Array) -> tuple[LayerCache, ...]:
        """Return the caches of blocks with the slots from `first` to `length` taken from the batch rows `rows` [B]."""
        size = math.gcd(self.capacity, BLOCK)

        def copy(index: jax.Array, layers: tuple[LayerCache, ...]) -> tuple[LayerCache, ...]:
            return tuple(layer.copy_slots(rows, index * size, size) for layer in layers)

        return lax.fori_loop(first // size, -(-self.length // size), copy, self.layers)

    def advance(self, tokens: jax.Array, layers: tuple[LayerCache, ...], valid: jax.Array | None) -> "Cache":
        """Return the cache after more tokens.

        Args:
            tokens: Their ids [B, T].
            layers: The caches of the layers with these tokens.
            valid: Boolean [B, S] with these tokens. None: all slots are real.
        """
        ancestors = self.ancestors
        if ancestors is not None:
            own = jnp.broadcast_to(jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None], tokens.shape)
            ancestors = lax.dynamic_update_slice_in_dim(ancestors, own, self.length, axis=1)
        length = self.length + tokens.shape[1]
        return dataclasses.replace(self, layers=layers, valid=valid, length=length, ancestors=ancestors)

    def check_room(self, tokens: int) -> None:
        """Raise InputError if that many more tokens do not fit; traced lengths are not checked."""
        end = self.length + tokens
        if isinstance(end, int) and end > self.capacity:
            raise InputError(f"{end} tokens do not fit a cache of {self.capacity} slots: make a larger one")

    def truncate(self, length: int | jax.Array) -> "Cache":
        """Return the cache with only the first `length` slots in use."""
        return dataclasses.replace(self, length=length)


def mark_valid(cache: Cache, valid: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Return which slots hold real tokens once `valid` [B, T] is written: boolean [B, S], None if all do.

    Slots not yet written count as real: no query reaches them before they are.
    """
    if cache.valid is None and valid is None:
        return None
    before = jnp.ones((shape[0], cache.capacity), bool) if cache.valid is None else cache.valid
    now = jnp.ones(shape, bool) if valid is None else valid
    return lax.dynamic_update_slice_in_dim(before, now, cache.length, axis=1)
