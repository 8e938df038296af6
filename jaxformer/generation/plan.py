"""What a compiled search knows of its settings: the mode, which selects the program, and numbers, which do not."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

Processor = Callable[[jax.Array, "Context"], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plan:
    """A generation's settings as one pytree: the first six fields are static, all others are traced.

    So a program is compiled once per mode (and once per number of EOS tokens, a shape); lengths, penalties, thresholds
    and seeds may change from call to call. copies: rows per input, the beams W or the samples. record_scores,
    record_logits: what is kept of every step. early_stopping: 0 False, 1 True, 2 "never". dropped_mass: 1 - top_p.
    kept: how many of the best tokens truncations always leave. prompt_start: [B] where each prompt begins, behind its
    left padding. source: token ids [B, S] of what is read, -1 where there is none. padding: the token behind a
    sequence's end. begin: the length at which `begin_suppressed` tokens are. decay: start and factor of the EOS's rise.
    seeds: [B, 2] the two numbers that each input's random keys come from.
    """

    beams: int = field(metadata={"static": True})
    copies: int = field(metadata={"static": True})
    sample: bool = field(metadata={"static": True})
    processors: tuple[Processor, ...] = field(metadata={"static": True})
    record_scores: bool = field(metadata={"static": True})
    record_logits: bool = field(metadata={"static": True})
    prompt_length: jax.Array
    prompt_start: jax.Array
    source: jax.Array
    min_length: jax.Array
    max_length: jax.Array
    eos: jax.Array
    forced_eos: jax.Array
    forced_bos: jax.Array
    padding: jax.Array
    length_penalty: jax.Array
    early_stopping: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    dropped_mass: jax.Array
    min_p: jax.Array
    kept: jax.Array
    top_h: jax.Array
    typical_mass: jax.Array
    epsilon: jax.Array
    eta: jax.Array
    biased: "Phrases"
    banned: "Phrases"
    repetition_penalty: jax.Array
    source_penalty: jax.Array
    ngram_size: jax.Array
    source_ngram_size: jax.Array
    suppressed: jax.Array
    begin_suppressed: jax.Array
    begin: jax.Array
    decay: jax.Array
    stops: "Automaton | None"
    grammar: "Automaton | None"
    seeds: jax.Array


class Phrases(NamedTuple):
    """Token sequences and what is added to the score of the last of each behind the others.

    tokens int32 [n, m], right-aligned; lengths int32 [n], 0 where there is none; bias float32 [n].
    """

    tokens: jax.Array
    lengths: jax.Array
    bias: jax.Array


class Automaton(NamedTuple):
    """A machine that reads tokens, C of whose kinds differ. columns: int32 [V], the kind of each token.

    next: int32 [S, C], the state behind a state and a kind of token, -1 where none may follow. final: boolean [S], what
    it looks for is there. start: int32 [B], its state behind each prompt.
    """

    columns: jax.Array
    next: jax.Array
    final: jax.Array
    start: jax.Array


class Marks(NamedTuple):
    """The state of each automaton behind every sequence, int32 [...]; None where there is none."""

    stops: jax.Array | None
    grammar: jax.Array | None


class Context(NamedTuple):
    """What a processor may look at: the sequences so far, tokens [R, slots], of which the first `length` count."""

    plan: Plan
    tokens: jax.Array
    length: jax.Array
    marks: Marks


def process(scores: jax.Array, context: Context) -> jax.Array:
    """The scores [R, V] after every active processor, in order."""
    for processor in context.plan.processors:
        scores = processor(scores, context)
    return scores


def is_any(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Whether each token [...] is one of the `ids` [E]: boolean [...]."""
    return (tokens[..., None] == ids.reshape((1,) * tokens.ndim + (-1,))).any(-1)


def first_marks(plan: Plan) -> Marks:
    """The automata behind the prompts, of which each has `copies` rows: [R]."""
    machines = (plan.stops, plan.grammar)
    return Marks(*(None if machine is None else jnp.repeat(machine.start, plan.copies) for machine in machines))


def moved(plan: Plan, marks: Marks, tokens: jax.Array) -> Marks:
    """The automata behind one more token of each sequence, [...]; a token that may not follow leads to the first."""

    def read(machine: Automaton | None, state: jax.Array | None) -> jax.Array | None:
        if machine is None or state is None:
            return None
        return jnp.maximum(machine.next[state, machine.columns[tokens]], 0)

    return Marks(read(plan.stops, marks.stops), read(plan.grammar, marks.grammar))


def ends_with(plan: Plan, marks: Marks, tokens: jax.Array) -> jax.Array:
    """Whether sequences end with their last tokens, boolean [...]: an EOS token, or a stop string within it."""
    ends = is_any(tokens, plan.eos)
    return ends if plan.stops is None or marks.stops is None else ends | plan.stops.final[marks.stops]
