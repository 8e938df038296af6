"""The linear map, the only place where weights meet activations: in full, transposed, in 8 bits, with adapters."""

import math
from abc import abstractmethod
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.backends.cpu import matmul_transposed, prefers_transposed
from jaxformer.errors import InputError
from jaxformer.layers.variables import QuantizedWeight
from jaxformer.ops import Quantized, int8_matmul, matmul, quantize

Sizes = int | tuple[int, ...]


class LinearMap(nnx.Module):
    """`x W + b` over the trailing axes of x, however the weight is stored.

    Either side may be several axes, so that heads are never reshaped by hand: a query projection is
    `Linear(D, (N, H), axes="DNH")`, the output projection after it `Linear((N, H), D, axes="NHD")`.

    Attributes:
        inputs: Sizes of the axes that are summed over.
        outputs: Sizes of the axes that result.
        bias: b, [outputs]. None: there is none.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bias: nnx.Param[jax.Array] | None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x W + b`: [..., inputs] -> [..., outputs], in the type of x."""
        rows = x.shape[: x.ndim - len(self.inputs)]
        # As matrices: XLA would transpose a weight of more axes for every product, that is at every generated token.
        y = self.matmul(x.reshape(*rows, math.prod(self.inputs)))  # [..., O]
        if self.bias is not None:  # added before heads are told apart: its gradient then needs no copy of theirs
            y += self.bias[...].astype(y.dtype).reshape((1,) * len(rows) + (-1,))
        return y.reshape(*rows, *self.outputs)

    @abstractmethod
    def matmul(self, x: jax.Array) -> jax.Array:
        """Return `x W`, with either side flat: [..., I] -> [..., O], in the type of x."""

    @abstractmethod
    def dense_weight(self) -> jax.Array:
        """Return the weight [inputs, outputs]."""


class Linear(LinearMap):
    """A linear map whose weight is stored [inputs, outputs].

    This layout is the fastest for large batches on CPUs; decoding steps of few rows use `TransposedLinear`.

    Args:
        inputs: Sizes of the axes that are summed over.
        outputs: Sizes of the axes that result.
        axes: A letter for each of them, see `jaxformer.layers.variables`.
        bias: Whether to add a bias of the shape of the outputs.
        rngs: Where the weights start from.

    Weights start from the uniform distribution of Glorot and Bengio (2010), biases from zero.
    """

    def __init__(self, inputs: Sizes, outputs: Sizes, *, axes: str, bias: bool = True, rngs: nnx.Rngs):
        self.inputs = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        self.outputs = (outputs,) if isinstance(outputs, int) else tuple(outputs)
        bound = math.sqrt(6 / (math.prod(self.inputs) + math.prod(self.outputs)))
        shape = self.inputs + self.outputs
        if len(axes) != len(shape):
            raise InputError(f"axes={axes!r} must have a letter for each of the {len(shape)} axes {shape}")
        self.weight = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound), axes=axes)
        self.bias = nnx.Param(jnp.zeros(self.outputs), axes=axes[len(self.inputs) :]) if bias else None

    def prefers_transposed(self, rows: int) -> bool:
        """Return whether this is one map, not those of several experts, and faster transposed for so many rows."""
        one, shape = self.weight.ndim == len(self.inputs) + len(self.outputs), (*self.outputs, math.prod(self.inputs))
        return one and prefers_transposed(rows, shape, self.weight.dtype)

    def matmul(self, x: jax.Array) -> jax.Array:
        """Return `x W`, with either side flat: [..., I] -> [..., O], in the type of x."""
        return matmul(x, self.weight[...].astype(x.dtype).reshape(x.shape[-1], math.prod(self.outputs)))  # [..., O]

    def grouped(self, x: jax.Array, group_sizes: jax.Array) -> jax.Array:
        """Return each row of x times the map of its expert, in the type of x.

        Args:
            x: Rows [n, I], sorted by expert.
            group_sizes: Number of rows of each expert, int32 [E]; the weight is [E, I, O].
        """
        weight = self.weight[...].astype(x.dtype)
        y = jax.lax.ragged_dot(x, weight, group_sizes, preferred_element_type=jnp.float32).astype(x.dtype)
        if self.bias is None:
            return y
        return y + jnp.repeat(self.bias[...].astype(x.dtype), group_sizes, axis=0, total_repeat_length=x.shape[0])

    def dense_weight(self) -> jax.Array:
        """Return the weight [inputs, outputs]."""
        return self.weight[...]


