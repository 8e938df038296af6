"""The linear map, the only place where weights meet activations."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

Axes = int | tuple[int, ...]


class Linear(nnx.Module):
    """`x W^T + b` over the trailing axes of x: [..., inputs] -> [..., outputs].

    Either side may be several axes, so that heads are never reshaped by hand: a query projection is
    `Linear(D, (N, H))`, the output projection after it `Linear((N, H), D)`. The weight is stored [outputs, inputs]: one
    row per output, each contracted along its last axis, the order in which decoding a single token reads it fastest.
    Weights start from the uniform distribution of Glorot and Bengio (2010), biases from zero.
    """

    def __init__(self, inputs: Axes, outputs: Axes, *, bias: bool = True, rngs: nnx.Rngs):
        self.inputs = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        self.outputs = (outputs,) if isinstance(outputs, int) else tuple(outputs)
        bound = math.sqrt(6 / (math.prod(self.inputs) + math.prod(self.outputs)))
        shape = self.outputs + self.inputs
        self.weight = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))
        self.bias = nnx.Param(jnp.zeros(self.outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., inputs] -> [..., outputs], in the type of x."""
        # As matrices: XLA would transpose a weight of more axes for every product, that is at every generated token.
        inputs, outputs = math.prod(self.inputs), math.prod(self.outputs)
        rows = x.shape[: x.ndim - len(self.inputs)]
        weight = self.weight[...].astype(x.dtype).reshape(outputs, inputs)
        contracted = (((len(rows),), (1,)), ((), ()))
        y = jax.lax.dot_general(x.reshape(*rows, inputs), weight, contracted).reshape(*rows, *self.outputs)
        if self.bias is None:
            return y
        bias = self.bias[...].astype(x.dtype)
        return y + jnp.expand_dims(bias, tuple(range(y.ndim - bias.ndim)))
