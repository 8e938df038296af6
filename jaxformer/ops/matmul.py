"""Products of activations with weight matrices."""

import math

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
    """Activations x [..., I] times the transpose of a weight [O, I]: [..., O] in float32 at least.

    Not to be mapped by `jax.vmap`: what a few rows gain by would become as many numbers as the weights have, per row.
    """
    if prefers_transposed(x.size // x.shape[-1], weight.shape, jnp.promote_types(x.dtype, weight.dtype)):
        return jax.lax.platform_dependent(x, weight, cpu=_few_rows_times_transposed, default=_times_transposed)
    return _times_transposed(x, weight)


def prefers_transposed(rows: int, shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether on CPUs so many rows meet a weight [O, I] of that shape and type faster than its transpose [I, O]."""
    floats = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize <= 4
    return floats and rows <= FEW_ROWS and math.prod(shape) >= SMALL_WEIGHT and _piece(shape[-1]) <= LONGEST_PIECE


def _times_transposed(x: jax.Array, weight: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, weight.astype(x.dtype), axes, preferred_element_type=wide)


def _few_rows_times_transposed(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`matmul_transposed` of rows so few that it takes the time of reading the weight.

    XLA's kernels take longer: for one row it reads eight rows of the weight side by side, for several it packs the
    weight first. But a vector times a matrix that is worked out on the way becomes a loop whose sums it may reorder,
    and so vectorise: here ones times the products of each row of the weight, read once from end to end, with all rows
    of x. It stands in a branch, as XLA would otherwise work out x for every output too; the other branch is for rows
    that all begin with NaN, of which every output is NaN.
    """
    outputs, inputs = weight.shape
    rows, width = x.reshape(-1, inputs), _piece(inputs)

    def sums(rows: jax.Array, weight: jax.Array) -> jax.Array:
        weight = weight.astype(jnp.float32).reshape(outputs, 1, -1, width)
        products = weight * rows.astype(jnp.float32).reshape(1, len(rows), -1, width)
        return (jnp.ones(width) @ products.reshape(-1, width).T).reshape(outputs, len(rows), -1).sum(-1).T

    def no_numbers(rows: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.full((len(rows), outputs), jnp.nan, jnp.float32)

    y = jax.lax.cond(jnp.isnan(rows[:, 0]).all(), no_numbers, sums, rows, weight)
    return y.reshape(*x.shape[:-1], outputs)


def _piece(width: int) -> int:
    """How many products are summed in one go, a divisor of the width.

    LLVM makes one chain of up to 512, in which each sum waits for the one before, so that these had better be cut; of
    more it makes a loop with four chains.
    """
    piece = math.gcd(width, 128 if width <= 512 else 1024)
    return width if 512 < width <= LONGEST_PIECE or piece < 64 else piece


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
