"""Losses that balance experts, by hand; and a skewed router that is driven to balance without a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import (
    balance_loss,
    communication_loss,
    device_balance_loss,
    expert_load,
    router_z_loss,
    sigmoid_router,
    update_router_bias,
)

# Three tokens, four experts on two devices, two experts a token.
PROBABILITIES = jnp.array([[0.4, 0.3, 0.2, 0.1], [0.5, 0.1, 0.3, 0.1], [0.3, 0.3, 0.2, 0.2]])
EXPERTS = jnp.array([[0, 1], [0, 2], [1, 0]])
MEANS = (0.4, 0.7 / 3, 0.7 / 3, 0.4 / 3)


def test_loads() -> None:
    np.testing.assert_allclose(expert_load(EXPERTS, 4), [3 / 6, 2 / 6, 1 / 6, 0])


def test_expert_level() -> None:
    expected = 4 / 6 * (3 * MEANS[0] + 2 * MEANS[1] + 1 * MEANS[2])
    assert balance_loss(PROBABILITIES, EXPERTS) == pytest.approx(expected)
    even = jnp.full((4, 4), 0.25)
    assert balance_loss(even, jnp.arange(4)[:, None]) == pytest.approx(1)
    assert balance_loss(jnp.eye(4)[jnp.zeros(5, int)], jnp.zeros((5, 1), int)) == pytest.approx(4)


def test_its_gradient_takes_from_the_busy_and_not_through_counts() -> None:
    gradient = jax.grad(balance_loss)(PROBABILITIES, EXPERTS)
    np.testing.assert_allclose(gradient, np.tile(4 * np.array([3, 2, 1, 0]) / 6 / 3, (3, 1)), rtol=1e-6)


def test_device_level() -> None:
    loads = 4 * np.array([(3 + 2) / 6 / 2, (1 + 0) / 6 / 2])
    expected = loads[0] * (MEANS[0] + MEANS[1]) + loads[1] * (MEANS[2] + MEANS[3])
    assert device_balance_loss(PROBABILITIES, EXPERTS, 2) == pytest.approx(expected)


def test_communication() -> None:
    """All three tokens go to the first device, one to the second: two experts on one device are one message."""
    heard = 2 / (1 * 3) * np.array([3, 1])
    expected = heard[0] * (MEANS[0] + MEANS[1]) + heard[1] * (MEANS[2] + MEANS[3])
    assert communication_loss(PROBABILITIES, EXPERTS, 2, 1) == pytest.approx(expected)


def test_router_z() -> None:
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [0.5, 0.25, 0.25]]))
    assert router_z_loss(logits) == pytest.approx((np.log(8) ** 2 + 0) / 2)


def test_a_correction_follows_the_load() -> None:
    moved = update_router_bias(jnp.zeros(3), jnp.array([0.6, 0.3, 0.1]), 0.01)
    np.testing.assert_allclose(moved, [-0.01, 0.01, 0.01], rtol=1e-6)


def test_a_skewed_load_is_driven_to_balance_without_a_loss() -> None:
    """Two experts are far more attractive to all tokens. With a correction all hear as much, without they never do."""
    E, chosen = 8, 2
    skew = jnp.array([2.0, 1.5, 0, 0, 0, 0, -0.5, -1.0])

    def load(correction: jax.Array, step: int) -> jax.Array:
        logits = skew[None] + jax.random.normal(jax.random.key(step), (512, E))
        return expert_load(sigmoid_router(logits, correction, chosen).experts, E)

    correction = jnp.zeros(E)
    for step in range(150):
        correction = update_router_bias(correction, load(correction, step), 0.005)
    fresh = [np.mean([load(each, step) for step in range(200, 210)], axis=0) for each in (jnp.zeros(E), correction)]
    without, balanced = (each.max() * E for each in fresh)
    assert without > 2.5
    assert balanced < 1.15
    assert fresh[1].min() * E > 0.85
