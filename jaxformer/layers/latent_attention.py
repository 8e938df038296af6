"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1), and the little that it remembers."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.backends import pack
from jaxformer.backends.default import append
from jaxformer.config import LatentAttentionConfig
from jaxformer.layers.attention import AttentionOutput, attended_kv, fold_beams, unfolded_weights
from jaxformer.layers.linear import Linear
from jaxformer.layers.norm import make_norm
from jaxformer.layers.rotary import rotate_heads
from jaxformer.ops import AttentionMask, dot_product_attention


class MLACache(NamedTuple):
    """Latents of one attention layer for B sequences, with room for S tokens.

    Attributes:
        states: The latent of each token and behind it the key that heads share, rotated by the token's position:
            [B, S, R + P], or [S, R + P] where B is 1, see `backends.cpu.pack`.
    """

    states: jax.Array

    @classmethod
    def of(cls, states: jax.Array) -> "MLACache":
        """Return a full cache of latents and shared keys [B, S, R + P]."""
        return cls(pack(states))

    @property
    def rows(self) -> int:
        """Number of sequences B."""
        return math.prod(self.states.shape[:-2])

    @property
    def capacity(self) -> int:
        """Number of tokens S that there is room for."""
        return self.states.shape[-2]

    def append(self, new: "MLACache", start: int | jax.Array) -> "MLACache":
        """Return a copy whose slots from `start`, of all rows or [B] of each, on hold `new`, of T tokens."""
        if jnp.ndim(start):
            return MLACache.of(append(self.unpack(), new.unpack(), start))
        states = new.states.astype(self.states.dtype)
        return MLACache(jax.lax.dynamic_update_slice_in_dim(self.states, states, start, -2))

    def reorder(self, rows: jax.Array) -> "MLACache":
        """Return the cache of the batch rows `rows` [R]."""
        return MLACache.of(self.unpack()[rows])

    def copy_slots(self, rows: jax.Array, start: int | jax.Array, slots: int) -> "MLACache":
        """Return a copy in which `slots` slots from `start` on are those of the batch rows `rows` [B]."""
        return self.append(MLACache(jax.lax.dynamic_slice_in_dim(self.states, start, slots, -2)).reorder(rows), start)

    def prefix(self, slots: int) -> "MLACache":
        """Return the first `slots` slots."""
        return MLACache(self.states[..., :slots, :])

    def unpack(self) -> jax.Array:
        """Return latents and shared keys [B, S, R + P]."""
        return self.states.reshape(-1, *self.states.shape[-2:])  # [B, S, R + P]


