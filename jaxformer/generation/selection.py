"""Thresholds, places and choices in rows of scores, none of which is sorted."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LOWEST, HIGHEST = -0x7F800001, 0x7F800000  # the integers of -inf and +inf
FEW = 256  # scores looked at first: to pick them takes as long as two halvings
DEPTH = 16  # scores in a column
BLOCK = 128  # stretches of a line
INVALID_TOKEN = -1  # what is drawn where all scores are -inf, or one is NaN


def top_k(scores: jax.Array, count: int, *, first_of_equals: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return the `count` largest of each row, best first, and where they stand: [R, count] each, of scores [R, V].

    Many scores are laid out in columns: the largest stand in the columns whose maxima are the largest. The places of
    those equal to the last may be any, unless `first_of_equals` wants the lowest, which for -inf it never does. NaN may
    be overlooked. For a count of 1 it takes a third of the time of `jnp.max` on CPUs. Never take a slice of the result,
    such as the first: of a slice of `top_k`, XLA makes a sort of all scores.
    """
    R, V = scores.shape
    columns = V // DEPTH
    if columns < 4 * count:
        return tuple(lax.top_k(scores, count))
    maxima = jnp.max(scores[:, : DEPTH * columns].reshape(R, DEPTH, columns), axis=1)  # [R, columns]
    chosen = jnp.sort(lax.top_k(maxima, count)[1], axis=1)  # [R, count]
    below = columns * jnp.arange(DEPTH, dtype=jnp.int32)[None, :, None]
    rest = jnp.broadcast_to(jnp.arange(DEPTH * columns, V, dtype=jnp.int32)[None], (R, V % DEPTH))
    # In ascending order: of equal scores, `top_k` takes the first.
    places = jnp.concatenate([(below + chosen[:, None]).reshape(R, -1), rest], axis=1)  # [R, DEPTH * count + V % DEPTH]
    values, found = lax.top_k(jnp.take_along_axis(scores, places, axis=1), count)
    places = jnp.take_along_axis(places, found, axis=1)
    if not first_of_equals:
        return values, places
    least = jnp.min(values, axis=1, keepdims=True)
    others_are_less = jnp.sum(maxima >= least, axis=1, keepdims=True) <= count
    return lax.cond(
        jnp.all(others_are_less | jnp.isneginf(least)),
        lambda: (values, places),
        lambda: tuple(lax.top_k(scores, count)),
    )


def kth_largest(scores: jax.Array, k: jax.Array) -> jax.Array:
    """Return the k-th largest score [R, 1] of each row, equal scores counted apiece.

    Args:
        scores: Float32 [R, V].
        k: A number for all rows.
    """
    R, V = scores.shape
    k, few = jnp.minimum(k, V), min(FEW, V)
    ways = (
        lambda: top_k(scores, 1)[0],
        lambda: lax.dynamic_slice_in_dim(top_k(scores, few)[0], k - 1, 1, axis=1),
        lambda: largest_float(lambda value: jnp.sum(scores >= value, axis=1, keepdims=True) >= k, R),
    )
    return lax.switch((k > 1).astype(jnp.int32) + (k > few), ways)


