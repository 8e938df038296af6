"""Rotary positions as a configuration describes them."""

import jax
import jax.numpy as jnp

from jaxformer.config import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling
from jaxformer.errors import InputError
from jaxformer.ops import (
    apply_rope,
    dynamic_ntk_frequencies,
    linear_frequencies,
    llama3_frequencies,
    longrope_frequencies,
    rope_cos_sin,
    rotary_frequencies,
    yarn_frequencies,
)


def rotate_heads(heads: jax.Array, position_ids: jax.Array | None, rope: Rope | None) -> jax.Array:
    """Return queries or keys [B, T, N, H] rotated by their positions, integers [B|1, T]; as they are without `rope`.

    Dynamic and LongRoPE scaling look at the longest position of the call, all others at each position alone. Raises
    InputError where rotary positions are not given.
    """
    if rope is None:
        return heads
    if position_ids is None:
        raise InputError("rotary positions need position_ids")
    frequencies, attention_factor = frequencies_and_factor(rope, rope.width or heads.shape[-1], position_ids)
    return apply_rope(heads, rope_cos_sin(position_ids, frequencies, attention_factor), layout=rope.layout)


def frequencies_and_factor(rope: Rope, width: int, position_ids: jax.Array) -> tuple[jax.Array, float]:
    """Return radians per position for each pair [R/2], and the factor on cosines and sines."""
    plain = rotary_frequencies(width, rope.base)
    match rope.scaling:
        case None:
            return plain, 1.0
        case LinearScaling(factor):
            return jnp.asarray(linear_frequencies(plain, factor)), 1.0
        case DynamicScaling(factor, length):
            longest = jnp.max(position_ids) + 1
            stretched = dynamic_ntk_frequencies(width, rope.base, factor=factor, length=length, longest=longest)
            return jnp.where(longest > length, stretched, plain), 1.0
        case Llama3Scaling(factor, low, high, length):
            return jnp.asarray(llama3_frequencies(plain, factor=factor, low=low, high=high, length=length)), 1.0
        case YarnScaling() as yarn:
            slowed = yarn_frequencies(
                width,
                rope.base,
                factor=yarn.factor,
                length=yarn.length,
                beta_fast=yarn.beta_fast,
                beta_slow=yarn.beta_slow,
                truncate=yarn.truncate,
            )
            return jnp.asarray(slowed), yarn.attention_factor
        case LongRopeScaling(short, long, length, attention_factor):
            is_long = jnp.max(position_ids) + 1 > length
            far, near = (longrope_frequencies(width, rope.base, factors) for factors in (long, short))
            return jnp.where(is_long, far, near), attention_factor
