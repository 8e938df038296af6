"""From hidden states to logits: of the vocabulary, of classes of a sequence or its tokens, or one for each token."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.backends.cpu import matmul_transposed, prefers_transposed
from jaxformer.config import (
    AnyClassifierConfig,
    ClassifierConfig,
    DiscriminatorConfig,
    EmbeddingConfig,
    EndOfText,
    HeadConfig,
    LastToken,
    TransformConfig,
    TransformerConfig,
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
    """Logits of classes: of a sequence, `ClassifierConfig`, or of each token, `TokenClassifierConfig`, `SpanConfig`."""

    def __init__(self, config: AnyClassifierConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        inner = config.activation is not None
        self.hidden = Linear(dim, dim, axes="D_", bias=config.hidden_bias, rngs=rngs) if inner else None
        self.norm = make_norm(config.norm, dim, axes="_") if config.norm else None
        self.output = Linear(dim, config.classes, axes="D_", bias=config.bias, rngs=rngs)

    def read(
        self,
        states: jax.Array,
        tokens: jax.Array,
        valid: jax.Array | None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Return the float32 logits of sequences [B, classes], or of their tokens [B, T, classes].

        Args:
            states: [B, T, D].
            tokens: Token ids [B, T]; in an encoder-decoder those that the encoder reads.
            valid: [B, T], True or 1 at real tokens. None: all are.
            dropout_key: Key for dropout. None: no dropout.
        """
        if not isinstance(self.config, ClassifierConfig):
            return self(states, dropout_key=dropout_key)
        real = jnp.ones(tokens.shape, bool) if valid is None else valid != 0
        match self.config.pooled:
            case "first":
                return self(states[:, 0], dropout_key=dropout_key)
            case "mean":
                return self(mean_of(states, real), dropout_key=dropout_key)
            case "mean_logits":
                return mean_of(self(states, dropout_key=dropout_key), real)
            case LastToken(pad_id):
                chosen = real if pad_id is None else real & (tokens != pad_id)
            case EndOfText(eos_id):
                chosen = real & (tokens == eos_id)
        return self(last_of(states, chosen), dropout_key=dropout_key)

    def __call__(self, x: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return float32 logits [..., classes] of states [..., D]."""
        if self.hidden is not None and self.config.activation is not None:
            x = ACTIVATIONS[self.config.activation](self.hidden(x))
        x = x if self.norm is None else self.norm(x)
        return self.output(dropout(x, self.config.dropout, dropout_key)).astype(jnp.float32)


def mean_of(x: jax.Array, real: jax.Array) -> jax.Array:
    """Return the mean [B, D] of the real tokens [B, T] of x [B, T, D]."""
    total = jnp.where(real[..., None], x, 0).sum(axis=1)  # [B, D]
    return total / jnp.maximum(real.sum(axis=1, keepdims=True), 1).astype(x.dtype)


def last_of(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """Return the last [B, D] of the chosen tokens [B, T] of x [B, T, D]; the first token where none is chosen."""
    slots = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    last = jnp.max(jnp.where(chosen, slots, 0), axis=1)  # [B]
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]


class Discriminator(nnx.Module):
    """A score of each token: `DiscriminatorConfig`."""

    def __init__(self, config: DiscriminatorConfig, dim: int, *, rngs: nnx.Rngs):
        self.activation = config.activation
        self.hidden = Linear(dim, dim, axes="D_", rngs=rngs)
        self.output = Linear(dim, 1, axes="D_", rngs=rngs)

    def __call__(self, states: jax.Array) -> jax.Array:
        """Return float32 scores [...] of states [..., D]."""
        return self.output(ACTIVATIONS[self.activation](self.hidden(states)))[..., 0].astype(jnp.float32)


def make_head(config: TransformerConfig, *, rngs: nnx.Rngs) -> Head | Classifier | Discriminator | None:
    """Return the head of a model; None: it has none."""
    match config.head:
        case None:
            return None
        case HeadConfig() as head:
            return Head(head, config.main.embedding, config.dim, rngs=rngs)
        case DiscriminatorConfig() as head:
            return Discriminator(head, config.dim, rngs=rngs)
        case head:
            return Classifier(head, config.dim, rngs=rngs)
