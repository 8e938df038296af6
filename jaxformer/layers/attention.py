"""Multi-head attention, section 3.2.2, and what it remembers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import AttentionConfig, head_width
from jaxformer.layers.linear import Linear
from jaxformer.layers.norm import Norm, make_norm
from jaxformer.layers.rotary import turn
from jaxformer.ops import (
    attention_weights,
    dot_product_attention,
    dropout,
    weighted_values,
)


def as_kept(x: jax.Array) -> jax.Array:
    """What a cache keeps of [X, S, H]: the same, but [S, H] where X is 1.

    XLA takes an axis of 1 out of every product, by a view that it merges with the write before it: then the write
    happens twice, and the cache is copied for every token.
    """
    return x[0] if len(x) == 1 else x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyValue:
    """Keys and values of one attention layer for B sequences, [B K, S, H] `as_kept`, and how many heads K they are of.

    Rows and heads are one axis, and stand before slots, unlike in activations: so the products of a decoding step read
    a cache as it lies, and what is written to it goes in its place. XLA would copy [B, K, S, H] twice for every token,
    and [B, S, K, H] once more to transpose it.
    """

    key: jax.Array
    value: jax.Array
    heads: int = field(metadata={"static": True})

    @classmethod
    def of(cls, key: jax.Array, value: jax.Array) -> "KeyValue":
        """Keys and values as activations have them, [B, S, K, H]."""
        B, S, K, _ = key.shape
        kept = (as_kept(jnp.swapaxes(x, 1, 2).reshape(B * K, S, x.shape[3])) for x in (key, value))
        return cls(*kept, heads=K)

    @property
    def rows(self) -> int:
        """How many sequences there are, B."""
        return math.prod(self.key.shape[:-2]) // self.heads

    @property
    def slots(self) -> int:
        """How many keys and values there are, S."""
        return self.key.shape[-2]

    def write(self, new: "KeyValue", start: int | jax.Array) -> "KeyValue":
        """A copy whose slots from `start` on hold `new`, of T slots."""
        return self._with(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, start, -2), new)

    def select(self, rows: jax.Array) -> "KeyValue":
        """That of the batch rows `rows` [R]."""
        batches = (x.reshape(-1, self.heads, *x.shape[-2:])[rows] for x in (self.key, self.value))
        return KeyValue(*(as_kept(x.reshape(-1, *x.shape[-2:])) for x in batches), heads=self.heads)

    def move(self, rows: jax.Array, start: int | jax.Array, slots: int) -> "KeyValue":
        """A copy in which `slots` slots from `start` on are those of the batch rows `rows` [B]."""
        part = self._with(lambda old: jax.lax.dynamic_slice_in_dim(old, start, slots, -2))
        return self.write(part.select(rows), start)

    def first(self, slots: int) -> "KeyValue":
        """Its first `slots` slots."""
        return self._with(lambda old: old[..., :slots, :])

    def as_activations(self) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, K, H], as the operations take them."""
        key, value = (each.reshape(self.rows, self.heads, *each.shape[-2:]) for each in (self.key, self.value))
        return jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)

    def _with(self, change: Callable[..., jax.Array], *others: "KeyValue") -> "KeyValue":
        """Both arrays changed, each beside its like."""
        return jax.tree.map(change, self, *others)


@dataclass(frozen=True)
class Visibility:
    """Which keys a query may see: the structure, not a [T, S] array, so that the operation can choose how to compute.

    valid: boolean [B, S], True where the key is a real token (None: everywhere). causal: only keys at or before the
    query's own slot, the first query standing at slot `query_offset`. bias: float [1, N, T, S] added to the scores,
    what relative positions say (None: nothing).
    """

    valid: jax.Array | None = None
    causal: bool = False
    query_offset: int | jax.Array = 0
    bias: jax.Array | None = None

    def reach(self, queries: int, slots: int) -> int:
        """How many of a cache's slots can matter to so many queries: all, unless the offset is static."""
        return min(self.query_offset + queries, slots) if isinstance(self.query_offset, int) else slots

    def structure(self) -> dict[str, Any]:
        """It as arguments of the operations."""
        return {
            "mask": None if self.valid is None else self.valid[:, None, None, :],
            "bias": self.bias,
            "causal": self.causal,
            "query_offset": self.query_offset,
        }


