"""What a block asks of its attention, whichever kind it is."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import AnyAttentionConfig, AttentionConfig, LatentAttentionConfig
from jaxformer.layers.attention import Attention, Visibility
from jaxformer.layers.latent_attention import LatentAttention


class Memory(Protocol):
    """What a layer keeps of the tokens that it has seen, for B sequences: a pytree of arrays."""

    @property
    def rows(self) -> int:
        """How many sequences there are, B."""
        ...

    @property
    def slots(self) -> int:
        """How many tokens there are, or room for them, S."""
        ...

    def write(self, new: Any, start: int | jax.Array) -> Any:
        """A copy whose slots from `start` on hold `new`."""
        ...

    def select(self, rows: jax.Array) -> Any:
        """That of the batch rows `rows` [R]."""
        ...

    def move(self, rows: jax.Array, start: int | jax.Array, slots: int) -> Any:
        """A copy in which `slots` slots from `start` on are those of the batch rows `rows` [B]."""
        ...

    def first(self, slots: int) -> Any:
        """Its first `slots` slots."""
        ...


class AnyAttention(Protocol):
    """A layer that turns states into a `Memory`, and attends to one."""

    def keys_values(self, x: jax.Array, position_ids: jax.Array | None = None) -> Any:
        """What is kept of the states x [B, S, D] at positions [1|B, S]."""
        ...

    def empty(self, batch: int, slots: int, dtype: jnp.dtype) -> Any:
        """A memory with room for `slots` tokens."""
        ...

    def __call__(
        self,
        x: jax.Array,
        seen: Any,
        visibility: Visibility,
        position_ids: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Queries of x [R, T, D] at positions [1|R, T] over what is `seen` of B rows: [R, T, D]."""
        ...

    def weights(
        self, x: jax.Array, seen: Any, visibility: Visibility, position_ids: jax.Array | None = None
    ) -> jax.Array:
        """The attention map [R, N, T, S] behind a call."""
        ...


def make_attention(config: AnyAttentionConfig, dim: int, *, rngs: nnx.Rngs) -> AnyAttention:
    """The attention that `config` describes."""
    match config:
        case AttentionConfig():
            return Attention(config, dim, rngs=rngs)
        case LatentAttentionConfig():
            return LatentAttention(config, dim, rngs=rngs)
