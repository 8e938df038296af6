"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1), and the little that it remembers."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import LatentAttentionConfig
from jaxformer.layers.attention import Visibility, as_kept, attend, attention_maps, in_line
from jaxformer.layers.linear import Linear
from jaxformer.layers.norm import make_norm
from jaxformer.layers.rotary import turn


class Latent(NamedTuple):
    """What latent attention keeps of each token: its latent and, behind it, the shared key; `as_kept` [B, S, R + P].

    The key is kept as turned by the position where the token stands.
    """

    kept: jax.Array

    @classmethod
    def of(cls, states: jax.Array) -> "Latent":
        """Latents and shared keys [B, S, R + P]."""
        return cls(as_kept(states))

    @property
    def states(self) -> jax.Array:
        """Latents and shared keys [B, S, R + P]."""
        return self.kept.reshape(-1, *self.kept.shape[-2:])

    @property
    def rows(self) -> int:
        """How many sequences there are, B."""
        return math.prod(self.kept.shape[:-2])

    @property
    def slots(self) -> int:
        """How many tokens there are, S."""
        return self.kept.shape[-2]

    def write(self, new: "Latent", start: int | jax.Array) -> "Latent":
        """A copy whose slots from `start` on hold `new`, of T tokens."""
        return Latent(jax.lax.dynamic_update_slice_in_dim(self.kept, new.kept, start, -2))

    def select(self, rows: jax.Array) -> "Latent":
        """That of the batch rows `rows` [R]."""
        return Latent.of(self.states[rows])

    def move(self, rows: jax.Array, start: int | jax.Array, slots: int) -> "Latent":
        """A copy in which `slots` slots from `start` on are those of the batch rows `rows` [B]."""
        return self.write(Latent(jax.lax.dynamic_slice_in_dim(self.kept, start, slots, -2)).select(rows), start)

    def first(self, slots: int) -> "Latent":
        """Its first `slots` slots."""
        return Latent(self.kept[..., :slots, :])


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
        N, R, H, P = config.heads, config.latent, config.head_dim, config.shared_dim
        value_dim, bias = config.value_dim or H, config.bias
        self.config = config
        self.scale = (H + P) ** -0.5 if config.scale is None else config.scale
        compressed = config.query_latent
        self.query_down = Linear(dim, compressed, axes="DR", bias=bias, rngs=rngs) if compressed else None
        self.query_norm = make_norm(config.norm, compressed, axes="R") if compressed and config.norm else None
        self.query = Linear(compressed or dim, (N, H + P), axes="RNH" if compressed else "DNH", bias=False, rngs=rngs)
        self.down = Linear(dim, R + P, axes="DR", bias=bias, rngs=rngs)
        self.latent_norm = make_norm(config.norm, R, axes="R") if config.norm else None
        self.key = Linear(R, (N, H), axes="RNH", bias=False, rngs=rngs)
        self.value = Linear(R, (N, value_dim), axes="RNH", bias=False, rngs=rngs)
        self.output = Linear((N, value_dim), dim, axes="NHD", bias=bias, rngs=rngs)

    def keys_values(self, x: jax.Array, position_ids: jax.Array | None = None) -> Latent:
        """What keys and values of the states x [B, S, D] at positions [1|B, S] are made from."""
        latent, shared = jnp.split(self.down(x), [self.config.latent], axis=-1)
        if self.latent_norm is not None:
            latent = self.latent_norm(latent)
        shared = self._turned(shared[:, :, None], position_ids)[:, :, 0]
        return Latent.of(jnp.concatenate([latent, shared], axis=-1))

    def empty(self, batch: int, slots: int, dtype: jnp.dtype) -> Latent:
        """A cache of this layer with room for `slots` tokens."""
        return Latent.of(jnp.zeros((batch, slots, self.config.latent + self.config.shared_dim), dtype))

    def absorbs(self, queries: int, slots: int) -> bool:
        """Whether the absorbed form takes fewer multiplications for so many queries and remembered tokens."""
        config = self.config
        R, H, P, value_dim = config.latent, config.head_dim, config.shared_dim, config.value_dim or config.head_dim
        expanded = slots * R * (H + value_dim) + queries * slots * (H + P + value_dim)
        absorbed = queries * R * (H + value_dim) + queries * slots * 2 * (R + P)
        return absorbed < expanded

    def __call__(
        self,
        x: jax.Array,
        seen: Latent,
        visibility: Visibility,
        position_ids: jax.Array | None = None,
        *,
        absorbed: bool | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Queries of x [R, T, D] at positions [1|R, T] over what is `seen` of B rows: [R, T, D].

        R = B, or a multiple of it: adjacent rows, such as beams over one source, then share what they see. absorbed:
        the form to compute in; by default the one that takes fewer multiplications.
        """
        absorbed = self.absorbs(x.shape[1], seen.slots) if absorbed is None else absorbed
        query, key = self._queries(x, seen, position_ids, absorbed), self._keys(seen, absorbed)
        # Absorbed, the value is the latent: the shared key behind it is averaged with it and then left out, because
        # to cut it off before would copy the whole cache.
        value = key if absorbed else self.value(self._latents(seen))
        mixed = attend(query, key, value, self._visible(visibility), self.config.dropout, dropout_key)
        mixed = mixed.reshape(*x.shape[:2], *mixed.shape[2:])
        if absorbed:
            weight = self.value.matrix().astype(x.dtype)
            mixed = jnp.einsum("BTNR,RNH->BTNH", mixed[..., : self.config.latent], weight)
        return self.output(mixed)

    def weights(
        self, x: jax.Array, seen: Latent, visibility: Visibility, position_ids: jax.Array | None = None
    ) -> jax.Array:
        """The attention map [R, N, T, S] behind a call. Under `jax.jit` the compiler merges what both compute."""
        absorbed = self.absorbs(x.shape[1], seen.slots)
        query, key = self._queries(x, seen, position_ids, absorbed), self._keys(seen, absorbed)
        return attention_maps(query, key, self._visible(visibility), x.shape[0])

    def _latents(self, seen: Latent) -> jax.Array:
        return seen.states[..., : self.config.latent]

    def _turned(self, heads: jax.Array, position_ids: jax.Array | None) -> jax.Array:
        """The part [B, T, N, P] of queries or keys that knows positions, turned by them."""
        if self.config.rope is None:
            return heads
        assert position_ids is not None, "rotary positions need to know them"
        return turn(heads, position_ids, self.config.rope)

    def _queries(self, x: jax.Array, seen: Latent, position_ids: jax.Array | None, absorbed: bool) -> jax.Array:
        """Queries [B, R/B * T, N, H + P], or absorbed [.., R + P]: rows that share what they see stand in line."""
        if self.query_down is not None:
            x = self.query_down(x)
        if self.query_norm is not None:
            x = self.query_norm(x)
        own, shared = jnp.split(self.query(x), [self.config.head_dim], axis=-1)
        if absorbed:
            own = jnp.einsum("BTNH,RNH->BTNR", own, self.key.matrix().astype(x.dtype))
        return in_line(jnp.concatenate([own, self._turned(shared, position_ids)], axis=-1), seen.rows)

    def _keys(self, seen: Latent, absorbed: bool) -> jax.Array:
        """Keys [B, S, N, H + P] of each head, or absorbed [B, S, 1, R + P] of all."""
        if absorbed:
            return seen.states[:, :, None]
        own, shared = self.key(self._latents(seen)), seen.states[:, :, None, self.config.latent :]
        return jnp.concatenate([own, jnp.broadcast_to(shared, (*own.shape[:3], shared.shape[-1]))], axis=-1)

    def _visible(self, visibility: Visibility) -> dict[str, Any]:
        return visibility.structure() | {"scale": self.scale}
