"""Beam search: W sequences per input are extended side by side, and the best finished ones are kept.

It follows Hugging Face `generate()` in every rule; `tests/generation/beam_oracle.py` spells the same algorithm out in
plain Python. B inputs, W beams, K candidates, V tokens.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.generation.loop import Advanced, Found, Record, Strategy
from jaxformer.generation.processors import process
from jaxformer.generation.selection import best_candidates, draw_candidates, row_keys
from jaxformer.generation.spec import FSMStates, SearchSpec, ends_with, first_states, make_context, next_states

NEG_INF = -1e9  # added to a score that must not win; several still compare
EXHAUSTIVE, NEVER = 1, 2  # codes of early_stopping: True and "never"


class Beams(NamedTuple):
    """Sequences of each input, best first: W beams, or K candidates.

    Attributes:
        tokens: int32 [B, W, slots].
        scores: Float32 [B, W], the sum of log-probabilities as the processors left them; NEG_INF is added to a
            sequence that must not win.
        beam_indices: int32 [B, W, slots], the row [B*W] of the search in which each token was chosen; -1 elsewhere.
        states: States of the automata after each sequence, [B, W].
    """

    tokens: jax.Array
    scores: jax.Array
    beam_indices: jax.Array
    states: FSMStates


class Finished(NamedTuple):
    """The best finished sequences of each input.

    Attributes:
        tokens: int32 [B, W, slots].
        scores: Float32 [B, W], log-probability / generated length ** length_penalty.
        beam_indices: int32 [B, W, slots], as of `Beams`.
        real: Boolean [B, W], False where no sequence is yet.
        lengths: int32 [B, W], number of tokens that count, prompt and EOS included.
    """

    tokens: jax.Array
    scores: jax.Array
    beam_indices: jax.Array
    real: jax.Array
    lengths: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """A beam search under way.

    Attributes:
        running: The running beams.
        done: The finished sequences.
        improvable: Boolean [B], True at inputs that may still improve.
        ended: Boolean scalar, every candidate of the last step ended, so nothing runs on.
        length: int32 scalar, number of tokens of every running beam, prompt included.
    """

    running: Beams
    done: Finished
    improvable: jax.Array
    ended: jax.Array
    length: jax.Array

    @property
    def tokens(self) -> jax.Array:
        """The running sequences [B, W, slots]."""
        return self.running.tokens


def gather_beams(tree: Any, index: jax.Array) -> Any:
    """Return the entries `index` [B, W'] along axis 1 of every [B, W, ...] array of a tree."""

    def taken(leaf: jax.Array) -> jax.Array:
        return jnp.take_along_axis(leaf, index.reshape(index.shape + (1,) * (leaf.ndim - 2)), axis=1)  # [B, W', ...]

    return jax.tree.map(taken, tree)


def init(spec: SearchSpec, tokens: jax.Array) -> BeamState:
    """Return W copies of each prompt, tokens [B*W, slots].

    Only the first is extended at first, or all would be equal.
    """
    tokens = tokens.reshape(-1, spec.beams, tokens.shape[1])  # [B, W, slots]
    B, W, _ = tokens.shape
    length = jnp.asarray(spec.prompt_length, jnp.int32)
    beam_indices = jnp.full_like(tokens, -1)
    none = Finished(tokens, jnp.full((B, W), NEG_INF), beam_indices, jnp.zeros((B, W), bool), jnp.full((B, W), length))
    # A constraint may leave so few sequences that these would be found.
    others = NEG_INF if spec.constraint_fsm is None else -jnp.inf
    first = jnp.broadcast_to(jnp.where(jnp.arange(W) == 0, 0.0, others)[None], (B, W))
    states = jax.tree.map(lambda each: each.reshape(B, W), first_states(spec))
    return BeamState(Beams(tokens, first, beam_indices, states), none, jnp.ones(B, bool), jnp.array(False), length)


def advance(spec: SearchSpec, state: BeamState, logits: jax.Array) -> Advanced:
    """Return the search one token further, with the cache row [B*W] that each running beam continues."""
    B, W, L = state.tokens.shape
    states = jax.tree.map(jnp.ravel, state.running.states)
    context = make_context(spec, state.tokens.reshape(-1, L), state.length, states)  # tokens [B*W, L]
    log_probabilities = process(spec.processors, jax.nn.log_softmax(logits), context)
    parents, candidates = extend(spec, state, log_probabilities)
    length = state.length + 1
    newest = lax.dynamic_index_in_dim(candidates.tokens, state.length, axis=2, keepdims=False)
    ends = ends_with(spec, candidates.states, newest) | (length >= spec.max_length)
    running_scores, chosen = lax.top_k(candidates.scores + NEG_INF * ends, W)
    running = gather_beams(candidates, chosen)._replace(scores=running_scores)
    done = keep_finished(spec, state, candidates, ends)
    parents = jnp.take_along_axis(parents, chosen, axis=1) + W * jnp.arange(B)[:, None]  # [B, W]
    improvable = state.improvable & can_improve(spec, running.scores[:, 0], done, length)
    state = BeamState(running, done, improvable, jnp.all(ends), length)
    return Advanced(state, parents.reshape(-1), log_probabilities)  # rows [B*W]


def extend(spec: SearchSpec, state: BeamState, log_probabilities: jax.Array) -> tuple[jax.Array, Beams]:
    """Return the K likeliest sequences that are one token longer, or K drawn ones, and the beam of each: [B, K].

    K = max(2, 1 + E) W for E EOS tokens: even if every beam has all its ends among them, W go on.
    """
    B, W, _ = state.tokens.shape
    V = log_probabilities.shape[-1]
    scores = log_probabilities.reshape(B, W, V) + state.running.scores[:, :, None]  # [B, W, V]
    K = min(max(2, 1 + spec.eos.shape[0]) * W, W * V)
    if spec.sample:
        chosen = draw_candidates(scores, K, row_keys(spec.seeds, 1, state.length - spec.prompt_length))
    else:
        chosen = best_candidates(scores, K)
    parents, newest = chosen // V, chosen % V
    parent = gather_beams(state.running, parents)
    rows = parents + W * jnp.arange(B)[:, None]
    tokens, beam_indices = (
        lax.dynamic_update_slice_in_dim(history, new[:, :, None], state.length, axis=2)
        for history, new in ((parent.tokens, newest), (parent.beam_indices, rows.astype(jnp.int32)))
    )
    reached = jnp.take_along_axis(scores.reshape(B, -1), chosen, axis=1)  # [B, K]
    return parents, Beams(tokens, reached, beam_indices, next_states(spec, parent.states, newest))


def keep_finished(spec: SearchSpec, state: BeamState, candidates: Beams, ends: jax.Array) -> Finished:
    """Return the W best of the finished sequences and the candidates that end now, if they are among the first W."""
    B, K = ends.shape
    W, length = spec.beams, state.length + 1
    enters = ends & (jnp.arange(K) < W)[None]
    if spec.constraint_fsm is not None:  # which may allow fewer sequences than there are beams
        enters &= ~jnp.isneginf(candidates.scores)
    full = jnp.all(state.done.real, axis=1) & (spec.early_stopping == EXHAUSTIVE)
    scores = candidates.scores / (length - spec.prompt_length).astype(jnp.float32) ** spec.length_penalty
    scores += NEG_INF * full[:, None] + NEG_INF * ~state.improvable[:, None] + NEG_INF * ~enters
    entering = Finished(candidates.tokens, scores, candidates.beam_indices, enters, jnp.full((B, K), length))
    merged = Finished(*(jnp.concatenate(pair, axis=1) for pair in zip(state.done, entering, strict=True)))
    return gather_beams(merged, lax.top_k(merged.scores, W)[1])


def can_improve(spec: SearchSpec, best: jax.Array, done: Finished, length: jax.Array) -> jax.Array:
    """Return whether the best running score [B] could still be among the finished ones: boolean [B].

    It could if there is a free place, or if it can beat the worst of them.

    A guess: the beam's score is taken as it is, at its present length, or under early_stopping="never" at the length
    that flatters it most. (Exact where longer cannot score better.)
    """
    reaches = (spec.early_stopping == NEVER) & (spec.length_penalty > 0)
    generated = jnp.where(reaches, spec.max_length, length) - spec.prompt_length
    possible = best / generated.astype(jnp.float32) ** spec.length_penalty
    return possible > jnp.min(done.scores, axis=1)


def finished(spec: SearchSpec, state: BeamState) -> jax.Array:
    """Return whether no input can improve, or nothing runs on, or all have W sequences and that is enough."""
    enough = jnp.all(state.done.real) & (spec.early_stopping == EXHAUSTIVE)
    return ~jnp.any(state.improvable) | enough | state.ended


def result(state: BeamState, record: Record) -> Found:
    """Return the finished sequences [B*W, slots], each input's best first, their scores, lengths and beam_indices."""
    tokens, scores, beam_indices, _, lengths = state.done
    # [B*W, slots]
    tokens, beam_indices = (history.reshape(-1, history.shape[-1]) for history in (tokens, beam_indices))
    return Found(tokens, scores.reshape(-1), lengths.reshape(-1), beam_indices, record, state.length)  # rows R = B*W


BEAM = Strategy(init, advance, finished, result)
