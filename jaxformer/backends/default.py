"""What every backend can do: caches as activations lie, plain XLA."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of one attention layer for B sequences, with room for S tokens.

    Other layouts have the same methods: to layers, a cache is what `append` and `reorder` make of it.

    Attributes:
        key: [B, S, K, H].
        value: [B, S, K, Hv].
    """

    key: jax.Array
    value: jax.Array

    @classmethod
    def of(cls, key: jax.Array, value: jax.Array) -> "KVCache":
        """Return a full cache of keys and values [B, S, K, H]."""
        return cls(key, value)

    @property
    def rows(self) -> int:
        """Number of sequences B."""
        return self.key.shape[0]

    @property
    def capacity(self) -> int:
        """Number of tokens S that there is room for."""
        return self.key.shape[1]

    def append(self, new: "KVCache", start: int | jax.Array) -> "KVCache":
        """Return a copy whose slots from `start` on hold `new`, of T slots.

        Args:
            new: Keys and values of the same rows.
            start: A slot for all rows, or one for each, int32 [B].
        """
        return jax.tree.map(lambda old, x: append(old, x, start), self, new)

    def reorder(self, rows: jax.Array) -> "KVCache":
        """Return the cache of the batch rows `rows` [R]."""
        return jax.tree.map(lambda x: x[rows], self)

    def copy_slots(self, rows: jax.Array, start: int | jax.Array, slots: int) -> "KVCache":
        """Return a copy in which `slots` slots from `start` on are those of the batch rows `rows` [B]."""
        part = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, slots, 1), self)
        return self.append(part.reorder(rows), start)

    def prefix(self, slots: int) -> "KVCache":
        """Return the first `slots` slots."""
        return jax.tree.map(lambda x: x[:, :slots], self)

    def unpack(self) -> tuple[jax.Array, jax.Array]:
        """Return keys and values [B, S, K, H], as the operations take them."""
        return self.key, self.value


def append(old: jax.Array, new: jax.Array, start: int | jax.Array) -> jax.Array:
    """Return [B, S, ...] with new [B, T, ...] from the slot `start`, of all rows or [B] of each, on."""
    new = new.astype(old.dtype)
    if jnp.ndim(start) == 0:
        return lax.dynamic_update_slice_in_dim(old, new, start, 1)
    return jax.vmap(partial(lax.dynamic_update_slice_in_dim, axis=0))(old, new, jnp.broadcast_to(start, old.shape[:1]))


def are_numbers(*sizes: Any) -> bool:
    """Return whether all sizes are known: the symbols of `jax.export` cannot be compared."""
    return all(isinstance(size, int) for size in sizes)
