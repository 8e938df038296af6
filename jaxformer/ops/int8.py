"""Products with weights of 8 bits, a quarter of what float32 reads from memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 127


class Quantized(NamedTuple):
    """Numbers as integers times a step.

    Attributes:
        values: The integers, int8 [..., n].
        steps: Step of each vector, float32 [...].
    """

    values: jax.Array
    steps: jax.Array


def quantize(x: jax.Array) -> Quantized:
    """Return the vectors of x [..., n] as integers of 8 bits, and the step of each.

    The largest number of a vector is 127 steps.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1)
    steps = jnp.where(largest == 0, 1.0, largest / LARGEST)
    return Quantized(jnp.round(x / steps[..., None]).astype(jnp.int8), steps)


@jax.custom_vjp
def int8_matmul(x: jax.Array, weight: Quantized) -> jax.Array:
    """Return activations x [..., I] times the transpose of a weight [O, I]: float32 [..., O].

    Each row of activations is quantized too, and 8-bit products are summed in 32 bits, exactly: only the rounding of
    the two factors is lost (Dettmers et al. 2022, section 2.1). The gradient of x passes the rounding of x unchanged,
    as a straight-through estimate (Bengio et al. 2013); the weight has none.
    """
    rows = quantize(x.reshape(-1, x.shape[-1]))  # values [R, I], steps [R]
    values = rows.values
    if len(values) == 1:  # XLA has a fast product for two rows and more on CPUs, and a loop for one: 15 times slower
        values = jnp.concatenate([values, jnp.zeros_like(values)])
    sums = jax.lax.dot_general(values, weight.values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    product = sums[: len(rows.values)].astype(jnp.float32) * rows.steps[:, None] * weight.steps[None]
    return product.reshape(*x.shape[:-1], -1)  # [..., O]


def _forward(x: jax.Array, weight: Quantized) -> tuple[jax.Array, tuple[Quantized, jax.Array]]:
    return int8_matmul(x, weight), (weight, jnp.zeros((), x.dtype))


def _backward(kept: tuple[Quantized, jax.Array], d_y: jax.Array) -> tuple[jax.Array, Quantized]:
    """Return the gradient of x. Only the 8 bits are kept for it: the dense weight lives as long as this product."""
    weight, typed = kept
    rows = d_y.reshape(-1, d_y.shape[-1]) * weight.steps[None]  # [R, O]
    d_x = (rows @ weight.values.astype(d_y.dtype)).reshape(*d_y.shape[:-1], -1)  # [..., I]
    nothing: Any = np.zeros(weight.values.shape, jax.dtypes.float0)  # as jax wants it of integers
    return d_x.astype(typed.dtype), Quantized(nothing, jnp.zeros_like(weight.steps))


int8_matmul.defvjp(_forward, _backward)
