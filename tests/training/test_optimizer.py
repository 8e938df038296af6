"""Schedules against the paper's formula, and the optimiser against torch's AdamW."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxformer import InputError
from jaxformer.training import OptimizerConfig, averaged, learning_rates, make_optimizer
from jaxformer.training.optimizer import decay_mask


def test_inverse_square_root_is_equation_3() -> None:
    dim, warmup = 512, 40
    peak = (dim * warmup) ** -0.5
    schedule = learning_rates(OptimizerConfig(peak, warmup, "inverse-sqrt"), steps=1000)
    steps = np.array([1, 2, 20, 39, 40, 41, 160, 999])
    expected = dim**-0.5 * np.minimum(steps**-0.5, steps * warmup**-1.5)
    np.testing.assert_allclose([schedule(step) for step in steps], expected, rtol=1e-6)


def test_cosine_rises_linearly_and_ends_at_zero() -> None:
    schedule = learning_rates(OptimizerConfig(2e-3, 10, "cosine"), steps=110)
    np.testing.assert_allclose([schedule(step) for step in (0, 5, 10, 60, 110)], [0, 1e-3, 2e-3, 1e-3, 0], atol=1e-9)


def test_steps_equal_torch_adamw_behind_a_clipped_gradient(rng: np.random.Generator) -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=3, schedule="cosine", weight_decay=0.2, clip_norm=1.0)
    shapes = {"linear": {"weight": (3, 5), "bias": (7, 2)}, "norm": {"scale": (5,)}}
    start = jax.tree.map(
        lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    tensors = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in jax.tree.leaves(start)]
    decays = [0.2 if decays else 0.0 for decays in jax.tree.leaves(decay_mask(start))]
    assert decays == [0.0, 0.2, 0.0]
    groups = [{"params": [tensor], "weight_decay": decay} for tensor, decay in zip(tensors, decays, strict=True)]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)
    optimizer, schedule = make_optimizer(config, 9), learning_rates(config, 9)
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    for step in range(6):
        gradients = [rng.normal(size=tensor.shape).astype(np.float32) for tensor in tensors]
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        for group in reference.param_groups:
            group["lr"] = float(schedule(step))
        reference.step()
        tree = jax.tree.unflatten(jax.tree.structure(params), [jnp.asarray(gradient) for gradient in gradients])
        updates, state = optimizer.update(tree, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    for ours, theirs in zip(jax.tree.leaves(params), tensors, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("steps", "warmup"), [(800, 100), (4000, 100), (799, 99), (40, 5), (7, 1), (1, 1)])
def test_a_warm_up_takes_100_steps_but_at_most_an_eighth_of_all(steps: int, warmup: int) -> None:
    assert OptimizerConfig().warmup(steps) == warmup
    rates = [float(learning_rates(OptimizerConfig(), steps)(step)) for step in range(steps)]
    assert int(np.argmax(rates)) == min(warmup, steps - 1)


def test_a_warm_up_that_is_asked_for_is_taken() -> None:
    assert OptimizerConfig(warmup_steps=100).warmup(40) == 100


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"learning_rate": 1e300},
        {"warmup_steps": 2**31},
        {"clip_norm": float("nan")},
        {"warmup_steps": 0},
        {"clip_norm": -1.0},
        {"weight_decay": -0.1},
        {"weight_decay": float("nan")},
        {"ema": 1.0},
        {"ema": -0.1},
    ],
)
def test_useless_values_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        OptimizerConfig(**settings)


def test_a_warm_up_can_be_a_share_of_all_steps() -> None:
    assert OptimizerConfig(warmup_ratio=0.25).warmup(8000) == 2000
    assert OptimizerConfig(warmup_ratio=0.25).warmup(1) == 1
    assert OptimizerConfig(warmup_steps=7, warmup_ratio=0.25).warmup(8000) == 7
    with pytest.raises(InputError, match="warmup_ratio must be above 0 and below 1"):
        OptimizerConfig(warmup_ratio=1.0)


def test_wsd_stays_at_its_peak_and_falls_over_the_last_fifth() -> None:
    schedule = learning_rates(OptimizerConfig(2e-3, 10, "wsd"), steps=100)
    found = [schedule(step) for step in (0, 5, 10, 50, 80, 90, 100)]
    np.testing.assert_allclose(found, [0, 1e-3, 2e-3, 2e-3, 2e-3, 1e-3, 0], atol=1e-9)
    for steps in (1, 2, 5, 11):  # a short run has its warm-up and an end
        rates = [float(learning_rates(OptimizerConfig(schedule="wsd"), steps)(step)) for step in range(steps)]
        assert np.isfinite(rates).all()


def weights(rng: np.random.Generator) -> dict[str, Any]:
    """Parameters of every shape that a model has."""
    shapes = {
        "embedding": {"embedding": (16, 8)},
        "decoder": {
            "blocks": {
                0: {
                    "attention": {"query": {"weight": (8, 2, 4), "bias": (2, 4)}, "output": {"weight": (2, 4, 8)}},
                    "feed_forward": {"experts": {"up": {"weight": (3, 8, 12)}}},
                    "norm": {"scale": (8,)},
                }
            }
        },
        "head": {"output": {"weight": (8, 16)}},
    }
    return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes, is_leaf=is_shape)


def is_shape(part: Any) -> bool:
    """Whether a part of a tree is the shape of an array."""
    return isinstance(part, tuple)


def first_update(config: OptimizerConfig, params: Any, gradient: Any) -> Any:
    """The update of the first step whose learning rate is 1, without weight decay."""
    config = dataclasses.replace(config, learning_rate=1.0, warmup_steps=1, weight_decay=0.0, schedule="wsd")
    optimizer = make_optimizer(config, 100)
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    return optimizer.update(gradient, state, params)[0]


def test_muon_makes_updates_of_matrices_orthogonal(rng: np.random.Generator) -> None:
    """Singular values of an update are close together, whatever those of the gradient are; heads are one matrix."""
    params, gradient = weights(rng), weights(rng)
    block = first_update(OptimizerConfig(optimizer="muon"), params, gradient)["decoder"]["blocks"][0]
    found = {
        "query": (block["attention"]["query"]["weight"].reshape(8, 8), 8),
        "output": (block["attention"]["output"]["weight"].reshape(8, 8), 8),
        "experts": (block["feed_forward"]["experts"]["up"]["weight"], 12),
    }
    for name, (update, longest) in found.items():
        values = np.linalg.svd(update, compute_uv=False) / (0.2 * np.sqrt(longest))
        assert (values > 0.5).all(), name
        assert (values < 1.3).all(), name
    adam = first_update(OptimizerConfig(), params, gradient)
    ours = first_update(OptimizerConfig(optimizer="muon"), params, gradient)
    for name in ("embedding", "head"):  # by Adam, with Nesterov's momentum
        for update, other in zip(*map(jax.tree.leaves, (ours[name], adam[name])), strict=True):
            np.testing.assert_array_equal(np.sign(update), np.sign(other))
            np.testing.assert_allclose(update, other, rtol=0.2)


def test_adafactor_keeps_vectors_in_place_of_matrices() -> None:
    params = {"blocks": {"up": {"weight": jnp.zeros((256, 512))}}}
    sizes = {
        kind: sum(
            leaf.size for leaf in jax.tree.leaves(make_optimizer(OptimizerConfig(optimizer=kind), 9).init(params))
        )
        for kind in ("adamw", "adafactor")
    }
    assert sizes["adamw"] >= 2 * 256 * 512
    assert sizes["adafactor"] < 2 * (256 + 512)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_every_optimizer_descends(rng: np.random.Generator, kind: Any) -> None:
    """A quadratic falls, whatever the scale of its gradient, and weights that decay shrink where nothing pulls."""
    config = OptimizerConfig(0.05, 1, "wsd", optimizer=kind, weight_decay=0.1)
    params, target = weights(rng), weights(rng)
    optimizer = make_optimizer(config, 60)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            return optax.tree.norm(optax.tree.sub(params, target)) ** 2

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2


def test_a_running_mean_follows_the_weights(rng: np.random.Generator) -> None:
    config = OptimizerConfig(0.1, 1, "wsd", ema=0.9)
    optimizer = make_optimizer(config, 100)
    params = {"weight": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    state, mean = optimizer.init(params), np.asarray(params["weight"])
    assert averaged(params, make_optimizer(OptimizerConfig(), 9).init(params)) is params
    for number in range(20):
        gradient = {"weight": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        kept = min(0.9, (1 + number) / (10 + number))
        mean = kept * mean + (1 - kept) * np.asarray(params["weight"])
    np.testing.assert_allclose(averaged(params, state)["weight"], mean, rtol=1e-5)
    assert not np.allclose(params["weight"], mean)