class LatentAttention(nnx.Module):
    """Attention whose keys and values, of all heads, are linear maps of one short vector per token, its latent c.

    Head i has the key [c W_i^UK; k] and the value c W_i^UV; k, the only part that knows positions, is the same for all
    heads (equations 9 to 19). The output can be computed in two ways:

    expanded  keys and values are made for every head, and attended to as ever
    absorbed  since q . (c W^UK) = (q W^UK^T) . c, the maps move to the queries and to what comes out of the softmax:
              all heads attend to the latents themselves, and nothing is made from what is remembered

    Many queries are cheaper expanded, and the next token of a long text absorbed: for R = 512 and heads of 128 a score
    costs 3.4 times as much absorbed, but an expanded key and value 2 x 128 x 512 multiplications that are saved.
    """

    def __init__(self, config: LatentAttentionConfig, dim: int, *, rngs: nnx.Rngs):
        N, R, H, P = config.heads, config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim
        v_head_dim, bias = config.v_head_dim or H, config.bias
        self.config = config
        self.scale = (H + P) ** -0.5 if config.scale is None else config.scale
        compressed = config.q_lora_rank
        self.query_down = Linear(dim, compressed, axes="DR", bias=bias, rngs=rngs) if compressed else None
        self.query_norm = make_norm(config.norm, compressed, axes="R") if compressed and config.norm else None
        self.query = Linear(compressed or dim, (N, H + P), axes="RNH" if compressed else "DNH", bias=False, rngs=rngs)
        self.down = Linear(dim, R + P, axes="DR", bias=bias, rngs=rngs)
        self.latent_norm = make_norm(config.norm, R, axes="R") if config.norm else None
        self.key = Linear(R, (N, H), axes="RNH", bias=False, rngs=rngs)
        self.value = Linear(R, (N, v_head_dim), axes="RNH", bias=False, rngs=rngs)
        self.output = Linear((N, v_head_dim), dim, axes="NHD", bias=bias, rngs=rngs)

    def project_kv(self, x: jax.Array, position_ids: jax.Array | None = None) -> MLACache:
        """Return what keys and values of the states x [B, S, D] at positions [1|B, S] are made from."""
        latent, shared = jnp.split(self.down(x), [self.config.kv_lora_rank], axis=-1)  # [B, S, R], [B, S, P]
        if self.latent_norm is not None:
            latent = self.latent_norm(latent)
        shared = rotate_heads(shared[:, :, None], position_ids, self.config.rope)[:, :, 0]
        return MLACache.of(jnp.concatenate([latent, shared], axis=-1))

    def init_cache(self, batch: int, capacity: int, dtype: jnp.dtype = jnp.float32) -> MLACache:
        """Return an empty cache for `batch` sequences of up to `capacity` tokens."""
        return MLACache.of(jnp.zeros((batch, capacity, self.config.kv_lora_rank + self.config.qk_rope_head_dim), dtype))

    def absorbs(self, queries: int, slots: int) -> bool:
        """Return whether the absorbed form takes fewer multiplications for so many queries and cached tokens."""
        config = self.config
        R, H, P = config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim
        v_head_dim = config.v_head_dim or H
        expanded = slots * R * (H + v_head_dim) + queries * slots * (H + P + v_head_dim)
        absorbed = queries * R * (H + v_head_dim) + queries * slots * 2 * (R + P)
        return absorbed < expanded

    @jax.named_scope("attention")
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: AttentionMask | None = None,
        position_ids: jax.Array | None = None,
        cache: MLACache | None = None,
        kv: MLACache | None = None,
        bias: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        return_weights: bool = False,
        absorbed: bool | None = None,
    ) -> AttentionOutput:
        """Attend from the states x to their own latents, to those in a cache, or to `kv`: see `Attention`.

        Args:
            x: [B, T, D].
            mask: Which keys each query may attend to. None: all of them.
            position_ids: Integers [1|B, T]. None: counted from `mask.offset`.
            cache: Latents before this call, to which those of x are added.
            kv: Latents to attend to instead: `project_kv(encoded)`.
            bias: Added to the scores, float [1, N, T, S].
            dropout_key: Key for dropout of attention weights. None: no dropout.
            return_weights: Whether to return the attention map too.
            absorbed: The form to compute in. None: the one that takes fewer multiplications.
        """
        kv, cache, mask, position_ids = attended_kv(self, x, mask, position_ids, cache, kv)
        absorbed = self.absorbs(x.shape[1], kv.capacity) if absorbed is None else absorbed
        query, key = self._queries(x, kv, position_ids, absorbed), self._keys(kv, absorbed)
        # Absorbed, the value is the latent: the shared key behind it is averaged with it and then left out, because
        # to cut it off before would copy the whole cache.
        value = key if absorbed else self.value(self._latents(kv))
        options = {"mask": mask, "scale": self.scale, "bias": bias}
        drops = {"dropout_rate": self.config.dropout, "dropout_key": dropout_key}
        mixed = dot_product_attention(query, key, value, **options, **drops)
        mixed = mixed.reshape(*x.shape[:2], *mixed.shape[2:])  # [B, T, N, Hv], absorbed [B, T, N, R + P]
        if absorbed:
            weight = self.value.dense_weight().astype(x.dtype)
            mixed = jnp.einsum("BTNR,RNH->BTNH", mixed[..., : self.config.kv_lora_rank], weight)
        weights = unfolded_weights(query, key, options, x.shape[0]) if return_weights else None
        return AttentionOutput(self.output(mixed), cache, weights)

    def _latents(self, kv: MLACache) -> jax.Array:
        """Return the latents [B, S, R]."""
        return kv.unpack()[..., : self.config.kv_lora_rank]

    def _queries(self, x: jax.Array, kv: MLACache, position_ids: jax.Array | None, absorbed: bool) -> jax.Array:
        """Return queries [B, R/B T, N, H + P], or absorbed [.., R + P]; rows that share keys are folded."""
        if self.query_down is not None:
            x = self.query_down(x)
        if self.query_norm is not None:
            x = self.query_norm(x)
        own, shared = jnp.split(self.query(x), [self.config.qk_nope_head_dim], axis=-1)
        if absorbed:
            own = jnp.einsum("BTNH,RNH->BTNR", own, self.key.dense_weight().astype(x.dtype))
        return fold_beams(
            jnp.concatenate([own, rotate_heads(shared, position_ids, self.config.rope)], axis=-1), kv.rows
        )

    def _keys(self, kv: MLACache, absorbed: bool) -> jax.Array:
        """Return keys [B, S, N, H + P] of each head, or absorbed [B, S, 1, R + P] of all."""
        if absorbed:
            return kv.unpack()[:, :, None]
        own, shared = self.key(self._latents(kv)), kv.unpack()[:, :, None, self.config.kv_lora_rank :]
        return jnp.concatenate([own, jnp.broadcast_to(shared, (*own.shape[:3], shared.shape[-1]))], axis=-1)
