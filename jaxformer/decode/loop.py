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


class Search(NamedTuple):
    """A search under way, a pytree: the state of its strategy, and the cache behind the tokens that it holds."""

    state: Any
    cache: Any


def choose(plan: Plan, strategy: Strategy, select: Select, search: Search, logits: jax.Array) -> Search:
    """The search one token longer, from the logits [R, V] after its tokens."""
    state, rows = strategy.advance(plan, search.state, logits)
    return Search(state, search.cache if rows is None else select(search.cache, rows))


def proceed(plan: Plan, strategy: Strategy, step: Step, select: Select, search: Search) -> Search:
    """The search a chunk of turns later, each of which reads the newest tokens and chooses the next.

    A search that finishes inside the chunk stays as it is; what its cache still takes in matters to nobody.
    """

    def turn(search: Search, _: None) -> tuple[Search, None]:
        state = search.state
        tokens = state.tokens.reshape(-1, state.tokens.shape[-1])
        logits, cache = step(lax.dynamic_slice_in_dim(tokens, state.length - 1, 1, axis=1), search.cache)
        advanced, cache = choose(plan, strategy, select, Search(state, cache), logits)
        done = strategy.finished(plan, state)
        return Search(jax.tree.map(lambda old, new: jnp.where(done, old, new), state, advanced), cache), None

    return lax.scan(turn, search, length=CHUNK)[0]


def finish(plan: Plan, strategy: Strategy, step: Step, select: Select, search: Search) -> Search:
    """The finished search; the exit is looked for after each chunk."""
    return lax.while_loop(
        lambda search: ~strategy.finished(plan, search.state),
        lambda search: proceed(plan, strategy, step, select, search),
        search,
    )
