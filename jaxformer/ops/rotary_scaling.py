"""How rotary positions reach beyond the length that a model was trained on: functions from frequencies to slower ones.

All but the last compute in NumPy's float32, also under `jax.jit`, and so give what PyTorch gives to the last place: XLA
multiplies by the reciprocal where it should divide, which is 5e-4 at position 8192.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops.rotary import rotary_waves


def linear_frequencies(frequencies: jax.Array, factor: float) -> np.ndarray:
    """Return frequencies [R/2] divided by a factor, as if positions were nearer to each other (Chen et al. 2023)."""
    return np.asarray(frequencies) / np.float32(factor)


def longrope_frequencies(width: int, base: float, factors: Sequence[float]) -> np.ndarray:
    """Return frequencies [R/2] of waves that are each lengthened by a factor (LongRoPE, Ding et al. 2024)."""
    return 1 / (np.asarray(factors, np.float32) * rotary_waves(width, base))


def llama3_frequencies(frequencies: jax.Array, *, factor: float, low: float, high: float, length: int) -> np.ndarray:
    """Return frequencies [R/2] as Llama 3.1 has them: long waves are slowed down, short ones stay.

    They are divided by `factor` where a wave fits less than `low` times into `length`, unchanged where it fits more
    than `high` times, and in between a mixture of both, linear in how often it fits.
    """
    plain = np.asarray(frequencies)
    # A number over an array is the reciprocal times the number, in PyTorch.
    wavelengths = 1 / plain * np.float32(2 * math.pi)
    share = (1 / wavelengths * length - low) / (high - low)
    mixed = (1 - share) * plain / factor + share * plain
    outer = np.where(wavelengths > length / low, plain / factor, plain)
    return np.where((wavelengths <= length / low) & (wavelengths >= length / high), mixed, outer)


def yarn_frequencies(
    width: int,
    base: float,
    *,
    factor: float,
    length: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
) -> np.ndarray:
    """Return frequencies [R/2] as YaRN has them (Peng et al. 2023, section 3.2).

    Fast pairs are as they are, slow ones are divided by the factor. Between the pair that turns `beta_fast` times in
    `length` and the one that turns `beta_slow` times, both are mixed, linearly in the number of the pair.

    Args:
        width: Number R of rotated dimensions.
        base: Base of the frequencies.
        factor: How many times longer texts are than in training.
        length: Number of positions in training.
        beta_fast: Turns in `length` of the last fast pair.
        beta_slow: Turns in `length` of the first slow pair.
        truncate: Whether these two ends are rounded outwards to whole pairs.
    """

    def pair_that_turns(times: float) -> float:
        return width * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    steepness = (high - low) or 0.001  # a step, where there is no room for a ramp
    fast = 1 - np.clip((np.arange(width // 2, dtype=np.float32) - low) / steepness, 0, 1)
    waves = rotary_waves(width, base)
    return 1 / (factor * waves) * (1 - fast) + 1 / waves * fast


def dynamic_ntk_frequencies(width: int, base: float, *, factor: float, length: int, longest: jax.Array) -> jax.Array:
    """Return frequencies [R/2] of a base that grows once the `longest` sequence, a traced integer, is beyond `length`.

    The base is multiplied by (factor n / length - (factor - 1))^(R / (R - 2)) with n = max(longest, length), so that
    the slowest pair is slowed down by that bracket and the fastest not at all.
    """
    stretch = factor * jnp.maximum(longest, length).astype(jnp.float32) / length - (factor - 1)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return 1 / (base * stretch ** (width / (width - 2))) ** exponents
