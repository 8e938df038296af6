"""The training step: a pure function from state and batch to state and metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any
Batch = Any
LossFunction = Callable[[Params, Batch, jax.Array], tuple[jax.Array, jax.Array]]


class TrainState(NamedTuple):
    """All that training changes, a plain pytree. key: the raw seed; a step's own key is derived from it and `step`.

    skipped: how many steps were not taken because the loss or the gradient was not finite.
    """

    params: Params
    optimizer: optax.OptState
    step: jax.Array
    skipped: jax.Array
    key: jax.Array


class Metrics(NamedTuple):
    """What a step reports: float32 scalars, and the number of steps skipped so far."""

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    skipped: jax.Array


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(params: Params, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    key = jax.random.key_data(jax.random.key(seed))
    return TrainState(params, optimizer.init(params), jnp.int32(0), jnp.int32(0), key)


def make_train_step(
    loss_function: LossFunction, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> TrainStep:
    """The compiled step. Its state is donated: the memory of the old one becomes the new one.

    loss_function: (params, batch, dropout key) -> (what to minimise, what to report as the loss).
    A step whose loss or gradient is not finite leaves parameters and optimiser as they were, and is counted.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        (objective, loss), gradient = jax.value_and_grad(loss_function, has_aux=True)(state.params, batch, key)
        norm = optax.tree.norm(gradient)
        healthy = jnp.isfinite(objective) & jnp.isfinite(norm)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        taken = (optax.apply_updates(state.params, updates), optimizer_state)
        params, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(healthy, new, old), taken, (state.params, state.optimizer)
        )
        skipped = state.skipped + ~healthy
        rate = jnp.asarray(schedule(state.step - state.skipped), jnp.float32)
        new = TrainState(params, optimizer_state, state.step + 1, skipped, state.key)
        return new, Metrics(loss, norm, rate, skipped)

    return jax.jit(train_step, donate_argnums=0)


def cast(params: Params, dtype: jnp.dtype) -> Params:
    """The parameters in the type to compute in; the master weights stay float32, and so do their gradients."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
