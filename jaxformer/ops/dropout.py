"""Dropout (section 5.4)."""

import jax
import jax.numpy as jnp

from jaxformer.errors import InputError

_LEVELS = 1 << 16


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """`x` with each entry set to 0 with probability `rate` and the others divided by the probability of staying.

    The division keeps the expected value, so that nothing changes at evaluation: `key=None` or `rate=0` returns `x` itself.
    Sixteen random bits per entry decide, half the random numbers that a uniform float needs; the rate is rounded to a
    multiple of 1/65536 and the division uses the rounded rate, so that the expectation stays exact.

    Raises InputError unless 0 <= rate < 1.
    """
    if not 0.0 <= rate < 1.0:
        raise InputError(f"a dropout rate must be at least 0 and below 1, not {rate}")
    dropped_levels = min(round(rate * _LEVELS), _LEVELS - 1)
    if key is None or dropped_levels == 0:
        return x
    kept = jax.random.bits(key, x.shape, jnp.uint16) >= dropped_levels
    return jnp.where(kept, x * (_LEVELS / (_LEVELS - dropped_levels)), 0)
