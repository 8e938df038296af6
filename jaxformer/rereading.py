"""Decoding with LongRoPE, which changes its frequencies at a length: what was read before is read again there.

Without it, keys that were rotated by the frequencies of short texts would meet queries rotated by those of long ones.
`generate()` of Hugging Face reads again, too (Phi-3).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.cache import Cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RereadingCache:
    """A cache with the token ids that it was made of.

    Attributes:
        cache: Keys and values.
        tokens: Token ids, int32 [B, S].
    """

    cache: Cache
    tokens: jax.Array

    @property
    def length(self) -> int | jax.Array:
        """Number of slots in use."""
        return self.cache.length

    @property
    def capacity(self) -> int:
        """Number of tokens S that there is room for."""
        return self.cache.capacity

    def reorder(self, rows: jax.Array) -> "RereadingCache":
        """Return the cache of the batch rows `rows` [R], in that order."""
        return RereadingCache(self.cache.reorder(rows), self.tokens[rows])

    def truncate(self, length: int | jax.Array) -> "RereadingCache":
        """Return the cache with only the first `length` slots in use."""
        return dataclasses.replace(self, cache=self.cache.truncate(length))

    def advance(self, tokens: jax.Array, cache: Any) -> "RereadingCache":
        """Return the cache after the tokens [B, T], of which the `Cache` given has keys and values."""
        written = lax.dynamic_update_slice_in_dim(self.tokens, tokens.astype(jnp.int32), self.length, axis=1)
        return RereadingCache(cache, written)


AnyCache = Cache | RereadingCache


class Reader(Protocol):
    """A model that reads tokens into a cache, see `jaxformer.Transformer`."""

    def step(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """Return logits [B, V] after the next tokens [B, T], and the cache with them."""

    def prefill(
        self, tokens: jax.Array, cache: Any, *, length: int | jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Return logits [B, V] after the first `length` of tokens [B, P], and the cache with these."""


def step_across(
    model: Reader, tokens: jax.Array, cache: RereadingCache, switch: int
) -> tuple[jax.Array, RereadingCache]:
    """Return logits [B, V] after the next tokens, and the cache with them; the token that crosses `switch` reads again.

    Args:
        model: The model.
        tokens: Token ids [B, T].
        cache: The cache.
        switch: Length beyond which frequencies are others.
    """
    cache.cache.check_room(tokens.shape[1])
    length = jnp.asarray(cache.length + tokens.shape[1], jnp.int32)
    history = lax.dynamic_update_slice_in_dim(cache.tokens, tokens.astype(jnp.int32), cache.length, axis=1)

    def go_on(cache: Cache) -> tuple[jax.Array, Cache]:
        return model.step(tokens, cache)

    def read_again(cache: Cache) -> tuple[jax.Array, Cache]:
        fresh = dataclasses.replace(cache, length=0, valid=None)
        logits, fresh = model.prefill(history, fresh, length=length, mask=cache.valid)
        return logits, dataclasses.replace(fresh, valid=cache.valid)

    crosses = (cache.length <= switch) & (length > switch)
    logits, inner = lax.cond(crosses, read_again, go_on, cache.cache)
    return logits, RereadingCache(inner, history)
