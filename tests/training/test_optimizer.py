"""Schedules against the paper's formula, and the optimiser against torch's AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxformer import InputError
from jaxformer.training import OptimizerConfig, learning_rates, make_optimizer
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
