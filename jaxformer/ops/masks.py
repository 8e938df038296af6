"""Which keys a query may see. Boolean, True = visible; combined with `&`."""

import jax
import jax.numpy as jnp

from jaxformer.errors import InputError


def causal_mask(length: int) -> jax.Array:
    """Which keys each query may see: itself and what came before. Boolean [T, T], True = visible.

    Section 3.2.3: a position may depend only on the known outputs before it. For length 5 (rows are queries):
        1 0 0 0 0
        1 1 0 0 0
        1 1 1 0 0
        1 1 1 1 0
        1 1 1 1 1

    Raises InputError for a negative length.
    """
    if length < 0:
        raise InputError(f"the length of a causal mask must not be negative, not {length}")
    positions = jnp.arange(length)
    return window_mask(positions[None], positions, None, 0)[0]


def padding_mask(lengths: jax.Array, length: int) -> jax.Array:
    """Which positions hold real tokens, from the number of tokens in each row. Boolean [B, S], True = real.

    For lengths [3, 5] and length 5:
        1 1 1 0 0
        1 1 1 1 1

    Every query of a row sees the same keys, so attention takes this as `mask=padding_mask(...)[:, None, None, :]`
    [B, 1, 1, S]. Causality stays separate, `causal=True`; the two meet only where the scores are masked. Together,
    for the first row (rows are queries):
        1 0 0 0 0
        1 1 0 0 0
        1 1 1 0 0
        1 1 1 0 0
        1 1 1 0 0

    Written out it is `causal_mask(5)[None, None] & padding_mask(lengths, 5)[:, None, None, :]` [B, 1, T, S].

    Raises InputError unless lengths is an integer vector.
    """
    if lengths.ndim != 1 or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InputError(f"lengths must be an integer vector [B], not {lengths.dtype} {list(lengths.shape)}")
    return jnp.arange(length)[None] < lengths[:, None]


def window_mask(query_positions: jax.Array, key_positions: jax.Array, left: int | None, right: int | None) -> jax.Array:
    """Which keys lie within `left` positions before and `right` positions after each query. Boolean [B, T, S].

    query_positions [B, T] (B may be 1), key_positions [S]. None leaves a side open; right = 0 is causality. For five
    queries and keys, left = 1 and right = 2:
        1 1 1 0 0
        1 1 1 1 0
        0 1 1 1 1
        0 0 1 1 1
        0 0 0 1 1
    """
    distance = key_positions[None, None] - query_positions[:, :, None]
    visible = jnp.ones(distance.shape, bool)
    if left is not None:
        visible &= distance >= -left
    if right is not None:
        visible &= distance <= right
    return visible
