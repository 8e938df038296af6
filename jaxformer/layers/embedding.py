"""Token embeddings, positions, and the output head."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import EmbeddingConfig, HeadConfig, LearnedPositions, SinusoidalPositions
from jaxformer.errors import InputError
from jaxformer.layers.linear import Linear
from jaxformer.ops import sinusoidal_positions


class Embedding(nnx.Module):
    """A vector per token, section 3.4. Entries start with variance 1/D, as an output projection wants them."""

    def __init__(self, config: EmbeddingConfig, dim: int, *, rngs: nnx.Rngs):
        width = config.dim or dim
        self.table = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, width)) / math.sqrt(width))
        self.scale = math.sqrt(dim) if config.scale else 1.0
        self.projection = Linear(width, dim, bias=False, rngs=rngs) if width != dim else None

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Integers [B, T] -> [B, T, D]. An id outside the vocabulary gives NaN, never another token's vector."""
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise InputError(f"tokens must be integers, not {tokens.dtype}: embeddings are looked up, not multiplied")
        x = look_up(self.table[...], tokens) * self.scale
        return x if self.projection is None else self.projection(x)


class PositionTable(nnx.Module):
    """A trained vector per position [length, D]: `LearnedPositions`."""

    def __init__(self, config: LearnedPositions, dim: int, *, rngs: nnx.Rngs):
        self.offset = config.offset
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.offset + config.length, dim)))

    def __call__(self, position_ids: jax.Array) -> jax.Array:
        """Integers [B, T] -> [B, T, D]; NaN beyond the table."""
        return look_up(self.table[...], position_ids + self.offset)


class Sinusoids(nnx.Module):
    """The fixed sinusoids of section 3.5, computed, never a parameter: `SinusoidalPositions`."""

    def __init__(self, config: SinusoidalPositions, dim: int):
        self.config = config
        self.dim = dim

    def __call__(self, position_ids: jax.Array) -> jax.Array:
        """Integers [B, T] -> [B, T, D], for any position."""
        return sinusoidal_positions(position_ids, self.dim, layout=self.config.layout, base=self.config.base)


class Head(nnx.Module):
    """Logits of every token, section 3.4: hidden states times the embedding table (tied) or a matrix of its own."""

    def __init__(self, config: HeadConfig, embedding: EmbeddingConfig, dim: int, *, rngs: nnx.Rngs):
        width = embedding.dim or dim
        self.projection = Linear(dim, width, bias=False, rngs=rngs) if config.tied and width != dim else None
        self.output = None if config.tied else Linear(dim, embedding.vocab_size, bias=False, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(embedding.vocab_size)) if config.bias else None

    def __call__(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """[..., D] and the embedding table [V, E] -> float32 [..., V].

        The table is an argument, not a part: two modules that share a parameter would be untied by `jax.jit`.
        """
        x = hidden if self.projection is None else self.projection(hidden)
        weight = table.T if self.output is None else self.output.weight[...]  # [E, V]
        axes = (((x.ndim - 1,), (0,)), ((), ()))
        logits = jax.lax.dot_general(x, weight.astype(x.dtype), axes, preferred_element_type=jnp.float32)
        if self.bias is None:
            return logits
        return logits + self.bias[...].astype(jnp.float32).reshape((1,) * (logits.ndim - 1) + (-1,))

    def untied(self, table: jax.Array) -> "Head":
        """An equal head with a matrix of its own, the embedding table [V, E] transposed once: what loops multiply by.

        A few rows meet the matrix [E, V] up to twice as fast as its transpose on CPUs.
        """
        if self.output is not None:
            return self
        V, E = table.shape
        head = nnx.clone(self)
        head.output = nnx.data(nnx.eval_shape(lambda: Linear(E, V, bias=False, rngs=nnx.Rngs(0))))
        # Behind the barrier the compiler cannot fold the transposition back into the products of the loop.
        head.output.weight = nnx.Param(jax.lax.optimization_barrier(table.T))
        return head


def look_up(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of `table` [R, D] at `index` [...]: [..., D]. Indices outside 0..R-1 give NaN, never a wrong row."""
    return jnp.take(table, jnp.where(index < 0, table.shape[0], index), axis=0, mode="fill", fill_value=jnp.nan)
