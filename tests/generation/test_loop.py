"""The loop alone, with a strategy that only counts."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxformer.generation.loop import CHUNK, Advanced, Found, Record, Search, Strategy, choose, finish


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Counted:
    """The row that a cache began as, at each length."""

    tokens: jax.Array
    length: jax.Array


def init(plan: Any, tokens: jax.Array) -> Counted:
    return Counted(tokens, jnp.int32(1))


def advance(plan: Any, state: Counted, logits: jax.Array) -> Advanced:
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, logits.astype(jnp.int32), state.length, axis=1)
    return Advanced(Counted(tokens, state.length + 1), jnp.array([1, 2, 0]), logits)  # rows move round


def finished(plan: Any, state: Counted) -> jax.Array:
    return state.length >= plan


COUNT = Strategy(
    init,
    advance,
    finished,
    lambda state, record: Found(state.tokens, state.length, state.length, None, record, state.length),
)


@pytest.mark.parametrize("length", range(2, 2 * CHUNK + 4))
def test_stops_where_it_is_finished(length: int) -> None:
    """Whatever the length is to the chunks, nothing is written behind the end, and caches follow their rows."""
    slots = 4 * CHUNK
    start = COUNT.init(None, jnp.full((3, slots), -1).at[:, 0].set(jnp.array([5, 6, 7])))

    def step(tokens: jax.Array, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tokens + cache, cache

    def search(plan: jax.Array, state: Counted, cache: jax.Array) -> Counted:
        def reorder(cache: jax.Array, rows: jax.Array) -> jax.Array:
            return cache[rows]

        begun = choose(plan, COUNT, reorder, Search(state, cache, Record(None, None)), state.tokens[:, :1] * 0.0)
        return finish(plan, COUNT, step, reorder, begun).state

    cache = jnp.array([[100], [10], [1]])
    state = jax.jit(search)(jnp.int32(length), start, cache)
    expected = [[first, 0] for first in (5, 6, 7)]
    for turn in range(1, length - 1):
        for row in range(3):
            expected[row].append(expected[row][-1] + int(cache[(row + turn) % 3, 0]))
    assert state.length == length
    assert state.tokens.tolist() == [row + [-1] * (slots - length) for row in expected]
