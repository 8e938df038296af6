"""One layer of an encoder or decoder: sub-layers, residual connections, norms; section 3.1."""

from typing import Any, Literal, NamedTuple

import jax
from flax import nnx

from jaxformer.config import BlockConfig
from jaxformer.errors import InputError
from jaxformer.layers.any_attention import make_attention
from jaxformer.layers.experts import Experts, make_feed_forward
from jaxformer.layers.norm import Norm, make_norm
from jaxformer.ops import AttentionMask, Routing, dropout
from jaxformer.parallel import constrain

Wanted = bool | Literal["routing"]  # intermediate results: all, none, or the routing of experts alone


class EncoderKV(NamedTuple):
    """Keys and values of the encoder for the cross-attention of one layer.

    Attributes:
        kv: Keys and values of the encoder's output, or its latents: a `LayerCache`.
        mask: Which of them are real.
    """

    kv: Any
    mask: AttentionMask


class BlockOutput(NamedTuple):
    """Result of a block.

    Attributes:
        states: [B, T, D].
        cache: The cache with the tokens of this call in it. None: none was given.
        attention: Attention map of self-attention, float32 [B, N, T, S]. None: not asked for, as the rest.
        cross_attention: Attention map of cross-attention.
        routing: Where a mixture of experts sent the tokens.
    """

    states: jax.Array
    cache: Any
    attention: jax.Array | None
    cross_attention: jax.Array | None
    routing: Routing | None


class Block(nnx.Module):
    """Self-attention, cross-attention where the configuration has it, and feed-forward, each a residual sub-layer."""

    def __init__(self, config: BlockConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        self.attention = make_attention(config.attention, dim, rngs=rngs)
        self.attention_norm, self.attention_output_norm = self._norms(dim) if config.attention_norm else (None, None)
        self.cross = make_attention(config.cross, dim, rngs=rngs) if config.cross else None
        self.cross_norm, self.cross_output_norm = self._norms(dim) if config.cross else (None, None)
        self.feed_forward = make_feed_forward(config.feed_forward, dim, rngs=rngs)
        shared = config.shared_norm
        self.feed_forward_norm, self.feed_forward_output_norm = (None, None) if shared else self._norms(dim)

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: AttentionMask | None = None,
        position_ids: jax.Array | None = None,
        bias: jax.Array | None = None,
        cache: Any = None,
        encoder: EncoderKV | None = None,
        dropout_key: jax.Array | None = None,
        return_intermediates: Wanted = False,
    ) -> BlockOutput:
        """Apply the layer to states.

        Args:
            x: [B, T, D].
            mask: Which keys each query may attend to. None: all of them. With a cache, `mask.offset` is the slot that
                is written first.
            position_ids: Integers [1|B, T], for rotary positions. None: counted from `mask.offset`.
            bias: Added to the scores of self-attention, float [1, N, T, S].
            cache: `LayerCache` with what was read before this call, to which those of x are added.
            encoder: What cross-attention attends to, if the layer has any.
            dropout_key: Key for dropout. None: no dropout.
            return_intermediates: Whether to return attention maps and routing, or the latter alone.
        """
        keys = split_key(dropout_key, 6)
        entered, cross_map, routing = x, None, None

        attended = self.attention(
            self._enter(x, self.attention_norm),
            mask=mask,
            position_ids=position_ids,
            cache=cache,
            bias=bias,
            dropout_key=keys[0],
            return_weights=return_intermediates is True,
        )
        x = self._leave(x, attended.states, self.attention_norm, self.attention_output_norm, keys[1])

        if self.cross is not None and self.cross_norm is not None:
            if encoder is None:
                raise InputError("a block with cross-attention needs the keys and values of an encoder")
            crossed = self.cross(
                self._enter(x, self.cross_norm),
                mask=encoder.mask,
                kv=encoder.kv,
                dropout_key=keys[2],
                return_weights=return_intermediates is True,
            )
            x = self._leave(x, crossed.states, self.cross_norm, self.cross_output_norm, keys[3])
            cross_map = crossed.weights

        norm = self.attention_norm if self.feed_forward_norm is None else self.feed_forward_norm
        states = self._enter(entered if self.config.parallel else x, norm)
        if return_intermediates and isinstance(self.feed_forward, Experts):
            routing = self.feed_forward.routing(states)
        mixed = self.feed_forward(states, dropout_key=keys[5])
        x = self._leave(x, mixed, norm, self.feed_forward_output_norm, keys[4])
        return BlockOutput(x, attended.cache, attended.weights, cross_map, routing)

    def _norms(self, dim: int) -> tuple[Norm, Norm | None]:
        """Return the norm of a sub-layer, and the norm of its output where it has two."""
        sandwich = self.config.norm_order == "pre_and_post"
        return make_norm(self.config.norm, dim), make_norm(self.config.norm, dim) if sandwich else None

    def _enter(self, x: jax.Array, norm: Norm | None) -> jax.Array:
        """Return the input of a sub-layer: the states, normalized where the order puts a norm before it."""
        return norm(x) if norm is not None and self.config.norm_order in ("pre", "pre_and_post") else x

    def _leave(
        self, x: jax.Array, mixed: jax.Array, norm: Norm | None, output_norm: Norm | None, key: jax.Array | None
    ) -> jax.Array:
        """Return the residual sum of the states and a sub-layer's output, each normalized where the order says so.

        The sum gives every layer a path of slope one to the loss, whatever its weights do: without it the gradient of
        a deep stack is a product of as many Jacobians as there are layers.
        """
        if norm is not None and self.config.norm_order == "post_sublayer":
            mixed = norm(mixed)
        elif output_norm is not None:
            mixed = output_norm(mixed)
        if self.config.residual_multiplier != 1:
            mixed = mixed * self.config.residual_multiplier
        total = constrain(x + dropout(mixed, self.config.dropout, key), "BT_")
        return norm(total) if norm is not None and self.config.norm_order == "post" else total


def split_key(key: jax.Array | None, count: int) -> tuple[jax.Array | None, ...]:
    """Return `count` independent keys, or as many None where there is none to split."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))
