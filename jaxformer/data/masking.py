"""Tokens and spans of tokens that are taken out of a text, which a model is trained to find again."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.data.pipeline import IGNORED

MASKED, RANDOM = 0.8, 0.1  # shares of the chosen tokens; the others stay as they are


def mask_tokens(
    key: jax.Array, tokens: jax.Array, *, mask_id: int, vocab_size: int, special: Sequence[int], share: float
) -> tuple[jax.Array, jax.Array]:
    """Return what a model reads and what it is to find: inputs and labels, both int32 [B, T].

    As BERT is trained (Devlin et al. 2019, section 3.1, task 1): of the chosen tokens, 80 % become the mask token, 10 %
    any token, and 10 % stay. Labels are -100 elsewhere.

    Args:
        key: A random key.
        tokens: Token ids, int32 [B, T].
        mask_id: The mask token.
        vocab_size: Tokens to draw from.
        special: Tokens that are never chosen: those that begin and end texts.
        share: Probability with which each other token is chosen; the paper has 0.15.
    """
    choose, kind, draw = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(choose, share, tokens.shape) & ~jnp.isin(tokens, jnp.array(special, tokens.dtype))
    place = jax.random.uniform(kind, tokens.shape)
    drawn = jax.random.randint(draw, tokens.shape, 0, vocab_size, tokens.dtype)
    other = jnp.where(place < MASKED, mask_id, jnp.where(place < MASKED + RANDOM, drawn, tokens))
    return jnp.where(chosen, other, tokens), jnp.where(chosen, tokens, IGNORED)


class SpanCounts(NamedTuple):
    """How much of a window is taken out.

    Attributes:
        noise: Tokens.
        spans: Spans that they make.
    """

    noise: int
    spans: int


def span_counts(length: int, density: float, mean_length: float) -> SpanCounts:
    """Return how many tokens of a window are taken out, and in how many spans: the same for every window.

    Args:
        length: Tokens of a window.
        density: Share of the tokens; the paper has 0.15.
        mean_length: Mean length of a span in tokens; the paper has 3.
    """
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean_length), 1), noise, length - noise)
    return SpanCounts(noise, spans)


def corrupt_spans(
    key: jax.Array, tokens: jax.Array, counts: SpanCounts, *, sentinels: jax.Array, end: int
) -> tuple[jax.Array, jax.Array]:
    """Return what an encoder reads and what a decoder is to write, int32 [B, S] and [B, T].

    As T5 is trained (Raffel et al. 2020, section 3.1.4): spans at random places are taken out. The encoder reads the
    others with a sentinel in the place of each span; the decoder writes each sentinel and its span. Both end with the
    end token. Windows begin with a token that stays, and end with a span.

    Args:
        key: A random key.
        tokens: Token ids, int32 [B, L].
        counts: Tokens and spans that are taken out.
        sentinels: Token ids of at least as many sentinels as spans, int32 [spans or more].
        end: The end token.
    """
    B, L = tokens.shape
    noise, spans = counts
    kept_key, noise_key = jax.random.split(key)
    kept_lengths, noise_lengths = (
        random_lengths(key, total, spans, B) for key, total in ((kept_key, L - noise), (noise_key, noise))
    )
    lengths = jnp.stack([kept_lengths, noise_lengths], axis=2).reshape(B, 2 * spans)  # kept, noise, kept, noise ...
    ends = jnp.cumsum(lengths, axis=1)
    part = (jnp.arange(L)[None, :, None] >= ends[:, None, :]).sum(axis=2)  # [B, L], from 0 to 2 spans - 1
    first = jnp.pad(part[:, 1:] != part[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    is_noise, sentinel = part % 2 == 1, sentinels[part // 2].astype(tokens.dtype)
    read = compacted(jnp.where(is_noise, sentinel, tokens), ~is_noise | first, L - noise + spans)
    written = compacted(jnp.where(is_noise, tokens, sentinel), is_noise | first, noise + spans)
    return tuple(jnp.pad(ids, ((0, 0), (0, 1)), constant_values=end) for ids in (read, written))  # pyrefly: ignore


def random_lengths(key: jax.Array, total: int, parts: int, rows: int) -> jax.Array:
    """Return lengths of at least 1 that make a total, int [rows, parts]: every division is equally likely."""
    cuts = jnp.broadcast_to(jnp.arange(total - 1) < parts - 1, (rows, total - 1))
    cuts = jax.random.permutation(key, cuts, axis=1, independent=True)
    part = jnp.pad(jnp.cumsum(cuts, axis=1), ((0, 0), (1, 0)))  # [rows, total], from 0 to parts - 1
    return (part[:, :, None] == jnp.arange(parts)[None, None]).sum(axis=1)


def compacted(ids: jax.Array, keep: jax.Array, count: int) -> jax.Array:
    """Return the kept ids of each row, [B, count], in their order; each row keeps so many."""
    order = jnp.argsort(~keep, axis=1, stable=True)
    return jnp.take_along_axis(ids, order, axis=1)[:, :count]
