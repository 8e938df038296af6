"""The loop that greedy decoding, sampling and beam search share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.generation.spec import SearchSpec

CHUNK = 4

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
Reorder = Callable[[Any, jax.Array], Any]


class Found(NamedTuple):
    """Result of a search.

    Attributes:
        tokens: int32 [R, slots].
        scores: Float32 [R], see `Generated.sequences_scores`.
        lengths: int32 [R], number of tokens that count in each row, prompt and EOS included.
        beam_indices: int32 [R, slots], the row of the search in which each token was chosen. None without beams.
        record: Scores and logits of each step.
        length: int32 scalar, number of tokens that the search came to, prompt included.
    """

    tokens: jax.Array
    scores: jax.Array
    lengths: jax.Array
    beam_indices: jax.Array | None
    record: "Record"
    length: jax.Array


class Strategy(NamedTuple):
    """A way to search, as pure functions over a state with `tokens` [..., slots] and `length`.

    Attributes:
        init: (spec, tokens [R, slots]) -> state.
        advance: (spec, state, logits [R, V]) -> Advanced.
        finished: (spec, state) -> boolean scalar.
        result: (state, record) -> Found.
    """

    init: Callable[[SearchSpec, jax.Array], Any]
    advance: Callable[[SearchSpec, Any, jax.Array], "Advanced"]
    finished: Callable[[SearchSpec, Any], jax.Array]
    result: Callable[[Any, "Record"], Found]


class Advanced(NamedTuple):
    """A state one token longer, and how it came about.

    Attributes:
        state: State of the strategy.
        rows: int32 [R], the rows of the cache that go on in the place of each row (None: each its own).
        scores: Float32 [R, V], by which the tokens were chosen.
    """

    state: Any
    rows: jax.Array | None
    scores: jax.Array


class Record(NamedTuple):
    """Scores and logits of every step, with rows in the order of that step.

    Attributes:
        scores: Float32 [slots, R, V], by which the tokens were chosen. None: not kept.
        logits: Float32 [slots, R, V] of the model. None: not kept.
    """

    scores: jax.Array | None
    logits: jax.Array | None


class Search(NamedTuple):
    """A search under way, a pytree.

    Attributes:
        state: State of the strategy, with the tokens so far.
        cache: Cache of the model, with all tokens but the newest.
        record: Scores and logits of the steps so far.
    """

    state: Any
    cache: Any
    record: Record


def choose(spec: SearchSpec, strategy: Strategy, reorder: Reorder, search: Search, logits: jax.Array) -> Search:
    """Return the search one token longer, from the logits [R, V] after its tokens."""
    state, rows, scores = strategy.advance(spec, search.state, logits)

    def kept(pages: jax.Array | None, page: jax.Array) -> jax.Array | None:
        if pages is None:
            return None
        return lax.dynamic_update_index_in_dim(pages, page, search.state.length - spec.prompt_length, axis=0)

    record = Record(kept(search.record.scores, scores), kept(search.record.logits, logits))
    return Search(state, search.cache if rows is None else reorder(search.cache, rows), record)


def proceed(spec: SearchSpec, strategy: Strategy, step: Step, reorder: Reorder, search: Search) -> Search:
    """Return the search a chunk of turns later, each of which reads the newest tokens and chooses the next.

    A search that finishes inside the chunk stays as it is. Its cache and its record still change after the last step,
    but are never read there.
    """

    def one_step(search: Search, _: None) -> tuple[Search, None]:
        state = search.state
        tokens = state.tokens.reshape(-1, state.tokens.shape[-1])  # [R, slots]
        logits, cache = step(lax.dynamic_slice_in_dim(tokens, state.length - 1, 1, axis=1), search.cache)
        new = choose(spec, strategy, reorder, search._replace(cache=cache), logits)
        done = strategy.finished(spec, state)
        return new._replace(state=jax.tree.map(lambda old, new: jnp.where(done, old, new), state, new.state)), None

    return lax.scan(one_step, search, length=CHUNK)[0]


def finish(spec: SearchSpec, strategy: Strategy, step: Step, reorder: Reorder, search: Search) -> Search:
    """Return the finished search; the exit is looked for after each chunk."""
    return lax.while_loop(
        lambda search: ~strategy.finished(spec, search.state),
        lambda search: proceed(spec, strategy, step, reorder, search),
        search,
    )
