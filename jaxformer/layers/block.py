"""One layer of an encoder or decoder: sub-layers, residual connections, norms; section 3.1."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
from flax import nnx

from jaxformer.config import BlockConfig
from jaxformer.layers.any_attention import Memory, make_attention
from jaxformer.layers.attention import Visibility
from jaxformer.layers.experts import Experts, make_feed_forward
from jaxformer.layers.norm import Norm, make_norm
from jaxformer.ops import Routing, dropout


@dataclass(frozen=True)
class Source:
    """What cross-attention looks at: keys and values of the encoder's output, or its latents, and which are real."""

    seen: Memory
    visibility: Visibility


class BlockOutput(NamedTuple):
    """New states [B, T, D], the cache written to; attention maps [B, N, T, S] and routing if they were asked for."""

    x: jax.Array
    cache: Memory | None
    attention: jax.Array | None
    cross_attention: jax.Array | None
    routing: Routing | None


class Block(nnx.Module):
    """Self-attention, cross-attention where the configuration has it, and feed-forward, each a residual sub-layer."""

    def __init__(self, config: BlockConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        self.attention = make_attention(config.attention, dim, rngs=rngs)
        self.attention_norm, self.attention_output_norm = self._norms(dim)
        self.cross = make_attention(config.cross, dim, rngs=rngs) if config.cross else None
        self.cross_norm, self.cross_output_norm = self._norms(dim) if config.cross else (None, None)
        self.feed_forward = make_feed_forward(config.feed_forward, dim, rngs=rngs)
        self.feed_forward_norm, self.feed_forward_output_norm = self._norms(dim)

    def __call__(
        self,
        x: jax.Array,
        visibility: Visibility,
        position_ids: jax.Array,
        *,
        cache: Memory | None = None,
        source: Source | None = None,
        observe: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> BlockOutput:
        """[B, T, D] at positions [1|B, T] -> [B, T, D].

        A cache is written from slot `visibility.query_offset` on, then attended to.
        """
        keys = split_key(dropout_key, 6)
        attention_map = cross_map = routing = None
        entered = x

        states = self._enter(x, self.attention_norm)
        seen = self.attention.keys_values(states, position_ids)
        if cache is not None:
            cache = cache.write(seen, visibility.query_offset)
            seen = cache.first(visibility.reach(x.shape[1], cache.slots))
        if observe:
            attention_map = self.attention.weights(states, seen, visibility, position_ids)
        mixed = self.attention(states, seen, visibility, position_ids, dropout_key=keys[0])
        x = self._leave(x, mixed, self.attention_norm, self.attention_output_norm, keys[1])

        if self.cross is not None and self.cross_norm is not None:
            assert source is not None, "a block with cross-attention needs a source"
            states = self._enter(x, self.cross_norm)
            if observe:
                cross_map = self.cross.weights(states, source.seen, source.visibility)
            mixed = self.cross(states, source.seen, source.visibility, dropout_key=keys[2])
            x = self._leave(x, mixed, self.cross_norm, self.cross_output_norm, keys[3])

        states = self._enter(entered if self.config.parallel else x, self.feed_forward_norm)
        if observe and isinstance(self.feed_forward, Experts):
            routing = self.feed_forward.routing(states)
        mixed = self.feed_forward(states, dropout_key=keys[5])
        x = self._leave(x, mixed, self.feed_forward_norm, self.feed_forward_output_norm, keys[4])
        return BlockOutput(x, cache, attention_map, cross_map, routing)

    def _norms(self, dim: int) -> tuple[Norm, Norm | None]:
        """The norm of a sub-layer, and that of its output where it has two."""
        sandwich = self.config.placement == "sandwich"
        return make_norm(self.config.norm, dim), make_norm(self.config.norm, dim) if sandwich else None

    def _enter(self, x: jax.Array, norm: Norm) -> jax.Array:
        """What a sub-layer hears: the states, normalised where the placement puts a norm before it."""
        return norm(x) if self.config.placement in ("pre", "sandwich") else x

    def _leave(
        self, x: jax.Array, mixed: jax.Array, norm: Norm, output_norm: Norm | None, key: jax.Array | None
    ) -> jax.Array:
        """The residual sum of the states and what a sub-layer says, each normalised where the placement says so.

        The sum gives every layer a path of slope one to the loss, whatever its weights do: without it the gradient of
        a deep stack is a product of as many Jacobians as there are layers.
        """
        if self.config.placement == "output":
            mixed = norm(mixed)
        elif output_norm is not None:
            mixed = output_norm(mixed)
        total = x + dropout(mixed, self.config.dropout, key)
        return norm(total) if self.config.placement == "post" else total


def split_key(key: jax.Array | None, count: int) -> tuple[jax.Array | None, ...]:
    """`count` independent keys, or as many None where there is none to split."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))
