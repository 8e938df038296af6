"""From hidden states to logits: of every token of the vocabulary, or of the classes of a sequence."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import ClassifierConfig, EmbeddingConfig, HeadConfig, TransformConfig
from jaxformer.layers.linear import Linear, QuantisedLinear
from jaxformer.layers.norm import make_norm
from jaxformer.ops import ACTIVATIONS, dropout, matmul_transposed


class Transform(nnx.Module):
    """Norm(activation(x W + b)): `TransformConfig`."""

    def __init__(self, config: TransformConfig, dim: int, *, rngs: nnx.Rngs):
        self.linear = Linear(dim, dim, rngs=rngs)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = make_norm(config.norm, dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return self.norm(self.activation(self.linear(x)))


class Head(nnx.Module):
    """Logits of every token, section 3.4: hidden states times the embedding table (tied) or a matrix of its own."""

    def __init__(self, config: HeadConfig, embedding: EmbeddingConfig, dim: int, *, rngs: nnx.Rngs):
        width = embedding.dim or dim
        self.config = config
        self.transform = Transform(config.transform, dim, rngs=rngs) if config.transform else None
        self.projection = Linear(dim, width, bias=False, rngs=rngs) if config.tied and width != dim else None
        self.output = None if config.tied else Linear(dim, embedding.vocab_size, bias=False, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(embedding.vocab_size)) if config.bias else None

    def __call__(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """[..., D] and the embedding table [V, E] -> float32 [..., V].

        The table is an argument, not a part: two modules that share a parameter would be untied by `jax.jit`.
        """
        x = hidden if self.config.scale == 1 else hidden * self.config.scale
        x = x if self.transform is None else self.transform(x)
        x = x if self.projection is None else self.projection(x)
        if isinstance(self.output, QuantisedLinear):
            logits = self.output(x.astype(jnp.float32))
        elif isinstance(self.output, Linear):
            axes = (((x.ndim - 1,), (0,)), ((), ()))
            logits = jax.lax.dot_general(
                x, self.output.weight[...].astype(x.dtype), axes, preferred_element_type=jnp.float32
            )
        else:
            by_token = table if self.output is None else self.output.weight[...]  # [V, E]
            logits = matmul_transposed(x, by_token.astype(x.dtype))
        if self.bias is not None:
            logits += self.bias[...].astype(jnp.float32).reshape((1,) * (logits.ndim - 1) + (-1,))
        if (softcap := self.config.softcap) is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        return logits

    def untied(self, table: jax.Array) -> "Head":
        """An equal head with a matrix of its own, the embedding table [V, E] transposed once: what loops multiply by.

        On CPUs the rows of a batch meet the matrix [E, V] 2 to 5 times as fast as its transpose.
        """
        if self.output is not None:
            return self
        V, E = table.shape
        head = nnx.clone(self)
        head.output = nnx.data(nnx.eval_shape(lambda: Linear(E, V, bias=False, rngs=nnx.Rngs(0))))
        head.output.weight = nnx.Param(table.T)
        return head


class Classifier(nnx.Module):
    """Logits of the classes of a sequence, from the state of its first token: `ClassifierConfig`."""

    def __init__(self, config: ClassifierConfig, dim: int, *, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.activation = ACTIVATIONS[config.activation]
        self.hidden = Linear(dim, dim, rngs=rngs)
        self.output = Linear(dim, config.classes, rngs=rngs)

    def __call__(self, states: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> float32 [B, classes]."""
        inner = dropout(self.activation(self.hidden(states[:, 0])), self.dropout, dropout_key)
        return self.output(inner).astype(jnp.float32)
