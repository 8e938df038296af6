"""Products of activations with weight matrices."""

import jax
import jax.numpy as jnp

from jaxformer.parallel.rules import divided

Dims = tuple[tuple[int, ...], tuple[int, ...]]


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Return activations x [..., I] times weight [I, O]: [..., O] in the type of both, summed in float32 at least.

    Numbers of 16 bits stay so up to the unit that multiplies them, in the gradients too: a processor that has such a
    unit is twice as fast then. (Gradients of 16-bit products are of reverse mode only.)
    """
    rows = flat_rows(x)
    if x.dtype.itemsize < 4:
        y = _narrow_matmul(rows, weight)
    else:
        y = jax.lax.dot_general(rows, weight, (((rows.ndim - 1,), (0,)), ((), ())))
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def flat_rows(x: jax.Array) -> jax.Array:
    """Return activations [..., I] as a matrix [R, I]; on a mesh as they are, where axes may be divided among devices.

    The gradient of a weight is then a product of two matrices. With more axes XLA copies and transposes the gradient of
    the activations for it, which takes a tenth of a training step on CPUs.
    """
    return x if x.ndim <= 2 or divided() else x.reshape(-1, x.shape[-1])


def _product(x: jax.Array, y: jax.Array, contracted: Dims) -> jax.Array:
    return jax.lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=jnp.float32).astype(x.dtype)


@jax.custom_vjp
def _narrow_matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    return _product(x, weight, ((x.ndim - 1,), (0,)))


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _narrow_matmul(x, weight), (x, weight)


def _backward(kept: tuple[jax.Array, jax.Array], d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of both. The rule of jax would widen d_y to float32 first, as the product's result was."""
    x, weight = kept
    rows = tuple(range(x.ndim - 1))
    return _product(d_y, weight, ((d_y.ndim - 1,), (1,))), _product(x, d_y, (rows, rows))


_narrow_matmul.defvjp(_forward, _backward)
