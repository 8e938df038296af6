"""Rotary positions (Su et al. 2021): queries and keys are rotated by an angle that grows with their position."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError

RotaryLayout = Literal["halves", "interleaved"]


class CosSin(NamedTuple):
    """Cosines and sines of each position's angles, times the attention factor, for R rotated dimensions.

    Attributes:
        cosines: Float32 [B|1, T, R/2].
        sines: Float32 [B|1, T, R/2].
    """

    cosines: jax.Array
    sines: jax.Array


def rotary_frequencies(width: int, base: float = 10000.0) -> jax.Array:
    """Return the radians per position by which each pair of dimensions turns: float32 [R/2] for a rotated width R.

    Section 3.2.2, equation 15: base^(-2i/R). Computed eagerly in float32, under `jax.jit` too, and so equal to what
    PyTorch computes: an error in the last place here is an error of 5e-4 at position 8192.

    Args:
        width: Number of dimensions R that are rotated.
        base: Ratio of the longest to the shortest wavelength; 10,000 in the paper.

    Raises:
        InputError: The width is not even.
    """
    with jax.ensure_compile_time_eval():
        return jnp.asarray(1 / rotary_waves(width, base))


def rotary_waves(width: int, base: float) -> np.ndarray:
    """Return positions per radian for each pair, float32 [R/2]: the inverses of the frequencies."""
    if width < 2 or width % 2:
        raise InputError(f"rotary positions turn pairs of dimensions: the width must be even, not {width}")
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)  # XLA would multiply by 1 / width
    with jax.ensure_compile_time_eval():
        return np.asarray(base ** jnp.asarray(exponents))  # NumPy's power is up to two units in the last place off


def rope_cos_sin(position_ids: jax.Array, frequencies: jax.Array, attention_factor: float = 1.0) -> CosSin:
    """Return the cosine and sine of the angle of every position and pair.

    Args:
        position_ids: Integers [B|1, T].
        frequencies: Radians per position, float32 [R/2].
        attention_factor: Factor on both.
    """
    angles = position_ids[..., None].astype(jnp.float32) * frequencies[None, None]
    return CosSin(jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor)


def apply_rope(x: jax.Array, by: CosSin, *, layout: RotaryLayout = "halves") -> jax.Array:
    """Rotate the first R dimensions of queries or keys; the others stay as they are.

    A pair (a, b) becomes (a cos - b sin, a sin + b cos), equation 34. The score of a query and a key then depends on
    the distance between their positions alone.

    Args:
        x: Queries or keys [B, T, N, H].
        by: Cosines and sines of `rope_cos_sin`.
        layout: Which dimensions make a pair: "interleaved" 0 and 1, 2 and 3 ..., as in the paper; "halves" 0 and R/2, 1
            and R/2 + 1 ..., as Llama and most checkpoints have it.

    Raises:
        InputError: There are more angles than pairs in a head.
    """
    R, H = 2 * by.cosines.shape[-1], x.shape[-1]
    if R > H:
        raise InputError(f"{R} dimensions cannot be rotated in a head of width {H}")
    cosines, sines = (wave[:, :, None].astype(jnp.float32) for wave in by)  # [B|1, T, 1, R/2]
    rotated, rest = x[..., :R].astype(jnp.float32), x[..., R:]
    if layout == "halves":
        a, b = rotated[..., : R // 2], rotated[..., R // 2 :]
    else:
        a, b = rotated[..., ::2], rotated[..., 1::2]
    pairs = (a * cosines - b * sines, a * sines + b * cosines)
    # [B, T, N, R]
    rotated = jnp.concatenate(pairs, -1) if layout == "halves" else jnp.stack(pairs, -1).reshape(*x.shape[:-1], R)
    return jnp.concatenate([rotated.astype(x.dtype), rest], axis=-1)
