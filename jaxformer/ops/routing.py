"""Routers: from a score per expert to the few experts that a token is sent to, and how much each of them says.

Groups are runs of neighbouring experts, usually those of one device. A token that may go to experts of a few groups
only is sent to few devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class TopK(NamedTuple):
    """The chosen experts of each token, best first.

    Attributes:
        experts: Numbers of the experts, integers [R, k].
        weights: Their weights, float32 [R, k].
    """

    experts: jax.Array
    weights: jax.Array


class Routing(NamedTuple):
    """Routing of tokens [...] to experts.

    Attributes:
        logits: The router's scores, float32 [..., E].
        probabilities: Float32 [..., E], they sum to one.
        experts: Those chosen, integers [..., k].
    """

    logits: jax.Array
    probabilities: jax.Array
    experts: jax.Array


def softmax_router(
    logits: jax.Array,
    top_k: int,
    *,
    renormalize: bool = True,
    groups: int = 1,
    top_k_groups: int = 1,
    scale: float = 1.0,
) -> TopK:
    """Choose the experts with the largest softmax of logits; their weights are these probabilities * scale.

    Args:
        logits: Scores [R, E].
        top_k: Number of experts k of a token.
        renormalize: Whether the weights are made to sum to one first, as in Mixtral. That is the softmax of the k
            chosen logits alone, so the router that chooses first and takes the softmax then, as in gpt-oss, is this one
            too (Shazeer et al. 2017, equations 3 to 5).
        groups: Number of groups of neighbouring experts.
        top_k_groups: Number of groups that a token may go to: those whose best expert is best (DeepSeek-AI 2024,
            DeepSeek-V2, section 2.2.2).
        scale: Factor on the weights.
    """
    logits = logits.astype(jnp.float32)
    best, experts = jax.lax.top_k(of_best_groups(logits, groups, top_k_groups, best=1), top_k)
    if renormalize:
        return TopK(experts, scale * jax.nn.softmax(best, axis=-1))
    return TopK(experts, scale * jnp.exp(best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)))


def sigmoid_router(
    logits: jax.Array,
    bias: jax.Array,
    top_k: int,
    *,
    renormalize: bool = True,
    groups: int = 1,
    top_k_groups: int = 1,
    scale: float = 1.0,
) -> TopK:
    """Choose the experts with the largest sigmoid of logits plus a bias.

    DeepSeek-AI 2024, DeepSeek-V3, section 2.1.2. The bias decides who is chosen, and is no part of the weights. It
    balances the load without a loss, and has no gradient.

    Args:
        logits: Scores [R, E].
        bias: Bias [E] of the choice.
        top_k: Number of experts k of a token.
        renormalize: Whether the weights, which are sigmoids, are made to sum to one.
        groups: Number of groups of neighbouring experts.
        top_k_groups: Number of groups that a token may go to: those whose two best experts have the largest sum.
        scale: Factor on the weights.
    """
    scores = jax.nn.sigmoid(logits.astype(jnp.float32))
    biased = jax.lax.stop_gradient(scores + bias[None])
    _, experts = jax.lax.top_k(of_best_groups(biased, groups, top_k_groups, best=2), top_k)
    weights = jnp.take_along_axis(scores, experts, axis=-1)
    if renormalize:
        weights /= jnp.sum(weights, axis=-1, keepdims=True) + 1e-20
    return TopK(experts, scale * weights)


def of_best_groups(scores: jax.Array, groups: int, kept: int, *, best: int) -> jax.Array:
    """Return the scores [R, E] of experts in the `kept` groups whose `best` experts have the largest sum.

    Other experts have -inf.
    """
    if groups == 1:
        return scores
    R, E = scores.shape
    grouped = scores.reshape(R, groups, E // groups)
    strength = jnp.sum(jax.lax.top_k(grouped, best)[0], axis=-1)  # [R, groups]
    chosen = jax.lax.top_k(strength, kept)[1]  # [R, kept]
    keeps = jnp.zeros((R, groups), bool).at[jnp.arange(R)[:, None], chosen].set(True)
    return jnp.where(keeps[..., None], grouped, -jnp.inf).reshape(R, E)
