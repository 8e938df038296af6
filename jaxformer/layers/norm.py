"""Normalisation as modules."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import LayerNormConfig, NormConfig, RMSNormConfig
from jaxformer.ops import layer_norm, rms_norm


class LayerNorm(nnx.Module):
    """Owns the scale and bias [D] of `jaxformer.ops.layer_norm`."""

    def __init__(self, config: LayerNormConfig, dim: int, *, axes: str = "D"):
        self.epsilon = config.epsilon
        self.scale = nnx.Param(jnp.ones(dim), axes=axes)
        self.bias = nnx.Param(jnp.zeros(dim), axes=axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return normalized vectors: [..., D] -> [..., D]."""
        return layer_norm(x, self.scale[...], self.bias[...], epsilon=self.epsilon)


class RMSNorm(nnx.Module):
    """Owns the scale [D] of `jaxformer.ops.rms_norm`."""

    def __init__(self, config: RMSNormConfig, dim: int, *, axes: str = "D"):
        self.config = config
        self.scale = nnx.Param(jnp.zeros(dim) if config.offset else jnp.ones(dim), axes=axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return normalized vectors: [..., D] -> [..., D]."""
        return rms_norm(x, self.scale[...], epsilon=self.config.epsilon, offset=self.config.offset)


Norm = LayerNorm | RMSNorm


def make_norm(config: NormConfig, dim: int, *, axes: str = "D") -> Norm:
    """Return the module that a configuration describes, over vectors of width `dim` along the axis of that letter."""
    match config:
        case LayerNormConfig():
            return LayerNorm(config, dim, axes=axes)
        case RMSNormConfig():
            return RMSNorm(config, dim, axes=axes)
