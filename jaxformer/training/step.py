"""The training step: a pure function from state and batch to state and metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxformer.backends.cpu import training_options
from jaxformer.layers.variables import QuantizedWeight

Params = Any
Batch = Any
LossFunction = Callable[[Params, Batch, jax.Array], tuple[jax.Array, "Loss"]]


class Loss(NamedTuple):
    """Loss of a batch, or of a part of one.

    Attributes:
        mean: Mean loss, a scalar.
        labels: Number of labels that the mean was taken over, a scalar.
        loads: Loads of the experts of a mixture, a pytree of means over the batch. None or empty: no experts.
    """

    mean: jax.Array
    labels: jax.Array
    loads: Any = None


class TrainState(NamedTuple):
    """All that training changes, a plain pytree.

    Attributes:
        params: Parameters of the model.
        optimizer: State of the optimizer.
        step: Number of steps so far, skipped ones included: int32 scalar.
        skipped: Number of steps that were not taken because loss or gradient was not finite: int32 scalar.
        key: Raw data of the seed's random key; a step derives its own key from it and `step`.
    """

    params: Params
    optimizer: optax.OptState
    step: jax.Array
    skipped: jax.Array
    key: jax.Array


class Metrics(NamedTuple):
    """Measurements of a step: float32 scalars, unless stated otherwise.

    Attributes:
        loss: Mean loss of the batch, see `Loss`.
        grad_norm: Length of the gradient of all parameters, before it is clipped.
        update_ratio: Length of the change of all parameters / their length; 1e-3 is usual, far more is a step too far.
        learning_rate: Learning rate of the step.
        skipped: Number of steps skipped so far, this one included: int32.
        loads: Loads of the experts, see `Loss`.
    """

    loss: jax.Array
    grad_norm: jax.Array
    update_ratio: jax.Array
    learning_rate: jax.Array
    skipped: jax.Array
    loads: Any = None


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(params: Params, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Return the state before the first step."""
    key = jax.random.key_data(jax.random.key(seed))
    return TrainState(params, optimizer.init(params), jnp.int32(0), jnp.int32(0), key)


def make_train_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    accumulate: int = 1,
    adjust: Callable[[Params, Any], Params] | None = None,
    shardings: Any = None,
) -> "CompiledStep":
    """Return the compiled step. Its state is donated: the memory of the old one becomes the new one.

    A step whose loss or gradient is not finite leaves parameters and optimizer as they were, and is counted.

    Args:
        loss_function: (params, batch, dropout key) -> (the mean to minimise, the loss to report). Arrays that a
            `jax.tree_util.Partial` binds are inputs of the compiled step: give frozen parameters like this. Other
            arrays that it holds become constants of the program.
        optimizer: The optimizer.
        schedule: Learning rate by step, for the metrics.
        accumulate: Number of parts that a batch is cut into, whose gradients are computed one after the other and
            averaged by their numbers of labels: the gradient of the whole batch, in the memory of a part.
        adjust: (params, loads) -> params, what a step changes in the new parameters beside what the optimizer did.
        shardings: Where each array of the new state lies, as `parallel.shardings` says. None: the compiler decides.
    """
    bound = loss_function if isinstance(loss_function, Partial) else Partial(loss_function)

    def train_step(state: TrainState, batch: Batch, loss_function: Partial) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        objective, loss, loads, gradient = gradient_of(loss_function, state.params, batch, key, accumulate)
        norm = optax.tree.norm(gradient)
        healthy = jnp.isfinite(objective) & jnp.isfinite(norm)

        def take() -> tuple[Params, optax.OptState, jax.Array]:
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
            moved = optax.apply_updates(state.params, updates)
            ratio = optax.tree.norm(updates) / optax.tree.norm(state.params)
            return adjust(moved, loads) if adjust else moved, optimizer_state, ratio

        def skip() -> tuple[Params, optax.OptState, jax.Array]:
            return state.params, state.optimizer, jnp.zeros_like(norm)

        # A branch, because choosing between new and old array by array copies all of the state on CPUs.
        with jax.named_scope("optimizer"):
            params, optimizer_state, ratio = jax.lax.cond(healthy, take, skip)
        skipped = state.skipped + ~healthy
        rate = jnp.asarray(schedule(state.step - state.skipped), jnp.float32)
        new = TrainState(params, optimizer_state, state.step + 1, skipped, state.key)
        return new, Metrics(loss, norm, ratio, rate, skipped, loads)

    options = training_options()
    compiled = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)
    return CompiledStep(compiled, jax.jit(train_step), bound)


@dataclass(frozen=True)
class CompiledStep:
    """A training step, compiled at its first call.

    Attributes:
        function: (state, batch, loss function) -> (new state, metrics).
        inner: The same as a part of another program, which has its own options and donates as it wants.
        loss_function: The loss, with the arrays that it binds.
    """

    function: Any
    inner: Any
    loss_function: Partial

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take a step: return the new state, in the memory of the old one, and what was measured."""
        inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, batch)))
        return (self.inner if inside else self.function)(state, batch, self.loss_function)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Return the program for a state and a batch, or their shapes and types, before it is compiled."""
        return self.function.lower(state, batch, self.loss_function)


def gradient_of(
    loss_function: LossFunction, params: Params, batch: Batch, key: jax.Array, parts: int
) -> tuple[jax.Array, jax.Array, Any, Params]:
    """Return objective, reported loss, loads and gradient of a batch, computed in so many parts one after the other.

    A part weighs as much as it has labels, so that the mean is over the labels of the whole batch.
    """
    differentiate = jax.value_and_grad(loss_function, has_aux=True)

    def found(batch: Batch, key: jax.Array) -> tuple[Any, jax.Array]:
        (objective, loss), gradient = differentiate(params, batch, key)
        return (objective, loss.mean, loss.loads, gradient), loss.labels

    if parts == 1:
        return found(batch, key)[0]

    def add(sums: tuple[Any, jax.Array], part: tuple[Batch, jax.Array]) -> tuple[tuple[Any, jax.Array], None]:
        means, labels = found(*part)
        return (jax.tree.map(lambda total, mean: total + mean * labels, sums[0], means), sums[1] + labels), None

    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)  # [parts, B / parts, ...]
    keys = jax.random.split(key, parts)
    shapes, _ = jax.eval_shape(found, jax.tree.map(lambda x: x[0], cut), keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (sums, labels), _ = jax.lax.scan(add, (zeros, jnp.float32(0)), (cut, keys))
    return jax.tree.map(lambda x: x / jnp.maximum(labels, 1), sums)


def cast(params: Params, dtype: jnp.dtype) -> Params:
    """Return the parameters in the type to compute in; the master weights stay float32, and so do their gradients.

    Weights of 8 bits stay as they are.
    """

    def is_quantized(part: Any) -> bool:
        return isinstance(part, QuantizedWeight)

    return jax.tree.map(lambda part: part if is_quantized(part) else part.astype(dtype), params, is_leaf=is_quantized)