class TransposedLinear(LinearMap):
    """A linear map whose weight is stored [outputs, inputs]: made of another one, for steps of a few rows.

    `Linear.prefers_transposed` says where that is faster.
    """

    def __init__(self, linear: Linear):
        self.inputs, self.outputs, self.bias = linear.inputs, linear.outputs, linear.bias
        weight = linear.weight[...].reshape(math.prod(self.inputs), math.prod(self.outputs))  # [I, O]
        self.weight = nnx.Param(weight.T, axes="__")

    def matmul(self, x: jax.Array) -> jax.Array:
        """Return `x W`, with either side flat: [..., I] -> [..., O], in the type of x."""
        return matmul_transposed(x, self.weight[...]).astype(x.dtype)

    def dense_weight(self) -> jax.Array:
        """Return the weight [inputs, outputs]."""
        return self.weight[...].T.reshape(*self.inputs, *self.outputs)  # [inputs, outputs]


class QuantizedLinear(LinearMap):
    """A linear map whose weight has 8 bits, with a step for each output: half as much to read as in 16 bits.

    Made of another one, and never trained itself: gradients pass through it. Its weight is stored [outputs, inputs], as
    products of integers read it fastest on CPUs (measured for 2 to 32 rows: up to 6 times faster than the transpose).
    """

    def __init__(self, linear: Linear):
        self.inputs, self.outputs, self.bias = linear.inputs, linear.outputs, linear.bias
        weight = linear.weight[...]
        experts = weight.shape[: weight.ndim - len(self.inputs) - len(self.outputs)]
        matrix = weight.reshape(*experts, math.prod(self.inputs), math.prod(self.outputs))  # [I, O] or [E, I, O]
        values, steps = quantize(jnp.swapaxes(matrix, -1, -2))  # [..., O, I], [..., O]
        several = "_" * (values.ndim - 2)
        self.values = QuantizedWeight(values, axes=f"{several}__")
        self.steps = QuantizedWeight(steps, axes=f"{several}_")

    def matmul(self, x: jax.Array) -> jax.Array:
        """Return `x W`, with either side flat: [..., I] -> [..., O], in the type of x."""
        return int8_matmul(x, Quantized(self.values[...], self.steps[...])).astype(x.dtype)

    def dense_weight(self) -> jax.Array:
        """Return the dequantized weight, float32 [inputs, outputs]."""
        weight = self.values[...].astype(jnp.float32) * self.steps[...][..., None]
        # [inputs, outputs] or [E, inputs, outputs]
        return jnp.swapaxes(weight, -1, -2).reshape(*weight.shape[:-2], *self.inputs, *self.outputs)


class AdaptedLinear(LinearMap):
    """A linear map with a low-rank change beside its weight: `x W + (x A) B + b` (Hu et al. 2021, equation 3).

    Args:
        linear: The map, with a weight of any kind.
        A: Float32 [I, r].
        B: Float32 [r, O], times the scale of the adapter.
    """

    def __init__(self, linear: LinearMap, A: jax.Array, B: jax.Array):
        self.inputs, self.outputs, self.bias = linear.inputs, linear.outputs, linear.bias
        self.linear = nnx.clone(linear)
        self.linear.bias = None
        self.A, self.B = nnx.Param(A, axes="__"), nnx.Param(B, axes="__")

    def matmul(self, x: jax.Array) -> jax.Array:
        """Return `x (W + A B)`, with either side flat: [..., I] -> [..., O], in the type of x."""
        low = matmul(x, self.A[...].astype(x.dtype))  # [..., r]
        return self.linear.matmul(x) + matmul(low, self.B[...].astype(x.dtype))  # [..., O]

    def dense_weight(self) -> jax.Array:
        """Return the weight with its change, [inputs, outputs]."""
        weight = self.linear.dense_weight()
        return weight + (self.A[...] @ self.B[...]).reshape(weight.shape).astype(weight.dtype)


def replace_linear(
    model: nnx.Module, make: Callable[[Linear], LinearMap], wanted: Callable[[nnx.Module, str, Linear], bool]
) -> None:
    """Put make(linear) in the place of every linear map in the model for which wanted(its module, name, linear)."""
    for _, module in list(nnx.iter_modules(model)):
        for name, part in list(vars(module).items()):
            if isinstance(part, Linear) and wanted(module, name, part):
                setattr(module, name, make(part))
