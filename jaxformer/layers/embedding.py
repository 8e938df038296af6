"""Token embeddings and positions."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import EmbeddingConfig, LearnedPositions, RelativePositions, SinusoidalPositions
from jaxformer.errors import InputError
from jaxformer.layers.linear import Linear
from jaxformer.ops import alibi_slopes, distance_buckets, sinusoidal_positions
from jaxformer.parallel import constrain


class Embedding(nnx.Module):
    """A vector per token, section 3.4. Entries start with variance 1/D, as an output projection wants them.

    Attributes:
        embedding: [V, D], or [V, width] before a projection to D.
        token_type_embedding: [types, D], None where there is one type.
    """

    def __init__(self, config: EmbeddingConfig, dim: int, *, rngs: nnx.Rngs):
        width = config.dim or dim
        axes = "VD" if width == dim else "V_"
        vectors = jax.random.normal(rngs.params(), (config.vocab_size, width)) / math.sqrt(width)
        self.embedding = nnx.Param(vectors, axes=axes)
        self.scale = config.multiplier * (math.sqrt(dim) if config.scale else 1.0)
        at_once = width != dim and config.project == "tokens"
        self.projection = Linear(width, dim, axes="_D", bias=False, rngs=rngs) if at_once else None
        types = 0.02 * jax.random.normal(rngs.params(), (config.types, width)) if config.types else None
        self.token_type_embedding = None if types is None else nnx.Param(types, axes="_" + axes[1])

    def __call__(self, tokens: jax.Array, token_types: jax.Array | None = None) -> jax.Array:
        """Return the vectors [B, T, D] of tokens, or [B, T, width] where the stack projects them.

        An id outside the vocabulary gives NaN.

        Args:
            tokens: Integers [B, T].
            token_types: Integers [B, T], the kind of each token where there are several (None: all of kind 0).
        """
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise InputError(f"tokens must be integers, not {tokens.dtype}: embeddings are looked up, not multiplied")
        if self.token_type_embedding is None and token_types is not None:
            raise InputError("this model knows one kind of token: leave token types out")
        x = look_up(self.embedding[...], tokens, "V_") * self.scale
        if self.token_type_embedding is not None:
            kinds = jnp.zeros((1, 1), int) if token_types is None else token_types
            x += look_up(self.token_type_embedding[...], kinds)
        return x if self.projection is None else self.projection(x)


class LearnedPositionEmbedding(nnx.Module):
    """A trained vector per position [length, D]: `LearnedPositions`."""

    def __init__(self, config: LearnedPositions, dim: int, *, rngs: nnx.Rngs):
        self.offset = config.offset
        vectors = 0.02 * jax.random.normal(rngs.params(), (config.offset + config.length, dim))
        self.embedding = nnx.Param(vectors, axes="_D")

    def __call__(self, position_ids: jax.Array) -> jax.Array:
        """Return the vectors [B, T, D] of positions [B, T]; NaN beyond the table."""
        return look_up(self.embedding[...], position_ids + self.offset)


class Sinusoids(nnx.Module):
    """The fixed sinusoids of section 3.5, computed, never a parameter: `SinusoidalPositions`."""

    def __init__(self, config: SinusoidalPositions, dim: int):
        self.config = config
        self.dim = dim

    def __call__(self, position_ids: jax.Array) -> jax.Array:
        """Return the vectors [B, T, D] of positions [B, T], for any position."""
        return sinusoidal_positions(position_ids, self.dim, layout=self.config.layout, base=self.config.base)


class RelativePositionBias(nnx.Module):
    """A learned number per bucket of distances and head [buckets, N]: `RelativePositions`."""

    def __init__(self, config: RelativePositions, heads: int, *, rngs: nnx.Rngs):
        self.config = config
        self.bias = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.buckets, heads)), axes="_N")

    def __call__(self, queries: int, keys: int, *, first: int | jax.Array, causal: bool) -> jax.Array:
        """Return the bias of scores for queries at slots from `first` on, an integer or [B]: [B|1, N, T, S]."""
        positions = jnp.atleast_1d(jnp.asarray(first))[:, None, None] + jnp.arange(queries)[None, :, None]
        distances = jnp.arange(keys)[None, None] - positions  # [B|1, T, S]
        buckets = distance_buckets(
            distances, buckets=self.config.buckets, max_distance=self.config.max_distance, causal=causal
        )
        return jnp.moveaxis(self.bias[...][buckets], -1, 1)  # [B|1, N, T, S]


class AlibiBias(nnx.Module):
    """What distances take from the scores of each head, computed, never a parameter: `AlibiPositions`."""

    def __init__(self, heads: int):
        self.heads = heads

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Return the bias of scores [B|1, N, T, S] for positions of queries [B|1, T] and of keys [B|1, S]."""
        distances = jnp.abs(keys[:, None, None] - queries[:, None, :, None])  # [B|1, 1, T, S]
        slopes = jnp.asarray(alibi_slopes(self.heads))[None, :, None, None]  # [1, N, 1, 1]
        return -slopes * distances.astype(jnp.float32)


def look_up(table: jax.Array, index: jax.Array, letters: str = "__") -> jax.Array:
    """Return rows of `table` [R, D] at `index` [...]: [..., D]. Indices outside 0..R-1 give NaN, never a wrong row.

    Args:
        table: The rows, [R, D].
        index: Integers [...].
        letters: What stays divided over devices during the look-up, see `parallel.constrain`: never D, whose parts
            would have to be exchanged for those of other rows.
    """
    table = constrain(table, letters)
    return jnp.take(table, jnp.where(index < 0, table.shape[0], index), axis=0, mode="fill", fill_value=jnp.nan)