def largest_float(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """Return the largest float32 for which `holds` is true, for each row: [R, 1]; `holds` as in `largest`.

    Found by bisection: 32 halvings find any, for the order of floats is the order of integers that their bits spell.
    """
    return as_float(largest(lambda order: holds(as_float(order)), LOWEST, HIGHEST, rows))


def largest(holds: Callable[[jax.Array], jax.Array], low: int, high: int, rows: int) -> jax.Array:
    """Return the largest integer for which `holds` is true, for each row: int32 [R, 1].

    Args:
        holds: Function from integers [R, 1] to booleans [R, 1]; true at `low`, and once false it stays false.
        low: The least integer.
        high: The greatest integer.
        rows: Number of rows R.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        accepted = holds(middle)
        return jnp.where(accepted, middle, low), jnp.where(accepted, high, middle - 1)

    bounds = (jnp.full((rows, 1), low, jnp.int32), jnp.full((rows, 1), high, jnp.int32))
    return lax.fori_loop(0, (high - low).bit_length(), halve, bounds)[0]


def as_float(order: jax.Array) -> jax.Array:
    """Return the float32 that stands at place `order` (int32) in the order of floats, 0 being zero."""
    return lax.bitcast_convert_type(jnp.where(order < 0, order ^ np.int32(0x7FFFFFFF), order), jnp.float32)


def inverse_cdf_index(lengths: jax.Array, mark: jax.Array) -> jax.Array:
    """Return the stretch of a line on which the mark [R, 1] lies: an index, int32 [R, 1].

    The stretches are as long as `lengths` [R, V], one behind the other. First the block of the line is found, then the
    place in it: the running sum of all is never computed. A stretch of length 0 is never found.
    """
    R, V = lengths.shape
    size = min(BLOCK, V)
    whole = V - V % size
    blocks = jnp.sum(lengths[:, :whole].reshape(R, -1, size), axis=2)  # [R, whole / size]
    rest = jnp.sum(lengths[:, whole:], axis=1, keepdims=True)
    block, before = first_beyond(jnp.concatenate([blocks, rest], axis=1), mark)
    places = jnp.minimum(block * size, V - size) + jnp.arange(size)[None]
    inside = jnp.where(places < block * size, 0.0, jnp.take_along_axis(lengths, places, axis=1))
    return (places[:, :1] + first_beyond(inside, mark - before)[0]).astype(jnp.int32)


def first_beyond(lengths: jax.Array, mark: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the first stretch that ends beyond the mark, and where it begins: [R, 1] each.

    Args:
        lengths: Float32 [R, n], of stretches one behind the other.
        mark: Float32 [R, 1]. Where rounding puts it behind them all, the last stretch that has a length is returned.
    """
    ends = jnp.cumsum(lengths, axis=1)
    real = lengths > 0
    beyond = real & (ends > mark)
    last = lengths.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1, keepdims=True)
    found = jnp.where(jnp.any(beyond, axis=1, keepdims=True), jnp.argmax(beyond, axis=1, keepdims=True), last)
    return found, jnp.take_along_axis(ends - lengths, found, axis=1)


def row_keys(seeds: jax.Array, copies: int, step: jax.Array) -> jax.Array:
    """Return a random key for each of `copies` rows per input at a step: [B * copies] from seeds [B, 2].

    Each depends on nothing but its input's pair of numbers and its place among the copies: what a row draws does not
    depend on the rows beside it.
    """

    def key(seed: jax.Array, copy: jax.Array) -> jax.Array:
        folded = jax.random.fold_in(jax.random.key(seed[0]), seed[1])
        return jax.random.fold_in(jax.random.fold_in(folded, copy), step)

    of_copies = jax.vmap(key, in_axes=(None, 0))
    return jax.vmap(of_copies, in_axes=(0, None))(seeds, jnp.arange(copies)).reshape(-1)  # [B * copies]


def best_token(scores: jax.Array) -> jax.Array:
    """Return the token of the largest score, the lowest id among equals: int32 [R] from [R, V]."""
    return top_k(scores, 1, first_of_equals=True)[1][:, 0]


def draw_token(scores: jax.Array, keys: jax.Array) -> jax.Array:
    """Return a token drawn from softmax(scores): int32 [R] from [R, V] and a key for each row.

    By inversion: one uniform number is laid on the line of cumulative probabilities, and the token that it falls on is
    taken. Tokens of probability 0 are never drawn; INVALID_TOKEN is, where no token has a probability.
    """
    weights = jnp.exp(scores - top_k(scores, 1)[0])
    total = jnp.sum(weights, axis=1, keepdims=True)
    mark = jax.vmap(jax.random.uniform)(keys)[:, None] * total
    return jnp.where(total > 0, inverse_cdf_index(weights, mark), INVALID_TOKEN)[:, 0]


def best_candidates(scores: jax.Array, count: int) -> jax.Array:
    """Return the `count` largest of the scores [B, W, V], best first: [B, count] in W*V.

    Among equals the lowest index comes first, but for -inf. They are looked for within each beam and then among those:
    the same candidates as from all at once, found faster.
    """
    B, W, V = scores.shape
    values, tokens = top_k(scores.reshape(B * W, V), min(count, V), first_of_equals=True)  # [B*W, min(count, V)]
    flat = tokens.reshape(B, W, -1) + V * jnp.arange(W)[None, :, None]  # [B, W, min(count, V)]
    merged = lax.top_k(values.reshape(B, -1), count)[1]  # [B, count] in W*min(count, V)
    return jnp.take_along_axis(flat.reshape(B, -1), merged, axis=1)  # [B, count]


def draw_candidates(scores: jax.Array, count: int, keys: jax.Array) -> jax.Array:
    """Draw `count` candidates without replacement from softmax over [W, V], in the order drawn: [B, count] in W*V.

    The largest of scores plus Gumbel noise are such a draw (Kool et al. 2019, section 2.3).
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:]))(keys)
    return best_candidates(scores + noise, count)
