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

    @jax.named_scope("feed_forward")
    def __call__(self, x: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return the network's output for x [..., D]: [..., D]."""
        inner = self._inner(self.up(x), None if self.gate is None else self.gate(x))
        return self.down(dropout(inner, self.dropout, dropout_key))

    def grouped(self, x: jax.Array, group_sizes: jax.Array) -> jax.Array:
        """Return each row through its own network, where the weights have an axis of experts more.

        Args:
            x: Rows [n, D], sorted by expert.
            group_sizes: Number of rows of each expert, int32 [E].
        """
        gate = None if self.gate is None else self.gate.grouped(x, group_sizes)
        return self.down.grouped(self._inner(self.up.grouped(x, group_sizes), gate), group_sizes)

    def _inner(self, up: jax.Array, gate: jax.Array | None) -> jax.Array:
        """Return the inner units [..., F] from both projections."""
        activation = ACTIVATIONS[self.activation]
        if gate is None:
            return activation(up)
        if self.limit is None:
            return activation(gate) * up
        return activation(jnp.minimum(gate, self.limit)) * (1 + jnp.clip(up, -self.limit, self.limit))
