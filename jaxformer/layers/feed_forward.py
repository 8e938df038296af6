"""Position-wise feed-forward network, section 3.3."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import FeedForwardConfig
from jaxformer.layers.linear import Linear
from jaxformer.ops import ACTIVATIONS, dropout


class FeedForward(nnx.Module):
    """Equation 2: activation(x W_up + b_up) W_down + b_down, the same at every position.

    Gated: (activation(x W_gate + b_gate) * (x W_up + b_up)) W_down + b_down. A limit bounds both factors.
    """

    def __init__(self, config: FeedForwardConfig, dim: int, *, rngs: nnx.Rngs):
        d_ff = 4 * dim if config.d_ff is None else config.d_ff
        self.dropout, self.limit = config.dropout, config.limit
        self.activation = config.activation  # by name: functions cannot be pickled
        self.gate = Linear(dim, d_ff, axes="DF", bias=config.bias, rngs=rngs) if config.gated else None
        self.up = Linear(dim, d_ff, axes="DF", bias=config.bias, rngs=rngs)
        self.down = Linear(d_ff, dim, axes="FD", bias=config.bias, rngs=rngs)

    def __call__(self, x: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """[..., D] -> [..., D]."""
        inner, activation = self.up(x), ACTIVATIONS[self.activation]
        if self.gate is None:
            inner = activation(inner)
        elif self.limit is None:
            inner = activation(self.gate(x)) * inner
        else:
            gate = jnp.minimum(self.gate(x), self.limit)
            inner = activation(gate) * (1 + jnp.clip(inner, -self.limit, self.limit))
        return self.down(dropout(inner, self.dropout, dropout_key))
