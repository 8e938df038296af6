"""The training step: what it computes, what it skips, what it is random in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxformer import Transformer, cross_entropy, decoder_only
from jaxformer.presets import rematerialised
from jaxformer.training import Loss, Metrics, TrainState, cast, init_state, make_train_step

pytestmark = pytest.mark.smoke


def line_loss(params: dict[str, jax.Array], batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, Loss]:
    """Squared error of a line, with noise from the step's key."""
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    error = jnp.square(params["weight"] * batch["x"] + noise - batch["y"]).mean()
    return error, Loss(error, jnp.int32(batch["x"].size))


def take_steps(
    batches: list[dict[str, jax.Array]], seed: int = 0, rate: float = 0.1
) -> tuple[TrainState, list[Metrics]]:
    optimizer = optax.adam(rate)
    step = make_train_step(line_loss, optimizer, lambda count: 0.1 + count)
    state, seen = init_state({"weight": jnp.float32(0.0)}, optimizer, seed), []
    for batch in batches:
        state, metrics = step(state, batch)
        seen.append(metrics)
    return state, seen


def batch(*values: float) -> dict[str, jax.Array]:
    return {"x": jnp.array(values), "y": 3 * jnp.array(values)}


def test_a_step_without_a_finite_loss_is_not_taken() -> None:
    good = [batch(1.0, 2.0), batch(0.5, -1.0)]
    state, metrics = take_steps([good[0], batch(jnp.nan, 1.0), batch(jnp.inf, 1.0)])
    only, _ = take_steps(good[:1])
    assert int(state.skipped) == 2
    assert int(state.step) == 3
    assert [int(m.skipped) for m in metrics] == [0, 1, 2]
    np.testing.assert_array_equal(state.params["weight"], only.params["weight"])
    for ours, expected in zip(jax.tree.leaves(state.optimizer), jax.tree.leaves(only.optimizer), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_the_learning_rate_counts_taken_steps_only() -> None:
    _, metrics = take_steps([batch(1.0), batch(jnp.nan), batch(1.0)])
    np.testing.assert_allclose([m.learning_rate for m in metrics], [0.1, 1.1, 1.1])


def test_the_gradient_norm_is_reported_unclipped() -> None:
    _, metrics = take_steps([batch(1.0, 2.0)])
    key = jax.random.fold_in(jax.random.key(0), 0)
    gradient = jax.grad(lambda w: line_loss({"weight": w}, batch(1.0, 2.0), key)[0])(0.0)
    np.testing.assert_allclose(metrics[0].grad_norm, abs(gradient), rtol=1e-6)


def test_randomness_follows_seed_and_step() -> None:
    _, metrics = take_steps([batch(1.0)] * 2)
    _, again = take_steps([batch(1.0)] * 2)
    _, other = take_steps([batch(1.0)] * 2, seed=1)
    assert [m.loss.item() for m in metrics] == [m.loss.item() for m in again]
    assert metrics[0].loss != other[0].loss
    _, still = take_steps([batch(1.0)] * 2, rate=0.0)
    assert still[0].loss != still[1].loss  # equal parameters and data, another step: another noise


def test_the_state_is_donated() -> None:
    optimizer = optax.sgd(0.1)
    step = make_train_step(line_loss, optimizer, lambda _: 0.1)
    state = init_state({"weight": jnp.float32(0.0)}, optimizer, 0)
    step(state, batch(1.0))
    with pytest.raises(RuntimeError, match="deleted"):
        state.params["weight"].block_until_ready()


def test_low_precision_keeps_float32_masters() -> None:
    def loss(params: dict[str, jax.Array], _: object, key: jax.Array) -> tuple[jax.Array, Loss]:
        weight = cast(params, jnp.bfloat16)["weight"]
        assert weight.dtype == jnp.bfloat16
        return jnp.square(weight - 1).astype(jnp.float32), Loss(jnp.float32(0), jnp.int32(1))

    optimizer = optax.sgd(1e-4)
    state = init_state({"weight": jnp.float32(2.0)}, optimizer, 0)
    state, _ = make_train_step(loss, optimizer, lambda _: 1e-4)(state, None)
    assert state.params["weight"].dtype == jnp.float32
    np.testing.assert_allclose(state.params["weight"], 2 - 2e-4, rtol=1e-7)  # too small a step for bfloat16


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_parts_are_the_whole_batch(parts: int) -> None:
    """Also where the parts have different numbers of labels: the mean is over the labels of all."""

    def loss(params: dict[str, jax.Array], batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, Loss]:
        errors = jnp.square(params["weight"] * batch["x"] - batch["y"]) * batch["real"]
        count = batch["real"].sum()
        mean = errors.sum() / jnp.maximum(count, 1)
        return mean, Loss(mean, count)

    rng = np.random.default_rng(0)
    data = {name: jnp.asarray(rng.normal(size=(6, 5)).astype(np.float32)) for name in ("x", "y")}
    data["real"] = jnp.asarray(np.arange(5)[None] < np.array([5, 1, 4, 2, 0, 3])[:, None])
    optimizer, seen = optax.sgd(0.1), []
    for accumulate in (1, parts):
        step = make_train_step(loss, optimizer, lambda _: 0.1, accumulate=accumulate)
        seen.append(step(init_state({"weight": jnp.float32(0.7)}, optimizer, 0), data))
    (whole, expected), (cut, metrics) = seen
    np.testing.assert_allclose(cut.params["weight"], whole.params["weight"], rtol=1e-6)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, expected.grad_norm, rtol=1e-6)


