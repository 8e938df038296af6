"""How rotary positions reach beyond the length that a model was trained on: functions from frequencies to slower ones.

All but the last are computed eagerly in float32, under `jax.jit` too, as `rotary_frequencies` is and for its reason.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def divide_frequencies(frequencies: jax.Array, factors: float | Sequence[float]) -> jax.Array:
    """Frequencies [R/2] divided by one factor (Chen et al. 2023) or by one for each (LongRoPE, Ding et al. 2024)."""
    with jax.ensure_compile_time_eval():
        return frequencies / np.asarray(factors, np.float32)


def slow_long_waves(frequencies: jax.Array, *, factor: float, low: float, high: float, length: int) -> jax.Array:
    """Frequencies [R/2] as Llama 3.1 has them: long waves are slowed down, short ones stay.

    They are divided by `factor` where a wave fits less than `low` times into `length`, unchanged where it fits more
    than `high` times, and in between a mixture of both, linear in how often it fits.
    """
    with jax.ensure_compile_time_eval():
        wavelengths = 2 * math.pi / frequencies
        fast = (length / wavelengths - low) / (high - low)
        mixed = (1 - fast) * (frequencies / factor) + fast * frequencies
        outer = jnp.where(wavelengths > length / low, frequencies / factor, frequencies)
        between = (wavelengths <= length / low) & (wavelengths >= length / high)
        return jnp.where(between, mixed, outer)


def slow_by_ramp(
    frequencies: jax.Array,
    *,
    base: float,
    factor: float,
    length: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
) -> jax.Array:
    """Frequencies [R/2] as YaRN has them (Peng et al. 2023, section 3.2): fast pairs as they are, slow ones / factor.

    Between the pair that turns `beta_fast` times in `length` and the one that turns `beta_slow` times, both are mixed,
    linearly in the number of the pair. truncate: these two ends are rounded outwards to whole pairs.
    """
    width = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        return width * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    steepness = (high - low) or 0.001  # a step, where there is no room for a ramp
    with jax.ensure_compile_time_eval():
        fast = 1 - jnp.clip((jnp.arange(width // 2, dtype=jnp.float32) - low) / steepness, 0, 1)
        # As 1 / (factor * wave), the order in which PyTorch rounds.
        slowed = 1 / (factor * (1 / frequencies))
        return slowed * (1 - fast) + frequencies * fast


def frequencies_of_longer_base(width: int, base: float, *, factor: float, length: int, longest: jax.Array) -> jax.Array:
    """Frequencies [R/2] of a base that grows once the `longest` sequence, a traced integer, is beyond `length`.

    The base is multiplied by (factor n / length - (factor - 1))^(R / (R - 2)) with n = max(longest, length), so that
    the slowest pair is slowed down by that bracket and the fastest not at all.
    """
    stretch = factor * jnp.maximum(longest, length).astype(jnp.float32) / length - (factor - 1)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return 1 / (base * stretch ** (width / (width - 2))) ** exponents
