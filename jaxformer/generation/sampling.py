"""One sequence per row, token by token: greedy decoding and sampling."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.generation.loop import Advanced, Found, Record, Strategy
from jaxformer.generation.processors import process
from jaxformer.generation.selection import best_token, draw_token, row_keys
from jaxformer.generation.spec import FSMStates, SearchSpec, ends_with, first_states, make_context, next_states


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sequences:
    """Sequences in the making.

    Attributes:
        tokens: int32 [R, slots].
        length: int32 scalar, number of tokens of every row so far, prompts and padding included.
        live: Boolean [R], True at rows that are not finished.
        scores: Float32 [R], the log-probability that the model gave to the tokens it generated.
        lengths: int32 [R], number of tokens that count in each row, prompt and EOS included.
        states: States of the automata after the tokens, [R].
    """

    tokens: jax.Array
    length: jax.Array
    live: jax.Array
    scores: jax.Array
    lengths: jax.Array
    states: FSMStates


def init(spec: SearchSpec, tokens: jax.Array) -> Sequences:
    """Return the prompts, tokens [R, slots], with nothing generated."""
    R = tokens.shape[0]
    length = jnp.asarray(spec.prompt_length, jnp.int32)
    return Sequences(tokens, length, jnp.ones(R, bool), jnp.zeros(R), jnp.full(R, length), first_states(spec))


def advance(spec: SearchSpec, state: Sequences, logits: jax.Array) -> Advanced:
    """Return every live row one token longer, the finished ones padded.

    Without EOS tokens, rows that a stop string finished go on until all are finished, as in `generate()`.
    """
    context = make_context(spec, state.tokens, state.length, state.states)
    scores = process(spec.processors, logits, context)
    if spec.sample:
        token = draw_token(scores, row_keys(spec.seeds, spec.copies, state.length - spec.prompt_length))
    else:
        token = best_token(scores)
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
    if spec.eos.size:
        token = jnp.where(state.live, token, spec.padding)
    length, states = state.length + 1, next_states(spec, state.states, token)
    sequences = Sequences(
        tokens=lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.length, axis=1),
        length=length,
        live=state.live & ~ends_with(spec, states, token) & (length < spec.max_length),
        scores=state.scores + jnp.where(state.live, log_probability, 0.0),
        lengths=jnp.where(state.live, length, state.lengths),
        states=states,
    )
    return Advanced(sequences, None, scores)


def finished(spec: SearchSpec, state: Sequences) -> jax.Array:
    """Return whether no row is live."""
    return ~jnp.any(state.live)


def result(state: Sequences, record: Record) -> Found:
    """Return the sequences [R, slots], their log-probabilities and lengths."""
    return Found(state.tokens, state.scores, state.lengths, None, record, state.length)


SAMPLING = Strategy(init, advance, finished, result)
