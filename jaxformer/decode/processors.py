"""Processors of scores: each is a pure function (scores [R, V], context) -> scores [R, V].

Greedy decoding and sampling hand them raw logits, beam search log-probabilities (so a repetition penalty there always
multiplies). All sequences have one length, and prompts count as part of them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.decode.plan import Context


def token_mask(tokens: jax.Array, chosen: jax.Array, vocabulary: int) -> jax.Array:
    """Which tokens of the vocabulary are among the `chosen` ones of each row: boolean [R, V] from [R, L]."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    columns = jnp.where(chosen, tokens, vocabulary)
    return jnp.zeros((tokens.shape[0], vocabulary), bool).at[rows, columns].set(True, mode="drop")


def penalize_repetition(scores: jax.Array, context: Context) -> jax.Array:
    """Scores of the tokens already there made worse: divided by the penalty, or multiplied where negative.

    Keskar et al. 2019, section 4.1. Left padding does not count as there, a start token does.
    """
    plan, tokens, length = context
    R, L = tokens.shape
    start = jnp.repeat(plan.prompt_start, R // plan.prompt_start.shape[0])
    slots = jnp.arange(L)[None]
    seen = token_mask(tokens, (slots >= start[:, None]) & (slots < length), scores.shape[1])
    penalty = plan.repetition_penalty
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def ban_repeated_ngrams(scores: jax.Array, context: Context) -> jax.Array:
    """Scores without the tokens that would complete an n-gram for the second time; left padding counts as tokens."""
    plan, tokens, length = context
    slots = jnp.arange(tokens.shape[1])[None]

    def also_matches(back: jax.Array, matches: jax.Array) -> jax.Array:
        recent = lax.dynamic_slice_in_dim(tokens, length - back, 1, axis=1)
        return matches & (jnp.roll(tokens, back, axis=1) == recent)

    ends = jnp.broadcast_to((slots >= plan.ngram_size - 1) & (slots < length), tokens.shape)
    ends = lax.fori_loop(1, plan.ngram_size, also_matches, ends)
    return jnp.where(token_mask(tokens, ends, scores.shape[1]), -jnp.inf, scores)


def require_min_length(scores: jax.Array, context: Context) -> jax.Array:
    """Scores without the EOS tokens while the sequence is shorter than its least length."""
    plan = context.plan
    allowed = jnp.where(context.length < plan.min_length, -jnp.inf, scores[:, plan.eos])
    return scores.at[:, plan.eos].set(allowed)


def force_bos(scores: jax.Array, context: Context) -> jax.Array:
    """0 for the forced BOS token and -inf for any other, where it is to be the second token; else the scores."""
    return only(scores, context.plan.forced_bos[None], context.length == 1)


def force_eos(scores: jax.Array, context: Context) -> jax.Array:
    """0 for the forced EOS tokens and -inf for any other at the last position; else the scores."""
    return only(scores, context.plan.forced_eos, context.length == context.plan.max_length - 1)


def only(scores: jax.Array, ids: jax.Array, condition: jax.Array) -> jax.Array:
    """0 for the tokens `ids` and -inf for any other if the condition holds, else the scores."""
    return jnp.where(condition, jnp.full_like(scores, -jnp.inf).at[:, ids].set(0.0), scores)
