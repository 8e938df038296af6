"""Normalisation as modules."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import LayerNormConfig, NormConfig, RMSNormConfig
from jaxformer.ops import layer_norm, rms_norm


class LayerNorm(nnx.Module):
    """Owns the scale and bias [D] of `jaxformer.ops.layer_norm`, where the configuration has them."""

    def __init__(self, config: LayerNormConfig, shape: int | tuple[int, ...], *, axes: str = "D"):
        self.epsilon = config.epsilon
        self.scale = nnx.Param(jnp.ones(shape), axes=axes) if config.scale else None
        self.bias = nnx.Param(jnp.zeros(shape), axes=axes) if config.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return normalized vectors: [..., D] -> [..., D]."""
        scale, bias = (None if each is None else each[...] for each in (self.scale, self.bias))
        return layer_norm(x, scale, bias, epsilon=self.epsilon)


class RMSNorm(nnx.Module):
    """Owns the scale [D] of `jaxformer.ops.rms_norm`."""

    def __init__(self, config: RMSNormConfig, shape: int | tuple[int, ...], *, axes: str = "D"):
        self.config = config
        self.scale = nnx.Param(jnp.zeros(shape) if config.offset else jnp.ones(shape), axes=axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return normalized vectors: [..., D] -> [..., D]."""
        return rms_norm(x, self.scale[...], epsilon=self.config.epsilon, offset=self.config.offset)


Norm = LayerNorm | RMSNorm


def make_norm(config: NormConfig, shape: int | tuple[int, ...], *, axes: str = "D") -> Norm:
    """Return the module that a configuration describes.

    Args:
        config: The norm.
        shape: Width of the vectors that are normalized; with the number of heads before it, each has its own scale.
        axes: The letters of these axes.
    """
    match config:
        case LayerNormConfig():
            return LayerNorm(config, shape, axes=axes)
        case RMSNormConfig():
            return RMSNorm(config, shape, axes=axes)
