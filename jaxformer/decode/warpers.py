"""Warpers, the processors of sampling: temperature and truncations.

None sorts the vocabulary. A truncation keeps what lies above a threshold, which nearly always is one of the few largest
scores. Where it is not, it is found by bisection: 32 halvings find any float32, for the order of floats is the order of
integers that their bits spell.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxformer.decode.plan import Context

LOWEST, HIGHEST = -0x7F800001, 0x7F800000  # the integers of -inf and +inf
FEW = 256  # scores, which are looked at first: to pick them takes as long as four to eight halvings
BLOCK = 128  # tokens


def largest(holds: Callable[[jax.Array], jax.Array], low: int, high: int, rows: int) -> jax.Array:
    """The largest integer from `low` to `high` for which `holds` is true, for each row: int32 [R, 1].

    holds: [R, 1] integers -> [R, 1] booleans; true at `low`, and once false it stays false.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        accepted = holds(middle)
        return jnp.where(accepted, middle, low), jnp.where(accepted, high, middle - 1)

    bounds = (jnp.full((rows, 1), low, jnp.int32), jnp.full((rows, 1), high, jnp.int32))
    return lax.fori_loop(0, (high - low).bit_length(), halve, bounds)[0]


def as_float(order: jax.Array) -> jax.Array:
    """The float32 that stands at place `order` (int32) in the order of floats, 0 being zero."""
    return lax.bitcast_convert_type(jnp.where(order < 0, order ^ np.int32(0x7FFFFFFF), order), jnp.float32)