def test_the_update_ratio_compares_the_change_with_the_weights() -> None:
    optimizer = optax.sgd(0.5)
    step = make_train_step(line_loss, optimizer, lambda _: 0.5)
    before = init_state({"weight": jnp.float32(2.0)}, optimizer, 0)
    after, metrics = step(before, batch(1.0))
    np.testing.assert_allclose(metrics.update_ratio, abs(after.params["weight"] - 2.0) / 2.0, rtol=1e-6)
    assert step(after, batch(jnp.nan))[1].update_ratio == 0


@pytest.mark.parametrize("parts", [1, 2])
def test_loads_are_reported_and_parameters_adjusted_by_them(parts: int) -> None:
    """Unless the step is not taken: then everything stays."""

    def loss(params: dict[str, jax.Array], batch: jax.Array, _: jax.Array) -> tuple[jax.Array, Loss]:
        mean = jnp.mean(params["weight"] * batch)
        return mean, Loss(mean, jnp.int32(batch.size), {1: jnp.array([jnp.mean(batch > 1), jnp.mean(batch <= 1)])})

    def adjust(params: dict[str, jax.Array], loads: dict[int, jax.Array]) -> dict[str, jax.Array]:
        return params | {"correction": params["correction"] - loads[1]}

    optimizer = optax.sgd(0.5)
    step = make_train_step(loss, optimizer, lambda _: 0.5, accumulate=parts, adjust=adjust)
    start = {"weight": jnp.float32(1), "correction": jnp.zeros(2)}
    state, metrics = step(init_state(start, optimizer, 0), jnp.array([[0.0, 2.0], [3.0, 5.0]]))
    np.testing.assert_allclose(metrics.loads[1], [0.75, 0.25])
    np.testing.assert_allclose(state.params["correction"], [-0.75, -0.25])
    np.testing.assert_allclose(state.params["weight"], 1 - 0.5 * 2.5)
    state, _ = step(state, jnp.array([[0.0, 2.0], [jnp.nan, 5.0]]))
    np.testing.assert_allclose(state.params["correction"], [-0.75, -0.25])


def test_rematerialized_blocks_take_less_memory() -> None:
    """What a block computes is not kept for the gradient, on CPUs too; loss and gradient stay as they are."""
    found = {}
    for rematerialize in (False, True):
        config = decoder_only(32, length=64, dim=32, layers=6, heads=2, dropout=0.1)
        config = rematerialised(config) if rematerialize else config
        graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(0)))

        def loss(params: Any, batch: jax.Array, key: jax.Array, graphdef: Any = graphdef) -> Any:
            logits = nnx.merge(graphdef, params)(batch, dropout_key=key)
            mean = cross_entropy(logits, batch)
            return mean, Loss(mean, jnp.float32(batch.size))

        optimizer = optax.sgd(1e-2)
        step, tokens = make_train_step(loss, optimizer, optax.constant_schedule(1e-2)), jnp.ones((16, 64), int)
        state = init_state(nnx.to_pure_dict(params), optimizer, 0)
        memory = step.lower(jax.eval_shape(lambda state: state, state), tokens).compile().memory_analysis()
        _, metrics = step(state, tokens)
        found[rematerialize] = (memory.temp_size_in_bytes, metrics.loss.item(), metrics.grad_norm.item())
    assert found[True][0] < found[False][0] / 2
    np.testing.assert_allclose(found[True][1:], found[False][1:], rtol=1e-6)


def test_a_step_is_part_of_other_programs() -> None:
    """Under `jax.jit`, in a `lax.scan` over batches and for several states at once by `jax.vmap`."""
    batches = [{"x": jnp.arange(4.0) + n, "y": jnp.ones(4)} for n in range(3)]
    expected, metrics = take_steps(batches)
    optimizer = optax.adam(0.1)
    step = make_train_step(line_loss, optimizer, lambda count: 0.1 + count)
    state = init_state({"weight": jnp.float32(0.0)}, optimizer, 0)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    last, seen = jax.jit(lambda state: jax.lax.scan(step, state, stacked))(state)
    np.testing.assert_allclose(last.params["weight"], expected.params["weight"], rtol=1e-6)
    np.testing.assert_allclose(seen.loss, [each.loss for each in metrics], rtol=1e-6)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    both, _ = jax.vmap(step, in_axes=(0, None))(states, batches[0])
    np.testing.assert_array_equal(both.params["weight"][0], both.params["weight"][1])
