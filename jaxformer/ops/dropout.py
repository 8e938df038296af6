"""Dropout (section 5.4)."""

import jax
import jax.numpy as jnp

from jaxformer.errors import InputError

_LEVELS = 1 << 16


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Return `x` [..., D] with each entry 0 with probability `rate`, and the others divided by 1 - rate.

    The division keeps the expected value, so evaluation needs no change: `key=None` or `rate=0` returns `x` itself.
    Drawing random words is most of the cost on a CPU, so each serves two entries, sixteen bits for each (measured:
    almost twice as fast). The rate is rounded to a multiple of 1/65536 and the division uses the rounded rate, so that
    the expectation stays exact.

    Raises InputError unless 0 <= rate < 1.
    """
    if not 0.0 <= rate < 1.0:
        raise InputError(f"a dropout rate must be at least 0 and below 1, not {rate}")
    dropped_levels = min(round(rate * _LEVELS), _LEVELS - 1)
    if key is None or dropped_levels == 0:
        return x
    *rows, D = x.shape
    words = jax.random.bits(key, (*rows, -(-D // 2)), jnp.uint32)
    levels = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*rows, -1)[..., :D]  # [..., D]
    return jnp.where(levels >= dropped_levels, x * (_LEVELS / (_LEVELS - dropped_levels)), 0)
