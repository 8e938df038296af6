"""Logits processors: frozen, registered dataclasses whose call changes scores, [R, V] -> [R, V].

The type of a processor is static and selects the compiled program; its numbers are leaves of a pytree and are traced.
Greedy decoding and sampling hand them raw logits, beam search log-probabilities (so a repetition penalty there always
multiplies). All sequences have one length, and prompts count as part of them. Users pass their own as
`logits_processors=`:

    @jaxformer.logits_processor
    class Avoid:
        token: int  # whose score is lowered
        penalty: float

        def __call__(self, scores, context):
            return scores.at[:, self.token].add(-self.penalty)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.errors import InputError, shortened
from jaxformer.generation.automata import Automaton

Class = TypeVar("Class", bound=type)


class Context(NamedTuple):
    """Properties of a search that a processor may look at.

    Attributes:
        tokens: The sequences so far, int32 [R, L], of which the first `length` count.
        length: Number of tokens of every sequence, prompts included.
        prompt_length: Number of tokens of the prompts, left padding included.
        constraint: Automaton of what may be generated. None: anything.
        constraint_state: Its state after each sequence, int32 [R].
    """

    tokens: jax.Array
    length: jax.Array
    prompt_length: Any
    constraint: Automaton | None = None
    constraint_state: jax.Array | None = None


class LogitsProcessor(Protocol):
    """A pytree that changes scores."""

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores, float32 [R, V]."""
        ...


@dataclass_transform(frozen_default=True)
def logits_processor(cls: Class) -> Class:
    """Make a class a frozen dataclass and a pytree, so that `logits_processors=` takes its objects.

    Args:
        cls: A class with a `__call__(scores, context)`. Its fields are traced; those with `metadata={"static": True}`
            are static: another value of them is another compiled program.
    """
    made: Any = dataclass(frozen=True)(cls)
    return jax.tree_util.register_dataclass(made)


def check_processors(processors: Any) -> tuple[LogitsProcessor, ...]:
    """Return a user's processors as a tuple. Raises InputError for what is none."""
    if processors is None:
        return ()
    several = tuple(processors) if isinstance(processors, list | tuple) else (processors,)
    for each in several:
        if isinstance(each, type) or not callable(each) or jax.tree_util.all_leaves([each]):
            raise InputError(
                f"logits_processors must be objects of classes made by @jaxformer.logits_processor, "
                f"not {shortened(repr(each), 60)}"
            )
    return several


def process(processors: tuple[LogitsProcessor, ...], scores: jax.Array, context: Context) -> jax.Array:
    """Return the scores float32 [R, V] after every processor, in order.

    Raises InputError for a processor that returns scores of another shape.
    """
    for processor in processors:
        changed = processor(scores, context)
        if jnp.shape(changed) != scores.shape:
            name, shapes = type(processor).__name__, f"{list(scores.shape)}, not {list(jnp.shape(changed))}"
            raise InputError(f"the logits processor {name} must return scores {shapes}")
        scores = changed.astype(jnp.float32)
    return scores


@logits_processor
class SequenceBias:
    """Add a bias to each token that completes one of some sequences; -inf forbids it.

    Attributes:
        tokens: The sequences, int32 [n, m], right-aligned.
        lengths: Their lengths, int32 [n], 0 where there is none.
        bias: What is added, float32 [n].
    """

    tokens: Any
    lengths: Any
    bias: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        length, m = context.length, self.tokens.shape[1]
        places = jnp.arange(m)[None]
        recent = jnp.take(context.tokens, length - m + 1 + jnp.arange(m - 1), axis=1, mode="clip")  # [R, m-1]
        required = (places[:, :-1] >= m - self.lengths[:, None])[None]  # [1, n, m-1]
        equal = recent[:, None] == self.tokens[None, :, :-1]
        possible = (self.lengths > 0) & (self.lengths - 1 <= length)
        completed = jnp.all(equal | ~required, axis=-1) & possible[None]
        bias = jnp.where(completed, self.bias[None], 0.0)
        return scores + jnp.zeros_like(scores).at[:, self.tokens[:, -1]].add(bias)


@logits_processor
class EncoderRepetitionPenalty:
    """Raise the scores of the source's tokens, for a penalty above 1: an inverse repetition penalty.

    Attributes:
        penalty: Factor.
        source: Token ids of the source of each input, int32 [B, S], -1 where there is none.
    """

    penalty: Any
    source: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        source = rows_of(self.source, context)
        return penalized(scores, token_mask(source, source >= 0, scores.shape[1]), 1 / self.penalty)


@logits_processor
class RepetitionPenalty:
    """Divide the scores of tokens that occur already by a penalty, or multiply where negative.

    Keskar et al. 2019, section 4.1. Left padding does not count, a start token does.

    Attributes:
        penalty: Factor.
        prompt_start: Where each prompt begins, after its left padding, int32 [B].
    """

    penalty: Any
    prompt_start: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        tokens, slots = context.tokens, jnp.arange(context.tokens.shape[1])[None]
        start = rows_of(self.prompt_start, context)
        occurs = token_mask(tokens, (slots >= start[:, None]) & (slots < context.length), scores.shape[1])
        return penalized(scores, occurs, self.penalty)


@logits_processor
class NoRepeatNGram:
    """Forbid tokens that would complete an n-gram for the second time; left padding counts as tokens.

    Attributes:
        size: Length n.
    """

    size: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        slots = jnp.arange(context.tokens.shape[1])[None]
        ends = (slots >= self.size - 1) & (slots < context.length)
        return without_ngrams(scores, context, context.tokens, ends, self.size)


