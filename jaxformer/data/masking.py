"""Masked tokens, which an encoder is trained to find again (Devlin et al. 2019, BERT, section 3.1, task 1)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxformer.data.pipeline import IGNORED

MASKED, RANDOM = 0.8, 0.1  # shares of the chosen tokens; the others stay as they are


def mask_tokens(
    key: jax.Array, tokens: jax.Array, *, mask_id: int, vocab_size: int, special: Sequence[int], share: float
) -> tuple[jax.Array, jax.Array]:
    """Return what a model reads and what it is to find: inputs and labels, both int32 [B, T].

    Of the chosen tokens, 80 % become the mask token, 10 % any token, and 10 % stay. Labels are -100 elsewhere.

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
