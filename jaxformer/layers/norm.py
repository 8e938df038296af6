"""Layer normalisation as a module."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import LayerNormConfig
from jaxformer.ops import layer_norm


class LayerNorm(nnx.Module):
    """Owns the scale and shift [D] of `jaxformer.ops.layer_norm`."""

    def __init__(self, config: LayerNormConfig, dim: int):
        self.epsilon = config.epsilon
        self.scale = nnx.Param(jnp.ones(dim))
        self.shift = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return layer_norm(x, self.scale[...], self.shift[...], epsilon=self.epsilon)
