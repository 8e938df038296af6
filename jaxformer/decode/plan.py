"""What a compiled search knows of its settings: the mode, which selects the program, and numbers, which do not."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax

Processor = Callable[[jax.Array, "Context"], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plan:
    """A generation's settings as one pytree: the first four fields are static, all others are traced.

    So a program is compiled once per mode (and once per number of EOS tokens, a shape); lengths, penalties, thresholds
    and seeds may change from call to call. copies: rows per input, the beams W or the samples. early_stopping: 0 False,
    1 True, 2 "never". dropped_mass: 1 - top_p. kept: how many of the best tokens top_p and min_p always leave.
    prompt_start: [B] where each prompt begins, behind its left padding. padding: the token behind a sequence's end.
    seeds: [B, 2] the two numbers that each input's random keys come from.
    """

    beams: int = field(metadata={"static": True})
    copies: int = field(metadata={"static": True})
    sample: bool = field(metadata={"static": True})
    processors: tuple[Processor, ...] = field(metadata={"static": True})
    prompt_length: jax.Array
    prompt_start: jax.Array
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
    repetition_penalty: jax.Array
    ngram_size: jax.Array
    seeds: jax.Array


class Context(NamedTuple):
    """What a processor may look at: the sequences so far, tokens [R, slots], of which the first `length` count."""

    plan: Plan
    tokens: jax.Array
    length: jax.Array


def process(scores: jax.Array, context: Context) -> jax.Array:
    """The scores [R, V] after every active processor, in order."""
    for processor in context.plan.processors:
        scores = processor(scores, context)
    return scores


def is_any(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Whether each token [...] is one of the `ids` [E]: boolean [...]."""
    return (tokens[..., None] == ids.reshape((1,) * tokens.ndim + (-1,))).any(-1)