def largest_float(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The largest float32 for which `holds` is true, for each row: [R, 1]; `holds` as in `largest`."""
    return as_float(largest(lambda order: holds(as_float(order)), LOWEST, HIGHEST, rows))


def kth_largest(scores: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest score of each row [R, V], equal scores counted apiece: [R, 1]. k: a number for all rows."""
    R, V = scores.shape
    k, few = jnp.minimum(k, V), min(FEW, V)
    ways = (
        lambda: jnp.max(scores, axis=1, keepdims=True),
        lambda: lax.dynamic_slice_in_dim(lax.top_k(scores, few)[0], k - 1, 1, axis=1),
        lambda: largest_float(lambda value: jnp.sum(scores >= value, axis=1, keepdims=True) >= k, R),
    )
    return lax.switch((k > 1).astype(jnp.int32) + (k > few), ways)


def highest_above(scores: jax.Array, weights: jax.Array, limit: jax.Array) -> jax.Array:
    """The highest value, for each row, below which scores [R, V] weigh at most `limit` together: [R, 1].

    weights: [R, V], not negative. Where all weigh no more, it may be any value from the largest score on.
    """
    R, V = scores.shape

    def weight_where(chosen: jax.Array) -> jax.Array:
        return jnp.sum(weights, axis=1, keepdims=True, where=chosen)

    best, places = lax.top_k(scores, min(FEW, V))
    border = jnp.min(best, axis=1, keepdims=True)  # its last: but for a slice of `top_k`, XLA sorts all scores
    rest = weight_where(scores <= border)

    def one_of_the_best() -> jax.Array:
        above = jnp.where(best > border, jnp.take_along_axis(weights, places, axis=1), 0.0)
        # Summed without themselves: to subtract the best, of nearly 1, again would round the small rest away.
        others = jnp.pad(above[:, 1:], ((0, 0), (0, 1)))
        below = rest + lax.cumsum(others, axis=1, reverse=True)
        return jnp.take_along_axis(best, jnp.argmax(below <= limit, axis=1, keepdims=True), axis=1)

    return lax.cond(
        jnp.all(rest <= limit),
        one_of_the_best,
        lambda: largest_float(lambda value: weight_where(scores < value) <= limit, R),
    )


def place_on_line(lengths: jax.Array, mark: jax.Array) -> jax.Array:
    """The stretch of a line on which the mark [R, 1] lies: an index, int32 [R, 1].

    The stretches are as long as `lengths` [R, V], one behind the other. First the block of the line is found, then the
    place in it: the running sum of all is never computed. A stretch of length 0 is never found.
    """
    R, V = lengths.shape
    blocks = jnp.pad(lengths, ((0, 0), (0, -V % BLOCK))).reshape(R, -1, BLOCK)
    block, before = first_beyond(jnp.sum(blocks, axis=2), mark)
    inside = jnp.take_along_axis(blocks, block[..., None], axis=1)[:, 0]
    return block * BLOCK + first_beyond(inside, mark - before)[0]


def first_beyond(lengths: jax.Array, mark: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first stretch that ends beyond the mark [R, 1], and where it begins: [R, 1] each.

    lengths: [R, n], of stretches one behind the other. Where rounding puts the mark behind them all, it is the last one
    that has a length.
    """
    ends = jnp.cumsum(lengths, axis=1)
    real = lengths > 0
    beyond = real & (ends > mark)
    last = lengths.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1, keepdims=True)
    found = jnp.where(jnp.any(beyond, axis=1, keepdims=True), jnp.argmax(beyond, axis=1, keepdims=True), last)
    return found, jnp.take_along_axis(ends - lengths, found, axis=1)


def scale_by_temperature(scores: jax.Array, context: Context) -> jax.Array:
    """Scores / temperature: above 1 flatter, below 1 steeper."""
    return scores / context.plan.temperature


def keep_top_k(scores: jax.Array, context: Context) -> jax.Array:
    """The k largest scores, and those equal to the k-th; -inf for the others."""
    return jnp.where(scores < kth_largest(scores, context.plan.top_k), -jnp.inf, scores)


def keep_top_p(scores: jax.Array, context: Context) -> jax.Array:
    """The scores of the smallest set of most probable tokens whose mass reaches top_p; -inf for the others.

    Holtzman et al. 2020, section 3.1. In ascending order (among equal scores, of their ids) the tokens fall as long as
    all that fell weigh at most 1 - top_p and enough stay.
    """
    R, V = scores.shape
    dropped, kept = context.plan.dropped_mass, context.plan.kept
    probabilities = jax.nn.softmax(scores)

    def mass_below(value: jax.Array) -> jax.Array:
        return jnp.sum(probabilities, axis=1, keepdims=True, where=scores < value)

    least = jnp.minimum(highest_above(scores, probabilities, dropped), kth_largest(scores, kept))
    below, equal = scores < least, scores == least
    # Of several that are the least to stay, as many fall as are light enough together and leave enough; never all.
    mass, weight = mass_below(least), jnp.max(jnp.where(equal, probabilities, 0.0), axis=1, keepdims=True)
    staying, several = (jnp.sum(mask, axis=1, keepdims=True) for mask in (~below, equal))
    falling = largest(lambda n: (mass + n * weight <= dropped) & (staying - n >= kept) & (n < several), 0, V, R)
    first = place_on_line(equal.astype(jnp.float32), falling.astype(jnp.float32))
    return jnp.where(below | (equal & (jnp.arange(V)[None] < first)), -jnp.inf, scores)


def keep_top_h(scores: jax.Array, context: Context) -> jax.Array:
    """The likeliest tokens, as long as their part of the entropy is at most a share `top_h` of it; -inf for the others.

    Potraghloo et al. 2025: of the 100 best tokens, whose probabilities are those among them.
    """
    best, tokens = lax.top_k(scores, min(100, scores.shape[1]))
    logs = jax.nn.log_softmax(best)
    parts = jnp.where(jnp.isneginf(logs), 0.0, -jnp.exp(logs) * logs)
    keep = jnp.cumsum(parts, axis=1) <= context.plan.top_h * jnp.sum(parts, axis=1, keepdims=True)
    keep = keep.at[:, 0].set(True)
    rows = jnp.arange(len(scores))[:, None]
    return jnp.full_like(scores, -jnp.inf).at[rows, tokens].set(jnp.where(keep, best, -jnp.inf))


def keep_min_p(scores: jax.Array, context: Context) -> jax.Array:
    """The scores of tokens at least min_p times as probable as the best one; -inf for the others.

    Nguyen et al. 2024, section 3.
    """
    probabilities = jax.nn.softmax(scores)
    return without(scores, probabilities < context.plan.min_p * jnp.max(probabilities, axis=1, keepdims=True), context)


def keep_typical(scores: jax.Array, context: Context) -> jax.Array:
    """The scores of the tokens whose surprise is nearest to the entropy, of a mass `typical_p`; -inf for the others.

    Meister et al. 2022, section 4.
    """
    logs = jax.nn.log_softmax(scores)
    probabilities = jnp.exp(logs)
    away = jnp.abs(-logs - entropy(logs))

    def is_light(radius: jax.Array) -> jax.Array:
        mass = jnp.sum(probabilities, axis=1, keepdims=True, where=away < radius)
        return mass < context.plan.typical_mass

    radius = largest_float(is_light, len(scores))
    return jnp.where(away > jnp.maximum(radius, -kth_largest(-away, context.plan.kept)), -jnp.inf, scores)


def keep_above_epsilon(scores: jax.Array, context: Context) -> jax.Array:
    """The scores of tokens at least as probable as epsilon; -inf for the others. Hewitt et al. 2022, section 4.1."""
    return without(scores, jax.nn.softmax(scores) < context.plan.epsilon, context)


def keep_above_eta(scores: jax.Array, context: Context) -> jax.Array:
    """The scores of tokens as probable as epsilon, or sqrt(epsilon) exp(-entropy) if that is less; -inf for the others.

    Hewitt et al. 2022, section 4.2.
    """
    epsilon, logs = context.plan.eta, jax.nn.log_softmax(scores)
    least = jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy(logs)))
    return without(scores, jnp.exp(logs) < least, context)


def entropy(logs: jax.Array) -> jax.Array:
    """The entropy of log-probabilities [R, V]: [R, 1], in nats."""
    return -jnp.sum(jnp.where(jnp.isneginf(logs), 0.0, jnp.exp(logs) * logs), axis=1, keepdims=True)


def without(scores: jax.Array, unlikely: jax.Array, context: Context) -> jax.Array:
    """Scores without what is unlikely, [R, V], but for the few best that always stay."""
    return jnp.where(unlikely & (scores < kth_largest(scores, context.plan.kept)), -jnp.inf, scores)
