"""Processors of scores: each is a pure function (scores [R, V], context) -> scores [R, V].

Greedy decoding and sampling hand them raw logits, beam search log-probabilities (so a repetition penalty there always
multiplies). All sequences have one length, and prompts count as part of them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.generation.plan import Context, Phrases


def token_mask(tokens: jax.Array, chosen: jax.Array, vocabulary: int) -> jax.Array:
    """Which tokens of the vocabulary are among the `chosen` ones of each row: boolean [R, V] from [R, L]."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    columns = jnp.where(chosen, tokens, vocabulary)
    return jnp.zeros((tokens.shape[0], vocabulary), bool).at[rows, columns].set(True, mode="drop")


def add_sequence_bias(scores: jax.Array, context: Context) -> jax.Array:
    """Scores with a bias on each token that completes one of the given sequences."""
    return scores + bias_of(context.plan.biased, scores, context)


def ban_words(scores: jax.Array, context: Context) -> jax.Array:
    """Scores without the tokens that complete one of the forbidden sequences."""
    return scores + bias_of(context.plan.banned, scores, context)


def bias_of(phrases: Phrases, scores: jax.Array, context: Context) -> jax.Array:
    """What completing one of the phrases [n, m] adds to the scores [R, V]."""
    tokens, length = context.tokens, context.length
    m = phrases.tokens.shape[1]
    places = jnp.arange(m)[None]
    recent = jnp.take(tokens, length - m + 1 + jnp.arange(m - 1), axis=1, mode="clip")  # [R, m-1]
    required = (places[:, :-1] >= m - phrases.lengths[:, None])[None]  # [1, n, m-1]
    equal = recent[:, None] == phrases.tokens[None, :, :-1]
    possible = (phrases.lengths > 0) & (phrases.lengths - 1 <= length)
    completed = jnp.all(equal | ~required, axis=-1) & possible[None]
    bias = jnp.where(completed, phrases.bias[None], 0.0)
    return jnp.zeros_like(scores).at[:, phrases.tokens[:, -1]].add(bias)


def penalize_repetition(scores: jax.Array, context: Context) -> jax.Array:
    """Scores of the tokens already there made worse: divided by the penalty, or multiplied where negative.

    Keskar et al. 2019, section 4.1. Left padding does not count as there, a start token does.
    """
    plan, tokens, length = context.plan, context.tokens, context.length
    R, L = tokens.shape
    start = jnp.repeat(plan.prompt_start, R // plan.prompt_start.shape[0])
    slots = jnp.arange(L)[None]
    seen = token_mask(tokens, (slots >= start[:, None]) & (slots < length), scores.shape[1])
    return penalized(scores, seen, plan.repetition_penalty)


def penalize_source(scores: jax.Array, context: Context) -> jax.Array:
    """Scores of the source's tokens made better, for a penalty above 1: an inverse repetition penalty."""
    source = source_rows(context)
    seen = token_mask(source, source >= 0, scores.shape[1])
    return penalized(scores, seen, 1 / context.plan.source_penalty)


def penalized(scores: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """The scores of tokens that were seen, [R, V], divided by a penalty, or multiplied where negative."""
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def source_rows(context: Context) -> jax.Array:
    """The source of each row of the search: int32 [R, S], -1 where there is none."""
    source = context.plan.source
    return jnp.repeat(source, context.tokens.shape[0] // source.shape[0], axis=0)


def ban_repeated_ngrams(scores: jax.Array, context: Context) -> jax.Array:
    """Scores without the tokens that would complete an n-gram for the second time; left padding counts as tokens."""
    size, length = context.plan.ngram_size, context.length
    slots = jnp.arange(context.tokens.shape[1])[None]
    ends = (slots >= size - 1) & (slots < length)
    return without_ngrams(scores, context, context.tokens, ends, size)


def ban_source_ngrams(scores: jax.Array, context: Context) -> jax.Array:
    """Scores without the tokens that would complete an n-gram of the source."""
    size, source = context.plan.source_ngram_size, source_rows(context)
    ends = (jnp.arange(source.shape[1])[None] >= size - 1) & (source >= 0)
    return without_ngrams(scores, context, source, ends, size)


def without_ngrams(scores: jax.Array, context: Context, text: jax.Array, ends: jax.Array, size: jax.Array) -> jax.Array:
    """Scores without tokens of `text` [R, S], at its places `ends` [R|1, S], behind what the sequences end in there."""
    tokens, length = context.tokens, context.length

    def also_matches(back: jax.Array, matches: jax.Array) -> jax.Array:
        recent = lax.dynamic_slice_in_dim(tokens, length - back, 1, axis=1)
        return matches & (jnp.roll(text, back, axis=1) == recent) & (back <= length)

    matches = lax.fori_loop(1, size, also_matches, jnp.broadcast_to(ends, text.shape))
    return jnp.where(token_mask(text, matches, scores.shape[1]), -jnp.inf, scores)


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


def remove_invalid(scores: jax.Array, context: Context) -> jax.Array:
    """Scores with 0 for NaN, and the largest and least finite number for the infinities."""
    return jnp.nan_to_num(scores, nan=0.0)


def raise_eos(scores: jax.Array, context: Context) -> jax.Array:
    """Scores with the EOS tokens' raised by |score| (factor^k - 1), k tokens after a start; nothing before."""
    start, factor = context.plan.decay
    after = context.length - context.plan.prompt_length - start
    eos = scores[:, context.plan.eos]
    rise = jnp.abs(eos) * (factor ** jnp.maximum(after, 0).astype(jnp.float32) - 1)
    raised = eos + jnp.where(jnp.isfinite(eos), rise, 0.0)
    return jnp.where(after > 0, scores.at[:, context.plan.eos].set(raised), scores)


def suppress(scores: jax.Array, context: Context) -> jax.Array:
    """Scores without some tokens."""
    return scores.at[:, context.plan.suppressed].set(-jnp.inf, mode="drop")


def suppress_at_begin(scores: jax.Array, context: Context) -> jax.Array:
    """Scores without some tokens, where the first token is chosen."""
    without = scores.at[:, context.plan.begin_suppressed].set(-jnp.inf, mode="drop")
    return jnp.where(context.length == context.plan.begin, without, scores)


def keep_to_grammar(scores: jax.Array, context: Context) -> jax.Array:
    """Scores without the tokens that the grammar does not allow behind a sequence.

    Where other processors have left none of the allowed ones, these are equal: the grammar is never left.
    """
    grammar, state = context.plan.grammar, context.marks.grammar
    assert grammar is not None, "active with a grammar alone"
    allowed = grammar.next[state][:, grammar.columns] >= 0
    some_left = jnp.any(allowed & ~jnp.isneginf(scores), axis=1, keepdims=True)
    return jnp.where(allowed, jnp.where(some_left, scores, 0.0), -jnp.inf)


def renormalize(scores: jax.Array, context: Context) -> jax.Array:
    """Scores as log-probabilities: log_softmax."""
    return jax.nn.log_softmax(scores)


def only(scores: jax.Array, ids: jax.Array, condition: jax.Array) -> jax.Array:
    """0 for the tokens `ids` and -inf for any other if the condition holds, else the scores."""
    return jnp.where(condition, jnp.full_like(scores, -jnp.inf).at[:, ids].set(0.0), scores)
