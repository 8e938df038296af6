"""Warpers, the processors of sampling: temperature and truncations.

None sorts the vocabulary. A truncation keeps what lies above a threshold, which nearly always is one of the few largest
scores. Where it is not, it is found by bisection. What it drops scores -inf.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.generation import selection
from jaxformer.generation.processors import Context, logits_processor
from jaxformer.generation.selection import inverse_cdf_index, kth_largest, largest, largest_float, top_k


@logits_processor
class Temperature:
    """Divide scores by the temperature.

    Attributes:
        temperature: The divisor: above 1 scores become flatter, below 1 steeper.
    """

    temperature: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        return scores / self.temperature


@logits_processor
class TopH:
    """Keep the likeliest tokens, as long as their part of the entropy is at most a share of it.

    Potraghloo et al. 2025: of the 100 best tokens, whose probabilities are those among them.

    Attributes:
        top_h: The share of the entropy.
    """

    top_h: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        best, tokens = lax.top_k(scores, min(100, scores.shape[1]))
        logs = jax.nn.log_softmax(best)
        parts = jnp.where(jnp.isneginf(logs), 0.0, -jnp.exp(logs) * logs)
        keep = jnp.cumsum(parts, axis=1) <= self.top_h * jnp.sum(parts, axis=1, keepdims=True)
        keep = keep.at[:, 0].set(True)
        rows = jnp.arange(len(scores))[:, None]
        return jnp.full_like(scores, -jnp.inf).at[rows, tokens].set(jnp.where(keep, best, -jnp.inf))


@logits_processor
class TopK:
    """Keep the k largest scores, and those equal to the k-th.

    Attributes:
        k: Number of tokens.
    """

    k: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        return jnp.where(scores < kth_largest(scores, self.k), -jnp.inf, scores)


@logits_processor
class TopP:
    """Keep the smallest set of most probable tokens whose mass reaches top_p.

    Holtzman et al. 2020, section 3.1. In ascending order (among equal scores, of their ids) the tokens fall as long as
    all that fell weigh at most 1 - top_p and enough stay.

    Attributes:
        dropped: 1 - top_p.
        min_tokens: Number of best tokens that always stay.
    """

    dropped: Any
    min_tokens: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        R, V = scores.shape
        dropped, kept = self.dropped, self.min_tokens
        best, tokens = top_k(scores, min(selection.FEW, V))
        border = jnp.min(best, axis=1, keepdims=True)
        is_above = best > border
        weights = jnp.exp(scores - jnp.max(best, axis=1, keepdims=True))
        rest = jnp.sum(weights, axis=1, keepdims=True, where=scores <= border)
        above = jnp.where(is_above, jnp.take_along_axis(weights, tokens, axis=1), 0.0)
        total = rest + jnp.sum(above, axis=1, keepdims=True)

        def among_the_few() -> tuple[jax.Array, jax.Array]:
            # Summed from the lightest: to subtract the best, of nearly 1, would round the light ones away.
            fallen = (rest + lax.cumsum(above, axis=1, reverse=True)) / total <= dropped
            staying = jnp.maximum(jnp.sum(~fallen & is_above, axis=1, keepdims=True), kept)
            least = jnp.take_along_axis(best, staying - 1, axis=1)
            falling = jnp.sum(best >= least, axis=1, keepdims=True) - staying
            equal = jnp.sort(jnp.where(best == least, tokens, V), axis=1)
            return least, jnp.take_along_axis(equal, falling, axis=1)

        def among_all() -> tuple[jax.Array, jax.Array]:
            probabilities = weights / total

            def mass_below(value: jax.Array) -> jax.Array:
                return jnp.sum(probabilities, axis=1, keepdims=True, where=scores < value)

            least = jnp.minimum(largest_float(lambda value: mass_below(value) <= dropped, R), kth_largest(scores, kept))
            # Of several that are the least to stay, as many fall as are light enough together and leave enough, never
            # all.
            equal = scores == least
            mass, weight = mass_below(least), jnp.max(jnp.where(equal, probabilities, 0.0), axis=1, keepdims=True)
            staying, several = (jnp.sum(mask, axis=1, keepdims=True) for mask in (scores >= least, equal))
            falling = largest(lambda n: (mass + n * weight <= dropped) & (staying - n >= kept) & (n < several), 0, V, R)
            return least, inverse_cdf_index(equal.astype(jnp.float32), falling.astype(jnp.float32))

        few_decide = (rest / total <= dropped) & (jnp.sum(is_above, axis=1, keepdims=True) >= kept)
        least, first = lax.cond(jnp.all(few_decide), among_the_few, among_all)
        return jnp.where((scores < least) | ((scores == least) & (jnp.arange(V)[None] < first)), -jnp.inf, scores)


@logits_processor
class MinP:
    """Keep tokens whose probability is at least a share of the best one. Nguyen et al. 2024, section 3.

    Attributes:
        min_p: The share of the best token's probability.
        min_tokens: Number of best tokens that always stay.
    """

    min_p: Any
    min_tokens: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        probabilities = jax.nn.softmax(scores)
        least = self.min_p * jnp.max(probabilities, axis=1, keepdims=True)
        return without(scores, probabilities < least, self.min_tokens)


@logits_processor
class TypicalP:
    """Keep the tokens whose surprise is nearest to the entropy, up to a probability mass.

    Meister et al. 2022, section 4.

    Attributes:
        typical_p: The mass that they reach.
        min_tokens: Number of best tokens that always stay.
    """

    typical_p: Any
    min_tokens: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        logs = jax.nn.log_softmax(scores)
        probabilities = jnp.exp(logs)
        away = jnp.abs(-logs - entropy(logs))

        def is_light(radius: jax.Array) -> jax.Array:
            mass = jnp.sum(probabilities, axis=1, keepdims=True, where=away < radius)
            return mass < self.typical_p

        radius = largest_float(is_light, len(scores))
        return jnp.where(away > jnp.maximum(radius, -kth_largest(-away, self.min_tokens)), -jnp.inf, scores)


@logits_processor
class EpsilonCutoff:
    """Keep tokens at least as probable as epsilon. Hewitt et al. 2022, section 4.1.

    Attributes:
        epsilon: Least probability.
        min_tokens: Number of best tokens that always stay.
    """

    epsilon: Any
    min_tokens: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        return without(scores, jax.nn.softmax(scores) < self.epsilon, self.min_tokens)


@logits_processor
class EtaCutoff:
    """Keep tokens as probable as epsilon, or sqrt(epsilon) exp(-entropy) if that is less.

    Hewitt et al. 2022, section 4.2.

    Attributes:
        epsilon: Least probability while the entropy is low.
        min_tokens: Number of best tokens that always stay.
    """

    epsilon: Any
    min_tokens: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        logs = jax.nn.log_softmax(scores)
        least = jnp.minimum(self.epsilon, jnp.sqrt(self.epsilon) * jnp.exp(-entropy(logs)))
        return without(scores, jnp.exp(logs) < least, self.min_tokens)


def entropy(logs: jax.Array) -> jax.Array:
    """Return the entropy of log-probabilities [R, V]: [R, 1], in nats."""
    return -jnp.sum(jnp.where(jnp.isneginf(logs), 0.0, jnp.exp(logs) * logs), axis=1, keepdims=True)


def without(scores: jax.Array, unlikely: jax.Array, min_tokens: jax.Array) -> jax.Array:
    """Forbid what is unlikely, [R, V], except the few best that always stay."""
    return jnp.where(unlikely & (scores < kth_largest(scores, min_tokens)), -jnp.inf, scores)
