"""Products of activations with weight matrices."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Dims = tuple[tuple[int, ...], tuple[int, ...]]

FEW_ROWS = 4  # so many rows meet a weight [O, I] 1.2 to 3 times as fast as its transpose on CPUs
SMALL_WEIGHT = 2**14  # numbers; less is not worth it
LONGEST_PIECE = 4095  # XLA fuses vectors of less than 16 KiB


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Activations x [..., I] times weight [I, O]: [..., O] in the type of both, summed in float32 at least.

    Numbers of 16 bits stay so up to the unit that multiplies them, in the gradients too: a processor that has such a
    unit is twice as fast then. (Gradients of 16-bit products are of reverse mode only.)
    """
    if x.dtype.itemsize < 4:
        return _narrow_matmul(x, weight)
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (0,)), ((), ())))


def matmul_transposed(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Activations x [..., I] times the transpose of a weight [O, I]: [..., O] in float32 at least."""
    if not prefers_transposed(math.prod(x.shape[:-1]), weight.shape, jnp.promote_types(x.dtype, weight.dtype)):
        return _times_transposed(x, weight)

    def few_rows(x: jax.Array, weight: jax.Array) -> jax.Array:
        y = _few_rows_times_transposed(x.reshape(1, -1, x.shape[-1]), weight[None])
        return y.reshape(*x.shape[:-1], len(weight))

    return jax.lax.platform_dependent(x, weight, cpu=few_rows, default=_times_transposed)


def batched_matmul_transposed(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`matmul_transposed` of each of a batch, such as queries x [X, R, I] and keys [X, O, I]: [X, R, O]."""
    shape = (weights.shape[0] * weights.shape[1], weights.shape[2])
    if not prefers_transposed(x.shape[1], shape, jnp.promote_types(x.dtype, weights.dtype)):
        return _batch_times_transposed(x, weights)
    return jax.lax.platform_dependent(x, weights, cpu=_few_rows_times_transposed, default=_batch_times_transposed)


def prefers_transposed(rows: int, shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Return whether on CPUs so many rows meet a weight [O, I] of that shape and type faster than its transpose."""
    if not are_numbers(rows, *shape):
        return False
    floats = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize <= 4
    few, large = 0 < rows <= FEW_ROWS, math.prod(shape) >= SMALL_WEIGHT
    return floats and few and large and _piece(shape[-1], rows) <= LONGEST_PIECE


def are_numbers(*sizes: Any) -> bool:
    """Return whether all sizes are known: the symbols of `jax.export` cannot be compared."""
    return all(isinstance(size, int) for size in sizes)


def _times_transposed(x: jax.Array, weight: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, weight.astype(x.dtype), axes, preferred_element_type=wide)


def _batch_times_transposed(x: jax.Array, weights: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    product = partial(jnp.einsum, preferred_element_type=wide)
    if are_numbers(*x.shape, *weights.shape) and 4 * x.shape[1] <= weights.shape[1] and x.shape[1] < x.shape[2]:
        # The small result is transposed: XLA on CPUs would transpose all weights.
        return jnp.swapaxes(product("XOI,XRI->XOR", weights, x), 1, 2)
    return product("XRI,XOI->XRO", x, weights)


@jax.custom_jvp
def _few_rows_times_transposed(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`batched_matmul_transposed` of rows so few that it takes the time of reading the weights.

    Derivatives, and what `jax.vmap` makes of it, are plain products: the loop below is of use for the numbers alone.
    """
    return _loop_over_outputs(x, weights)


@_few_rows_times_transposed.defjvp
def _derivative(
    arrays: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(_batch_times_transposed, arrays, tangents)


@jax.custom_batching.custom_vmap
def _loop_over_outputs(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Rows x [X, R, I] times the transposes of [X, O, I].

    XLA's kernels take longer: for one row it reads eight rows of the weight side by side, for several it packs the
    weight first, and a batch of weights has one thread. But a vector times a matrix that is worked out on the way
    becomes a loop whose sums it may reorder, and so vectorise: here ones times the products of each row of the weight,
    read once from end to end, with all rows of x. It stands in a branch, as XLA would otherwise work out x for every
    output too; the other branch is for rows that all begin with NaN, of which every output is NaN.
    """
    (X, R, _), outputs, width = x.shape, weights.shape[1], _piece(x.shape[2], x.shape[1])

    def sums(x: jax.Array, weights: jax.Array) -> jax.Array:
        weights = weights.astype(jnp.float32).reshape(X, outputs, 1, -1, width)
        products = weights * x.astype(jnp.float32).reshape(X, 1, R, -1, width)
        pieces = (jnp.ones(width, jnp.float32) @ products.reshape(-1, width).T).reshape(X, outputs, R, -1)
        return jnp.swapaxes(pieces.sum(-1), 1, 2)

    def no_numbers(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.full((X, R, outputs), jnp.nan, jnp.float32)

    return jax.lax.cond(jnp.isnan(x[..., 0]).all(), no_numbers, sums, x, weights)


@_loop_over_outputs.def_vmap
def _mapped(size: int, mapped: list[bool], x: jax.Array, weights: jax.Array) -> tuple[jax.Array, bool]:
    """Plain products: mapped, the loop would become as many numbers as the weights have, for every x."""
    return jax.vmap(_batch_times_transposed, [0 if axis else None for axis in mapped])(x, weights), True


def _piece(width: int, rows: int) -> int:
    """How many products are summed in one go, a divisor of the width.

    LLVM makes one chain of up to 512, in which each sum waits for the one before, so that these had better be short; of
    more it makes a loop with four chains, which is the fastest for several rows.
    """
    piece = 1024 if rows > 1 and width % 1024 == 0 else math.gcd(width, 128)
    return width if piece < 64 else piece


def _product(x: jax.Array, y: jax.Array, contracted: Dims) -> jax.Array:
    return jax.lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=jnp.float32).astype(x.dtype)


@jax.custom_vjp
def _narrow_matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    return _product(x, weight, ((x.ndim - 1,), (0,)))


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _narrow_matmul(x, weight), (x, weight)


def _backward(kept: tuple[jax.Array, jax.Array], d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of both. The rule of jax would widen d_y to float32 first, as the product's result was."""
    x, weight = kept
    rows = tuple(range(x.ndim - 1))
    return _product(d_y, weight, ((d_y.ndim - 1,), (1,))), _product(x, d_y, (rows, rows))


_narrow_matmul.defvjp(_forward, _backward)
