"""The loop that greedy decoding, sampling and beam search share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.decode.plan import Plan

CHUNK = 4

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
Select = Callable[[Any, jax.Array], Any]


class Found(NamedTuple):
    """A search's result: tokens [R, slots], the score of each row [R], and how many of its tokens count [R]."""

    tokens: jax.Array
    scores: jax.Array
    lengths: jax.Array


class Strategy(NamedTuple):
    """A way to search, as pure functions over a state with `tokens` [..., slots] and `length`.

    init: (plan, tokens [R, slots]) -> state.
    advance: (plan, state, logits [R, V]) -> state one token longer, and the rows [R] of the cache that go on in the
    place of each row (None: each its own).
    finished: (plan, state) -> boolean scalar. result: state -> Found.
    """

    init: Callable[[Plan, jax.Array], Any]
    advance: Callable[[Plan, Any, jax.Array], tuple[Any, jax.Array | None]]
    finished: Callable[[Plan, Any], jax.Array]
    result: Callable[[Any], Found]


def run(plan: Plan, strategy: Strategy, step: Step, select: Select, state: Any, logits: jax.Array, cache: Any) -> Any:
    """The finished state of a search that begins with the logits [R, V] after the prompts and their cache.

    Each turn reads the newest tokens and chooses the next. Turns run in chunks and the exit is looked for after each
    chunk; until then a finished state is left as it is, while what the cache still takes in matters to nobody.
    """

    def advance(state: Any, logits: jax.Array, cache: Any) -> tuple[Any, Any]:
        state, rows = strategy.advance(plan, state, logits)
        return state, cache if rows is None else select(cache, rows)

    def turn(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        state, cache = carry
        tokens = state.tokens.reshape(-1, state.tokens.shape[-1])
        logits, cache = step(lax.dynamic_slice_in_dim(tokens, state.length - 1, 1, axis=1), cache)
        advanced, cache = advance(state, logits, cache)
        done = strategy.finished(plan, state)
        return (jax.tree.map(lambda old, new: jnp.where(done, old, new), state, advanced), cache), None

    return lax.while_loop(
        lambda carry: ~strategy.finished(plan, carry[0]),
        lambda carry: lax.scan(turn, carry, length=CHUNK)[0],
        advance(state, logits, cache),
    )[0]
