"""From hidden states to logits: of the vocabulary, of the classes of a sequence, or one for each token."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.backends.cpu import matmul_transposed, prefers_transposed
from jaxformer.config import (
    ClassifierConfig,
    DiscriminatorConfig,
    EmbeddingConfig,
    HeadConfig,
    LastToken,
    TransformConfig,
)
from jaxformer.layers.linear import Linear, QuantizedLinear, TransposedLinear, replace_linear
from jaxformer.layers.norm import make_norm
from jaxformer.ops import ACTIVATIONS, dropout
from jaxformer.ops.matmul import flat_rows
from jaxformer.parallel import constrain


class Transform(nnx.Module):
    """Norm(activation(x W + b)): `TransformConfig`."""

    def __init__(self, config: TransformConfig, dim: int, width: int, *, rngs: nnx.Rngs):
        self.linear = Linear(dim, width, axes="D_", bias=config.bias, rngs=rngs)
        self.activation = config.activation
        self.norm = make_norm(config.norm, width, axes="D" if width == dim else "_")

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return transformed states: [..., D] -> [..., width]."""
        return self.norm(ACTIVATIONS[self.activation](self.linear(x)))


class Head(nnx.Module):
    """Logits of every token, section 3.4: hidden states times the embedding table (tied) or a separate matrix.

    Attributes:
        output: The separate matrix as a linear map: [D, V], or [E, V] where a head that was tied to a table [V, E] has
            been untied. None: the head is tied.
    """

    output: Linear | TransposedLinear | QuantizedLinear | None

    def __init__(self, config: HeadConfig, embedding: EmbeddingConfig, dim: int, *, rngs: nnx.Rngs):
        width = embedding.dim or dim
        self.config = config
        width = width if config.tied else dim
        self.transform = Transform(config.transform, dim, width, rngs=rngs) if config.transform else None
        narrow = width != dim and self.transform is None
        self.projection = Linear(dim, width, axes="D_", bias=False, rngs=rngs) if narrow else None
        self.output = None if config.tied else Linear(dim, embedding.vocab_size, axes="DV", bias=False, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(embedding.vocab_size), axes="V") if config.bias else None

    @jax.named_scope("head")
    def __call__(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """Return float32 logits [..., V] of states [..., D], with the embedding table [V, E].

        The table is an argument, not a part: two modules that share a parameter would be untied by `jax.jit`.
        """
        x = hidden if self.config.scale == 1 else hidden * self.config.scale
        x = x if self.transform is None else self.transform(x)
        x = x if self.projection is None else self.projection(x)
        if isinstance(self.output, QuantizedLinear):
            logits = self.output(x.astype(jnp.float32))
        elif isinstance(self.output, TransposedLinear):
            logits = matmul_transposed(x, self.output.weight[...])
        else:
            weight, axis = (table, 1) if self.output is None else (self.output.weight[...], 0)  # [V, E] or [E, V]
            rows = flat_rows(x)
            axes = (((rows.ndim - 1,), (axis,)), ((), ()))
            logits = jax.lax.dot_general(rows, weight.astype(x.dtype), axes, preferred_element_type=jnp.float32)
            logits = logits.reshape(*x.shape[:-1], -1)
        if self.bias is not None:
            logits += self.bias[...].astype(jnp.float32).reshape((1,) * (logits.ndim - 1) + (-1,))  # [..., V]
        if (softcap := self.config.softcap) is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        return constrain(logits, "BTV" if logits.ndim == 3 else "BV")

    def untied(self, table: jax.Array, *, transposed: bool = False) -> "Head":
        """Return an equal head with a matrix of its own.

        It is the transpose [E, V] of the embedding table [V, E], or the table.
        """
        if self.output is not None:
            return self
        V, E = table.shape

        def shaped() -> Linear | TransposedLinear:
            linear = Linear(E, V, axes="DV", bias=False, rngs=nnx.Rngs(0))
            return TransposedLinear(linear) if transposed else linear

        head, output = nnx.clone(self), nnx.eval_shape(shaped)
        output.weight = nnx.Param(table if transposed else table.T, axes=output.weight.axes)
        head.output = nnx.data(output)
        return head

    def optimize_for_decoding(self, table: jax.Array, batch_size: int) -> "Head":
        """Return a copy with weights transposed for decoding `batch_size` rows on CPUs."""
        head = nnx.clone(self).untied(table, transposed=prefers_transposed(batch_size, table.shape, table.dtype))
        replace_linear(head, TransposedLinear, lambda _, __, linear: linear.prefers_transposed(batch_size))
        return head


class Classifier(nnx.Module):
    """Logits of the classes of a sequence, from the state of one token: `ClassifierConfig`."""

    def __init__(self, config: ClassifierConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        self.hidden = Linear(dim, dim, axes="D_", rngs=rngs) if config.activation else None
        self.output = Linear(dim, config.classes, axes="D_", bias=config.bias, rngs=rngs)

    def pool(self, states: jax.Array, tokens: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Return the state [B, D] that tells the class.

        Args:
            states: [B, T, D].
            tokens: Token ids [B, T].
            valid: [B, T], True or 1 at real tokens. None: all are.
        """
        if not isinstance(self.config.pooled, LastToken):
            return states[:, 0]
        real = jnp.ones(tokens.shape, bool) if valid is None else valid != 0
        if self.config.pooled.pad_id is not None:
            real &= tokens != self.config.pooled.pad_id
        slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        last = jnp.max(jnp.where(real, slots, 0), axis=1)  # [B]
        return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]

    def __call__(self, x: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return float32 logits [B, classes] of the states [B, D] of `pool`."""
        if self.hidden is not None and self.config.activation is not None:
            x = ACTIVATIONS[self.config.activation](self.hidden(x))
        return self.output(dropout(x, self.config.dropout, dropout_key)).astype(jnp.float32)


class Discriminator(nnx.Module):
    """A score of each token: `DiscriminatorConfig`."""

    def __init__(self, config: DiscriminatorConfig, dim: int, *, rngs: nnx.Rngs):
        self.activation = config.activation
        self.hidden = Linear(dim, dim, axes="D_", rngs=rngs)
        self.output = Linear(dim, 1, axes="D_", rngs=rngs)

    def __call__(self, states: jax.Array) -> jax.Array:
        """Return float32 scores [...] of states [..., D]."""
        return self.output(ACTIVATIONS[self.activation](self.hidden(states)))[..., 0].astype(jnp.float32)
