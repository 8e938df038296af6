"""Normalisation as modules."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import LayerNormConfig, NormConfig, RMSNormConfig
from jaxformer.ops import layer_norm, rms_norm


class LayerNorm(nnx.Module):
    """Owns the scale and shift [D] of `jaxformer.ops.layer_norm`."""

    def __init__(self, config: LayerNormConfig, dim: int):
        self.epsilon = config.epsilon
        self.scale = nnx.Param(jnp.ones(dim))
        self.shift = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return layer_norm(x, self.scale[...], self.shift[...], epsilon=self.epsilon)


class RMSNorm(nnx.Module):
    """Owns the scale [D] of `jaxformer.ops.rms_norm`."""

    def __init__(self, config: RMSNormConfig, dim: int):
        self.config = config
        self.scale = nnx.Param(jnp.zeros(dim) if config.offset else jnp.ones(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return rms_norm(x, self.scale[...], epsilon=self.config.epsilon, offset=self.config.offset)


Norm = LayerNorm | RMSNorm


def make_norm(config: NormConfig, dim: int) -> Norm:
    """The module that a configuration describes, over vectors of width `dim`."""
    match config:
        case LayerNormConfig():
            return LayerNorm(config, dim)
        case RMSNormConfig():
            return RMSNorm(config, dim)
