"""Choosing among scores: the best, or at random in proportion to their exponentials."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.generation.selection import few_largest, place_on_line

NOTHING = -1  # what is drawn where all scores are -inf, or one is NaN


def row_keys(seeds: jax.Array, copies: int, step: jax.Array) -> jax.Array:
    """A random key for each of `copies` rows per input at a step: [B * copies] from seeds [B, 2].

    Each depends on nothing but its input's pair of numbers and its place among the copies: what a row draws does not
    depend on the rows beside it.
    """

    def key(seed: jax.Array, copy: jax.Array) -> jax.Array:
        folded = jax.random.fold_in(jax.random.key(seed[0]), seed[1])
        return jax.random.fold_in(jax.random.fold_in(folded, copy), step)

    of_copies = jax.vmap(key, in_axes=(None, 0))
    return jax.vmap(of_copies, in_axes=(0, None))(seeds, jnp.arange(copies)).reshape(-1)


def best_token(scores: jax.Array) -> jax.Array:
    """The token of the largest score, the lowest id among equals: int32 [R] from [R, V]."""
    return few_largest(scores, 1, first_of_equals=True)[1][:, 0]


def draw_token(scores: jax.Array, keys: jax.Array) -> jax.Array:
    """A token drawn from softmax(scores): int32 [R] from [R, V] and a key for each row.

    By inversion: one uniform number is laid on the line of cumulative probabilities, and the token that it falls on is
    taken. Tokens of probability 0 are never drawn; NOTHING is, where no token has a probability.
    """
    weights = jnp.exp(scores - few_largest(scores, 1)[0])
    total = jnp.sum(weights, axis=1, keepdims=True)
    mark = jax.vmap(jax.random.uniform)(keys)[:, None] * total
    return jnp.where(total > 0, place_on_line(weights, mark), NOTHING)[:, 0]


def best_candidates(scores: jax.Array, count: int) -> jax.Array:
    """The `count` largest of the scores [B, W, V], best first: [B, count] in W*V.

    Among equals the lowest index comes first, but for -inf. They are looked for within each beam and then among those:
    the same candidates as from all at once, found faster.
    """
    B, W, V = scores.shape
    values, tokens = few_largest(scores.reshape(B * W, V), min(count, V), first_of_equals=True)
    flat = tokens.reshape(B, W, -1) + V * jnp.arange(W)[None, :, None]
    merged = lax.top_k(values.reshape(B, -1), count)[1]
    return jnp.take_along_axis(flat.reshape(B, -1), merged, axis=1)


def draw_candidates(scores: jax.Array, count: int, keys: jax.Array) -> jax.Array:
    """`count` candidates drawn without replacement from softmax over [W, V], in the order drawn: [B, count] in W*V.

    The largest of scores plus Gumbel noise are such a draw (Kool et al. 2019, section 2.3).
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:]))(keys)
    return best_candidates(scores + noise, count)