@logits_processor
class EncoderNoRepeatNGram:
    """Forbid tokens that would complete an n-gram of the source.

    Attributes:
        size: Length n.
        source: Token ids of the source of each input, int32 [B, S], -1 where there is none.
    """

    size: Any
    source: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        source = rows_of(self.source, context)
        ends = (jnp.arange(source.shape[1])[None] >= self.size - 1) & (source >= 0)
        return without_ngrams(scores, context, source, ends, self.size)


@logits_processor
class MinLength:
    """Forbid the EOS tokens while sequences are shorter than `min_length`.

    Attributes:
        min_length: Number of tokens, prompts included.
        eos: EOS tokens, int32 [n].
    """

    min_length: Any
    eos: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        allowed = jnp.where(context.length < self.min_length, -jnp.inf, scores[:, self.eos])
        return scores.at[:, self.eos].set(allowed)


@logits_processor
class ForcedBOS:
    """Force a token as the second one of all sequences: 0 for it, -inf for any other.

    Attributes:
        token: The token, int32 scalar.
    """

    token: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        return force_tokens(scores, self.token[None], context.length == 1)


@logits_processor
class ForcedEOS:
    """Force one of some tokens at the last position: 0 for them, -inf for any other.

    Attributes:
        tokens: The tokens, int32 [n].
        max_length: Most tokens of a sequence, prompt included.
    """

    tokens: Any
    max_length: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        return force_tokens(scores, self.tokens, context.length == self.max_length - 1)


@logits_processor
class InfNanRemove:
    """Replace NaN by 0, and infinities by the largest and least finite number."""

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        return jnp.nan_to_num(scores, nan=0.0)


@logits_processor
class ExponentialDecayLength:
    """Raise the scores of EOS tokens by |score| (factor^k - 1), k tokens after a start; nothing before.

    Attributes:
        start: Number of generated tokens.
        factor: Above 1 to raise them.
        eos: EOS tokens, int32 [n].
    """

    start: Any
    factor: Any
    eos: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        after = context.length - context.prompt_length - self.start
        eos = scores[:, self.eos]
        rise = jnp.abs(eos) * (self.factor ** jnp.maximum(after, 0).astype(jnp.float32) - 1)
        raised = eos + jnp.where(jnp.isfinite(eos), rise, 0.0)
        return jnp.where(after > 0, scores.at[:, self.eos].set(raised), scores)


@logits_processor
class SuppressTokens:
    """Forbid some tokens.

    Attributes:
        tokens: The tokens, int32 [n]; those outside of the vocabulary are padding.
    """

    tokens: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        return scores.at[:, self.tokens].set(-jnp.inf, mode="drop")


@logits_processor
class SuppressTokensAtBegin:
    """Forbid some tokens where sequences have a certain length.

    Attributes:
        tokens: The tokens, int32 [n]; those outside of the vocabulary are padding.
        begin: The length in tokens, prompt included.
    """

    tokens: Any
    begin: Any

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        without = scores.at[:, self.tokens].set(-jnp.inf, mode="drop")
        return jnp.where(context.length == self.begin, without, scores)


@logits_processor
class Constraint:
    """Forbid tokens that the constraint does not allow after a sequence.

    Where other processors have left none of the allowed ones, these are equal: the constraint is never violated.
    """

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        constraint, state = context.constraint, context.constraint_state
        assert constraint is not None, "active with a constraint only"
        allowed = constraint.next[state][:, constraint.columns] >= 0
        some_left = jnp.any(allowed & ~jnp.isneginf(scores), axis=1, keepdims=True)
        return jnp.where(allowed, jnp.where(some_left, scores, 0.0), -jnp.inf)


@logits_processor
class LogitNormalization:
    """Make scores log-probabilities: log_softmax."""

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        """Return the changed scores [R, V]."""
        return jax.nn.log_softmax(scores)


def rows_of(per_input: jax.Array, context: Context) -> jax.Array:
    """Return an array [B, ...] with a row for each row of the search: [R, ...]."""
    return jnp.repeat(jnp.asarray(per_input), context.tokens.shape[0] // per_input.shape[0], axis=0)


def token_mask(tokens: jax.Array, chosen: jax.Array, vocabulary: int) -> jax.Array:
    """Return which tokens of the vocabulary are among the `chosen` ones of each row: boolean [R, V] from [R, L]."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    columns = jnp.where(chosen, tokens, vocabulary)
    return jnp.zeros((tokens.shape[0], vocabulary), bool).at[rows, columns].set(True, mode="drop")


def penalized(scores: jax.Array, occurs: jax.Array, penalty: jax.Array) -> jax.Array:
    """Return scores with those of tokens that occur, [R, V], divided by a penalty, or multiplied where negative."""
    return jnp.where(occurs, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def without_ngrams(scores: jax.Array, context: Context, text: jax.Array, ends: jax.Array, size: jax.Array) -> jax.Array:
    """Forbid tokens of `text` [R, S], at its places `ends` [R|1, S], that follow there what the sequences end in."""
    tokens, length = context.tokens, context.length

    def also_matches(back: jax.Array, matches: jax.Array) -> jax.Array:
        recent = lax.dynamic_slice_in_dim(tokens, length - back, 1, axis=1)
        return matches & (jnp.roll(text, back, axis=1) == recent) & (back <= length)

    # An n-gram longer than the text has no end in it.
    matches = lax.fori_loop(1, jnp.minimum(size, text.shape[1]), also_matches, jnp.broadcast_to(ends, text.shape))
    return jnp.where(token_mask(text, matches, scores.shape[1]), -jnp.inf, scores)


def force_tokens(scores: jax.Array, ids: jax.Array, condition: jax.Array) -> jax.Array:
    """Return 0 for the tokens `ids` and -inf for any other if the condition holds, else the scores."""
    return jnp.where(condition, jnp.full_like(scores, -jnp.inf).at[:, ids].set(0.0), scores)