class Attention(nnx.Module):
    """Several heads of attention side by side: Concat(head_1 .. head_N) W^O.

    Each is head_i = Attention(q W_i^Q, k W_i^K, v W_i^V), with projections of its own.

    Self-attention takes keys and values from the same states as queries, cross-attention from the encoder's output.
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
        norm, together = config.query_key_norm, config.normed == "all heads"
        axes, query_width, key_width = ("_", heads * width, kv_heads * width) if together else ("H", width, width)
        self.query_norm = make_norm(norm, query_width, axes=axes) if norm else None
        self.key_norm = make_norm(norm, key_width, axes=axes) if norm else None
        self.sinks = nnx.Param(jnp.zeros(heads), axes="N") if config.sinks else None

    def keys_values(self, x: jax.Array, position_ids: jax.Array | None = None) -> KeyValue:
        """What the states x [B, S, D] at positions [1|B, S] offer to queries; rotary keys stay turned as they are."""
        key = self._turned(self._normed(self.key(x), self.key_norm), position_ids)
        return KeyValue.of(key, self.value(x))

    def empty(self, batch: int, slots: int, dtype: jnp.dtype) -> KeyValue:
        """A cache of this layer's keys and values with room for `slots` of them."""
        K, H = self.key.outputs
        zeros = as_kept(jnp.zeros((batch * K, slots, H), dtype))
        return KeyValue(zeros, zeros, heads=K)

    def __call__(
        self,
        x: jax.Array,
        seen: KeyValue,
        visibility: Visibility,
        position_ids: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Queries of x [R, T, D] at positions [1|R, T] over the keys and values `seen` of B rows: [R, T, D].

        R = B, or a multiple of it: adjacent rows, such as beams over one source, then share keys and values.
        """
        query, (key, value) = self._queries(x, seen, position_ids), seen.as_activations()
        mixed = attend(query, key, value, self._visible(visibility), self.config.dropout, dropout_key)
        return self.output(mixed.reshape(*x.shape[:2], *mixed.shape[2:]))

    def weights(
        self, x: jax.Array, seen: KeyValue, visibility: Visibility, position_ids: jax.Array | None = None
    ) -> jax.Array:
        """The attention map [R, N, T, S] behind a call. Under `jax.jit` the compiler merges what both compute."""
        key, _ = seen.as_activations()
        return attention_maps(self._queries(x, seen, position_ids), key, self._visible(visibility), x.shape[0])

    def _normed(self, heads: jax.Array, norm: Norm | None) -> jax.Array:
        """Queries or keys [B, T, N, H], normalised where the configuration says so."""
        if norm is None:
            return heads
        if self.config.normed == "each head":
            return norm(heads)
        return norm(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)

    def _turned(self, heads: jax.Array, position_ids: jax.Array | None) -> jax.Array:
        """Queries or keys [B, T, N, H], turned by their positions where these are rotary."""
        if self.config.rope is None:
            return heads
        assert position_ids is not None, "rotary positions need to know them"
        return turn(heads, position_ids, self.config.rope)

    def _queries(self, x: jax.Array, seen: KeyValue, position_ids: jax.Array | None) -> jax.Array:
        """Queries [B, R/B * T, N, H]: rows that share keys stand in line, so that the keys are read once."""
        return in_line(self._turned(self._normed(self.query(x), self.query_norm), position_ids), seen.rows)

    def _visible(self, visibility: Visibility) -> dict[str, Any]:
        window, left_only = self.config.window, visibility.causal
        return visibility.structure() | {
            "window": None if window is None else (window - 1, 0 if left_only else window - 1),
            "scale": self.config.scale,
            "softcap": self.config.softcap,
            "sinks": None if self.sinks is None else self.sinks[...],
        }


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: dict[str, Any],
    rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Dot-product attention [B, T, N, Hv], with dropout of its weights where there is a key and a rate."""
    if dropout_key is None or not rate:
        return dot_product_attention(query, key, value, **visible)
    return weighted_values(dropout(attention_weights(query, key, **visible), rate, dropout_key), value)


def in_line(query: jax.Array, rows: int) -> jax.Array:
    """Queries [R, T, N, H] as [B, R/B * T, N, H]: rows that share keys stand in line, and the keys are read once."""
    return query.reshape(rows, -1, *query.shape[2:])


def attention_maps(query: jax.Array, key: jax.Array, visible: dict[str, Any], rows: int) -> jax.Array:
    """The attention maps [R, N, T, S] of so many rows, whose queries stand `in_line`."""
    weights = attention_weights(query, key, **visible)
    B, N, _, S = weights.shape
    share = rows // B
    return jnp.swapaxes(weights.reshape(B, N, share, -1, S), 1, 2).reshape(rows, N, -1, S)
