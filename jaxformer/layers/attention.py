"""Multi-head attention, section 3.2.2, and its cache of keys and values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.backends import KVCache, PackedKVCache, kv_cache
from jaxformer.backends.default import are_numbers
from jaxformer.config import AttentionConfig, head_width
from jaxformer.errors import InputError
from jaxformer.layers.linear import Linear
from jaxformer.layers.norm import Norm, make_norm
from jaxformer.layers.rotary import rotate_heads
from jaxformer.ops import AttentionMask, attention_weights, dot_product_attention


class AttentionOutput(NamedTuple):
    """Result of an attention layer.

    Attributes:
        states: [B, T, D].
        cache: The cache with the keys and values of this call in it. None: none was given.
        weights: Attention map, float32 [B, N, T, S]. None: `return_weights` was not set.
    """

    states: jax.Array
    cache: Any = None
    weights: jax.Array | None = None


class Attention(nnx.Module):
    """Several heads of attention side by side: Concat(head_1 .. head_N) W^O.

    Each is head_i = Attention(q W_i^Q, k W_i^K, v W_i^V), with projections of its own. Self-attention takes keys and
    values from the same states as queries, cross-attention from the encoder's output.
    """

    def __init__(self, config: AttentionConfig, dim: int, *, rngs: nnx.Rngs):
        heads, width = config.heads, head_width(config, dim)
        kv_heads = config.kv_heads or heads
        self.config = config
        self.query = Linear(dim, (heads, width), axes="DNH", bias=config.bias, rngs=rngs)
        self.key = Linear(dim, (kv_heads, width), axes="DKH", bias=config.bias, rngs=rngs)
        self.value = Linear(dim, (kv_heads, width), axes="DKH", bias=config.bias, rngs=rngs)
        output_bias = config.bias if config.output_bias is None else config.output_bias
        self.output = Linear((heads, width), dim, axes="NHD", bias=output_bias, rngs=rngs)
        self.query_norm = make_heads_norm(config, heads, "NH", width)
        self.key_norm = make_heads_norm(config, kv_heads, "KH", width)
        self.sinks = nnx.Param(jnp.zeros(heads), axes="N") if config.sinks else None

    def project_kv(self, x: jax.Array, position_ids: jax.Array | None = None) -> KVCache | PackedKVCache:
        """Return keys and values of the states x [B, S, D] at positions [1|B, S]; rotary keys are rotated here."""
        key = self._placed(self.key(x), self.key_norm, position_ids)
        return kv_cache(key, self._clipped(self.value(x)))

    def init_cache(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.float32) -> KVCache | PackedKVCache:
        """Return an empty cache for `batch` sequences of up to `capacity` tokens."""
        K, H = self.key.outputs
        zeros = jnp.zeros((batch, capacity, K, H), dtype)
        return kv_cache(zeros, zeros)

    @jax.named_scope("attention")
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: AttentionMask | None = None,
        position_ids: jax.Array | None = None,
        cache: Any = None,
        kv: Any = None,
        bias: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        return_weights: bool = False,
    ) -> AttentionOutput:
        """Attend from the states x to their own keys and values, to those in a cache, or to `kv`.

        Args:
            x: [B, T, D].
            mask: Which keys each query may attend to. None: all of them. With a cache it must be causal, or hide empty
                slots otherwise, and `mask.offset` is the slot that is written first.
            position_ids: Integers [1|B, T], for rotary positions. None: counted from `mask.offset`.
            cache: Keys and values before this call, to which those of x are added.
            kv: Keys and values to attend to instead, of cross-attention: `project_kv(encoded)`. It may have fewer rows
                than x: adjacent rows of x, such as beams over one source, then share them.
            bias: Added to the scores, float [1, N, T, S].
            dropout_key: Key for dropout of attention weights. None: no dropout.
            return_weights: Whether to return the attention map too.
        """
        kv, cache, mask, position_ids = attended_kv(self, x, mask, position_ids, cache, kv)
        query = fold_beams(self._placed(self.query(x), self.query_norm, position_ids), kv.rows)
        key, value = kv.unpack()
        options = self._options(mask) | {"bias": bias}
        drops = {"dropout_rate": self.config.dropout, "dropout_key": dropout_key}
        mixed = dot_product_attention(query, key, value, **options, **drops)  # [B, R/B T, N, H]
        states = self.output(mixed.reshape(*x.shape[:2], *mixed.shape[2:]))  # [R, T, N, H] -> [R, T, D]
        weights = unfolded_weights(query, key, options, x.shape[0]) if return_weights else None
        return AttentionOutput(states, cache, weights)

    def _placed(self, heads: jax.Array, norm: Norm | None, position_ids: jax.Array | None) -> jax.Array:
        """Return queries or keys [B, T, N, H], normalized, clipped and rotated where the configuration says so."""
        if self.config.rotate_first:
            return self._normed(rotate_heads(self._clipped(heads), position_ids, self.config.rope), norm)
        return rotate_heads(self._clipped(self._normed(heads, norm)), position_ids, self.config.rope)

    def _clipped(self, heads: jax.Array) -> jax.Array:
        """Return queries, keys or values [B, T, N, H] within the bounds of the configuration."""
        bound = self.config.clip_qkv
        return heads if bound is None else jnp.clip(heads, -bound, bound)

    def _normed(self, heads: jax.Array, norm: Norm | None) -> jax.Array:
        """Return queries or keys [B, T, N, H], normalized where the configuration says so."""
        if norm is None or self.config.normed != "all heads":
            return heads if norm is None else norm(heads)
        return norm(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)  # [B, T, N H] -> [B, T, N, H]

    def _options(self, mask: AttentionMask) -> dict[str, Any]:
        """Return the keywords of the attention operations."""
        if (window := self.config.window) is not None:
            mask = mask.within((window - 1, window - 1))
        return {
            "mask": mask,
            "scale": self.config.scale,
            "softcap": self.config.softcap,
            "sinks": None if self.sinks is None else self.sinks[...],
        }


def make_heads_norm(config: AttentionConfig, heads: int, axes: str, width: int) -> Norm | None:
    """Return the norm of queries or keys, None where the configuration has none.

    Args:
        config: The attention.
        heads: How many heads there are.
        axes: Letters of the axes of heads and of their width.
        width: Width H of a head.
    """
    if config.query_key_norm is None:
        return None
    match config.normed:
        case "each head":
            return make_norm(config.query_key_norm, width, axes="H")
        case "all heads":
            return make_norm(config.query_key_norm, heads * width, axes="_")
        case "separate heads":
            return make_norm(config.query_key_norm, (heads, width), axes=axes)


class AttendedKV(NamedTuple):
    """Keys and values that the queries of a call attend to.

    Attributes:
        kv: Keys and values, or latents, as a full cache.
        cache: The cache with those of this call in it. None: none was given.
        mask: Which of them each query may attend to.
        position_ids: Positions of the queries, int [1|B, T]. None: the layer has no rotary positions.
    """

    kv: Any
    cache: Any
    mask: AttentionMask
    position_ids: jax.Array | None


def attended_kv(
    layer: Any, x: jax.Array, mask: AttentionMask | None, position_ids: jax.Array | None, cache: Any, kv: Any
) -> AttendedKV:
    """Return what the states x [B, T, D] attend to in a layer: `kv` if it is given, else themselves and the cache.

    Args:
        layer: An attention layer with `project_kv` and a `config` with `rope`.
        x: [B, T, D].
        mask: None: nothing is hidden.
        position_ids: None: counted from `mask.offset`, where the layer has rotary positions.
        cache: What was read before. None: nothing.
        kv: What to attend to instead. None: the states themselves.

    Raises:
        InputError: There is a cache, and the mask shows its empty slots, or it has no room.
    """
    mask = AttentionMask() if mask is None else mask
    if position_ids is None and layer.config.rope is not None:
        position_ids = mask.offsets[:, None] + jnp.arange(x.shape[1])[None]
    if kv is None:
        kv = layer.project_kv(x, position_ids)
        if cache is not None:
            check_room(mask, x.shape[1], cache.capacity)
            cache = cache.append(kv, mask.offset)
            kv = cache.prefix(mask.num_visible_keys(x.shape[1], cache.capacity))
            mask = mask.prefix(kv.capacity)
    return AttendedKV(kv, cache, mask, position_ids)


def check_room(mask: AttentionMask, tokens: int, capacity: int) -> None:
    """Raise InputError unless so many tokens fit a cache, of which queries must not see the slots after them."""
    if mask.bounds[1] != 0 and mask.explicit is None and mask.key_valid is None:
        raise InputError("with a cache, queries must not see empty slots: give mask=AttentionMask(causal=True, ...)")
    start = mask.static_offset
    if start is not None and are_numbers(tokens, capacity) and not 0 <= start <= capacity - tokens:
        raise InputError(f"{tokens} tokens from slot {start} on do not fit a cache of {capacity} slots")


def fold_beams(query: jax.Array, rows: int) -> jax.Array:
    """Fold beams that share keys into the query axis, so that keys are read once: [R, T, N, H] -> [B, R/B T, N, H]."""
    return query.reshape(rows, -1, *query.shape[2:])  # [B, R/B T, N, H]


def unfolded_weights(query: jax.Array, key: jax.Array, options: dict[str, Any], rows: int) -> jax.Array:
    """Return the attention maps [R, N, T, S] of R rows, whose queries were folded by `fold_beams`."""
    weights = attention_weights(query, key, **options)
    B, N, _, S = weights.shape
    share = rows // B
    return jnp.swapaxes(weights.reshape(B, N, share, -1, S), 1, 2).reshape(rows, N, -1, S)  # [R, N, T, S]
