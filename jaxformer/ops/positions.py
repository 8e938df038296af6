"""Sinusoidal positional encodings (section 3.5), and buckets of distances."""

import math
from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError

SinusoidalLayout = Literal["interleaved", "halves"]


def sinusoidal_positions(
    positions: int | jax.Array, dim: int, layout: SinusoidalLayout = "interleaved", base: float = 10000.0
) -> jax.Array:
    """Return the encoding of each position, float32 [T, D] for a length T, or [..., D] for an array of positions [...].

    Section 3.5: PE(pos, 2i) = sin(pos / base^(2i/D)), PE(pos, 2i + 1) = cos(pos / base^(2i/D)), a geometric range of
    wavelengths from 2 pi to base * 2 pi. With an odd width D there is one sine more than there are cosines. Any length
    and any position will do: the values are computed, never learned. They are computed in float64, because sin(8191.0)
    in float32 would already be wrong in the fourth digit.

    Args:
        positions: A length T, which gives the table of positions 0 .. T-1 as a constant of the program; or an array of
            integers [...], which may be traced.
        dim: Width D.
        layout: "interleaved" is the paper's order; "halves" puts all sines before all cosines, as Marian and Pegasus
            do.
        base: Ratio of the longest to the shortest wavelength.

    Raises:
        InputError: The width is below 1, the length negative, positions are not integers or the layout is unknown.
    """
    if dim < 1:
        raise InputError(f"sinusoidal positions need a width of at least 1, not {dim}")
    if layout not in ("interleaved", "halves"):
        raise InputError(f'layout must be "interleaved" or "halves", not {layout!r}')
    if isinstance(positions, int):
        if positions < 0:
            raise InputError(f"the number of positions must not be negative, not {positions}")
        return jnp.asarray(_sinusoids(np, np.arange(positions), dim, layout, base), jnp.float32)
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise InputError(f"positions must be integers, not {positions.dtype}")
    with jax.enable_x64(True):
        return jnp.asarray(_sinusoids(jnp, positions, dim, layout, base), jnp.float32)


def distance_buckets(
    distances: jax.Array, *, buckets: int = 32, max_distance: int = 128, causal: bool = False
) -> jax.Array:
    """Return the bucket of each distance, integers in 0 .. buckets - 1.

    Raffel et al. (2020), section 2.1: half of the buckets are for one near distance each, the others share the range up
    to `max_distance` in logarithmic steps, and the last has all that is beyond.

    Args:
        distances: Key position - query position, integers [...].
        buckets: Number of buckets.
        max_distance: Distance from which all share a bucket.
        causal: Whether keys after the query, which are not seen, share bucket 0, the query's own. Otherwise keys before
            and after it have half of the buckets each.
    """
    if causal:
        start, far = 0, jnp.maximum(-distances, 0)
    else:
        buckets //= 2
        start, far = jnp.where(distances > 0, buckets, 0), jnp.abs(distances)
    near = buckets // 2
    # Distances below `near` have buckets of their own: 1 keeps their unused logarithms finite.
    steps = jnp.log(jnp.maximum(far, 1).astype(jnp.float32) / near) / math.log(max_distance / near) * (buckets - near)
    shared = jnp.minimum(near + steps.astype(jnp.int32), buckets - 1)
    return start + jnp.where(far < near, far, shared)


def alibi_slopes(heads: int) -> np.ndarray:
    """Return by how much the score of each head falls per position of distance, float32 [N].

    Press et al. (2022), section 3: 2^(-8 k / N) for head k of N, a power of two; of any other number the slopes of the
    next smaller power, then every other one of the next larger power.

    Args:
        heads: Number of heads N.
    """
    power = 2 ** int(math.log2(heads))
    smaller, larger = (2.0 ** (-8 * np.arange(1, size + 1) / size) for size in (power, 2 * power))
    return np.concatenate([smaller, larger[::2]])[:heads].astype(np.float32)


def _sinusoids(
    xp: ModuleType, positions: np.ndarray | jax.Array, dim: int, layout: SinusoidalLayout, base: float
) -> np.ndarray | jax.Array:
    """Return sines and cosines in float64, by NumPy or jax.numpy (`xp`)."""
    wavelengths = np.power(base, np.arange(0, dim, 2) / dim)[None]
    angles = positions.astype(np.float64).reshape(-1, 1) / wavelengths  # n positions: [n, (D + 1) // 2]
    sines, cosines = xp.sin(angles), xp.cos(angles)
    if layout == "halves":
        encoding = xp.concatenate([sines, cosines], axis=-1)  # [n, D or D + 1]
    else:
        encoding = xp.stack([sines, cosines], axis=-1).reshape(angles.shape[0], -1)  # [n, D or D + 1]
    # For an odd width the last cosine, in either layout the last column, is left over.
    return encoding[:, :dim].reshape(*positions.shape, dim)  # [..., D]
