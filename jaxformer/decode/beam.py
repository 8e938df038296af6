"""Beam search: W sequences per input are extended side by side, and the best finished ones are kept.

It follows Hugging Face `generate()` in every rule; `tests/decode/beam_oracle.py` spells the same algorithm out in plain
Python. B inputs, W beams, K candidates, V tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.decode.choice import best_candidates, draw_candidates, row_keys
from jaxformer.decode.loop import Found, Strategy
from jaxformer.decode.plan import Context, Plan, is_any, process

OUT = -1e9  # added to a score that must not win; several still compare
EXHAUSTIVE, NEVER = 1, 2  # codes of early_stopping: True and "never"


class Beams(NamedTuple):
    """Sequences of each input, best first: tokens [B, W, slots], scores [B, W]."""

    tokens: jax.Array
    scores: jax.Array


class Finished(NamedTuple):
    """The best finished sequences, by score / length ** length_penalty; `real` [B, W] is False where none is yet.

    lengths [B, W]: tokens that count, prompt and EOS included.
    """

    tokens: jax.Array
    scores: jax.Array
    real: jax.Array
    lengths: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """A beam search under way: the running beams, the finished ones, and which inputs may still improve, [B].

    ended: every candidate of the last step ended, so nothing runs on.
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


def take(tree: tuple, index: jax.Array) -> list[jax.Array]:
    """The entries `index` [B, W'] along axis 1 of every [B, W, ...] array of a tuple."""
    return [jnp.take_along_axis(leaf, index.reshape(index.shape + (1,) * (leaf.ndim - 2)), axis=1) for leaf in tree]


def init(plan: Plan, tokens: jax.Array) -> BeamState:
    """W copies of each prompt, tokens [B*W, slots]; only the first may be extended, lest all do the same."""
    tokens = tokens.reshape(-1, plan.beams, tokens.shape[1])
    B, W, _ = tokens.shape
    length = jnp.asarray(plan.prompt_length, jnp.int32)
    none = Finished(tokens, jnp.full((B, W), OUT), jnp.zeros((B, W), bool), jnp.full((B, W), length))
    first = jnp.broadcast_to(jnp.where(jnp.arange(W) == 0, 0.0, OUT)[None], (B, W))
    return BeamState(Beams(tokens, first), none, jnp.ones(B, bool), jnp.array(False), length)


def advance(plan: Plan, state: BeamState, logits: jax.Array) -> tuple[BeamState, jax.Array]:
    """The search one token further, and the cache row [B*W] that each running beam continues."""
    B, W, _ = state.tokens.shape
    parents, candidates = extend(plan, state, logits)
    length = state.length + 1
    ends = is_any(lax.dynamic_index_in_dim(candidates.tokens, state.length, axis=2, keepdims=False), plan.eos)
    ends |= length >= plan.max_length
    running_scores, chosen = lax.top_k(candidates.scores + OUT * ends, W)
    running = Beams(take(candidates, chosen)[0], running_scores)
    done = keep_finished(plan, state, candidates, ends)
    parents = jnp.take_along_axis(parents, chosen, axis=1) + W * jnp.arange(B)[:, None]
    improvable = state.improvable & can_improve(plan, running.scores[:, 0], done, length)
    return BeamState(running, done, improvable, jnp.all(ends), length), parents.reshape(-1)


def extend(plan: Plan, state: BeamState, logits: jax.Array) -> tuple[jax.Array, Beams]:
    """The K likeliest sequences that are one token longer, or K drawn ones, and the beam of each: [B, K].

    K = max(2, 1 + E) W for E EOS tokens: even if every beam has all its ends among them, W go on.
    """
    B, W, L = state.tokens.shape
    V = logits.shape[-1]
    log_probabilities = process(jax.nn.log_softmax(logits), Context(plan, state.tokens.reshape(-1, L), state.length))
    scores = log_probabilities.reshape(B, W, V) + state.running.scores[:, :, None]
    K = min(max(2, 1 + plan.eos.shape[0]) * W, W * V)
    if plan.sample:
        chosen = draw_candidates(scores, K, row_keys(plan.seeds, 1, state.length - plan.prompt_length))
    else:
        chosen = best_candidates(scores, K)
    parents = chosen // V
    tokens = take((state.tokens,), parents)[0]
    tokens = lax.dynamic_update_slice_in_dim(tokens, (chosen % V)[:, :, None], state.length, axis=2)
    return parents, Beams(tokens, jnp.take_along_axis(scores.reshape(B, -1), chosen, axis=1))


def keep_finished(plan: Plan, state: BeamState, candidates: Beams, ends: jax.Array) -> Finished:
    """The W best of the finished sequences and the candidates that end now, if they are among the first W."""
    B, K = ends.shape
    W, length = plan.beams, state.length + 1
    enters = ends & (jnp.arange(K) < W)[None]
    full = jnp.all(state.done.real, axis=1) & (plan.early_stopping == EXHAUSTIVE)
    scores = candidates.scores / (length - plan.prompt_length).astype(jnp.float32) ** plan.length_penalty
    scores += OUT * full[:, None] + OUT * ~state.improvable[:, None] + OUT * ~enters
    entering = Finished(candidates.tokens, scores, enters, jnp.full((B, K), length))
    merged = Finished(*(jnp.concatenate(pair, axis=1) for pair in zip(state.done, entering, strict=True)))
    return Finished(*take(merged, lax.top_k(merged.scores, W)[1]))


def can_improve(plan: Plan, best: jax.Array, done: Finished, length: jax.Array) -> jax.Array:
    """Whether the best running score [B] could still beat the worst finished one, or take a free place: boolean [B].

    A guess: the beam's score is taken as it is, at its present length, or under early_stopping="never" at the length
    that flatters it most. (Exact where longer cannot score better.)
    """
    reaches = (plan.early_stopping == NEVER) & (plan.length_penalty > 0)
    generated = jnp.where(reaches, plan.max_length, length) - plan.prompt_length
    possible = best / generated.astype(jnp.float32) ** plan.length_penalty
    return possible > jnp.min(done.scores, axis=1)


def finished(plan: Plan, state: BeamState) -> jax.Array:
    """Whether no input can improve, or nothing runs on, or all have W sequences and that is enough."""
    enough = jnp.all(state.done.real) & (plan.early_stopping == EXHAUSTIVE)
    return ~jnp.any(state.improvable) | enough | state.ended


def result(state: BeamState) -> Found:
    """The finished sequences [B*W, slots], each input's best first, their scores and lengths."""
    tokens, scores, _, lengths = state.done
    return Found(tokens.reshape(-1, tokens.shape[-1]), scores.reshape(-1), lengths.reshape(-1))


BEAM = Strategy(init, advance, finished, result)
