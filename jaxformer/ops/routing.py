"""Routers: from a score per expert to the few experts that a token is sent to, and how much each of them says."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Choice(NamedTuple):
    """The chosen experts of each token, best first: which, integers [R, k], and their weights, float32 [R, k]."""

    experts: jax.Array
    weights: jax.Array


def softmax_router(logits: jax.Array, chosen: int, *, renormalise: bool = True) -> Choice:
    """The `chosen` experts k with the largest softmax of logits [R, E]; their weights are these probabilities.

    renormalise: made to sum to one, as in Mixtral. That is the softmax of the k chosen logits alone, so the router that
    chooses first and takes the softmax then, as in gpt-oss, is this one too. (Shazeer et al. 2017, equations 3 to 5.)
    """
    logits = logits.astype(jnp.float32)
    best, experts = jax.lax.top_k(logits, chosen)
    if renormalise:
        return Choice(experts, jax.nn.softmax(best, axis=-1))
    return Choice(experts, jnp.exp(best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)))
