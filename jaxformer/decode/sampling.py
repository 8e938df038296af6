"""One sequence per row, token by token: greedy decoding and sampling."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.decode.choice import best_token, draw_token, row_keys
from jaxformer.decode.loop import Found, Strategy
from jaxformer.decode.plan import Context, Plan, is_any, process


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sequences:
    """Sequences in the making: tokens [R, slots], of which `length` count, and of a finished row `lengths` [R].

    live: boolean [R], not finished. scores: [R] log-probability that the model gave to the tokens it generated.
    """

    tokens: jax.Array
    length: jax.Array
    live: jax.Array
    scores: jax.Array
    lengths: jax.Array


def init(plan: Plan, tokens: jax.Array) -> Sequences:
    """The prompts, tokens [R, slots], with nothing generated."""
    R = tokens.shape[0]
    length = jnp.asarray(plan.prompt_length, jnp.int32)
    return Sequences(tokens, length, jnp.ones(R, bool), jnp.zeros(R), jnp.full(R, length))


def advance(plan: Plan, state: Sequences, logits: jax.Array) -> tuple[Sequences, None]:
    """Every live row one token longer, the finished ones padded."""
    scores = process(logits, Context(plan, state.tokens, state.length))
    if plan.sample:
        token = draw_token(scores, row_keys(plan.seeds, plan.copies, state.length - plan.prompt_length))
    else:
        token = best_token(scores)
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
    token = jnp.where(state.live, token, plan.padding)
    length = state.length + 1
    return Sequences(
        tokens=lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.length, axis=1),
        length=length,
        live=state.live & ~is_any(token, plan.eos) & (length < plan.max_length),
        scores=state.scores + jnp.where(state.live, log_probability, 0.0),
        lengths=jnp.where(state.live, length, state.lengths),
    ), None


def finished(plan: Plan, state: Sequences) -> jax.Array:
    """Whether no row is live."""
    return ~jnp.any(state.live)


def result(state: Sequences) -> Found:
    """The sequences [R, slots], their log-probabilities and lengths."""
    return Found(state.tokens, state.scores, state.lengths)


SAMPLING = Strategy(init, advance, finished, result)
