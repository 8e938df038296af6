"""Experts and routers: the sorted computation against one that computes every expert for every token."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxformer.ops import Choice, mix_experts, softmax_router
from jaxformer.ops.experts import arrange

R, D, F, E, CHOSEN = 23, 5, 7, 11, 3
# Whom every token is sent to, besides a free choice.
SKEWED = {"an expert without tokens": (1, 2, 3), "all tokens to one": (4, 4, 4), "the last": (10, 9, 8)}


def expert(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ weights["up"] + weights["bias"][None]) @ weights["down"]


def dense(weights: dict[str, jax.Array], x: jax.Array, choice: Choice) -> jax.Array:
    """Every expert for every token, of which the chosen are weighed."""
    everything = jax.vmap(expert, in_axes=(0, None))(weights, x)  # [E, R, D]
    share = jnp.zeros((len(x), len(everything))).at[jnp.arange(len(x))[:, None], choice.experts].add(choice.weights)
    return jnp.einsum("RE,ERD->RD", share, everything)


@pytest.fixture
def weights(rng: np.random.Generator) -> dict[str, jax.Array]:
    shapes = {"up": (E, D, F), "bias": (E, F), "down": (E, F, D)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def assert_equals_dense(weights: Any, x: jax.Array, choice: Choice, size: int | None) -> None:
    def outcome(mix: Any) -> Any:
        def total(weights: Any, x: jax.Array, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
            mixed = mix(weights, x, Choice(choice.experts, shares))
            return jnp.sum(jnp.sin(mixed)), mixed

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(weights, x, choice.weights)

    ours = outcome(lambda *arguments: mix_experts(expert, *arguments, size=size))
    for actual, reference in zip(jax.tree.leaves(ours), jax.tree.leaves(outcome(dense)), strict=True):
        np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-5 * max(1, np.abs(reference).max()))


@pytest.mark.parametrize("size", [1, 4, 64, None])
def test_equals_all_experts_in_value_and_gradient(weights: Any, rng: np.random.Generator, size: int | None) -> None:
    x, logits = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((R, D), (R, E)))
    assert_equals_dense(weights, x, softmax_router(logits, CHOSEN), size)


@pytest.mark.parametrize("experts", SKEWED.values(), ids=SKEWED.keys())
@pytest.mark.parametrize("rows", [1, R])
def test_equals_all_experts_however_skewed(
    weights: Any, rng: np.random.Generator, experts: tuple[int, ...], rows: int
) -> None:
    x, shares = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((rows, D), (rows, CHOSEN)))
    assert_equals_dense(weights, x, Choice(jnp.tile(jnp.array(experts), (rows, 1)), shares), None)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_each_row_has_a_place_in_a_block_of_its_expert(rng: np.random.Generator, size: int) -> None:
    experts = jnp.asarray(np.argsort(rng.normal(size=(R, E)))[:, :CHOSEN])
    layout = arrange(experts, E, size)
    np.testing.assert_array_equal(layout.rows[layout.places], np.arange(R * CHOSEN).reshape(R, CHOSEN))
    np.testing.assert_array_equal(layout.owners[layout.places // size], experts)
    counts = np.bincount(np.ravel(experts), minlength=E)
    assert layout.used == sum(-(-counts // size)) <= len(layout.owners)


def test_no_more_blocks_than_rows_and_experts_need() -> None:
    """The work does not grow with the number of experts beyond a block's padding for each."""
    for count in (8, 64):
        layout = jax.eval_shape(lambda experts, count=count: arrange(experts, count, 16), jnp.zeros((512, 2), int))
        assert len(layout.owners) == 64 + count
    assert len(arrange(jnp.array([[3, 1]]), 64, 1).owners) == 2


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_softmax_router_is_softmax_and_top_k(rng: np.random.Generator, renormalise: bool) -> None:
    """As Mixtral and Qwen3-MoE have it: a softmax over all experts, of which the largest are taken."""
    logits = rng.normal(size=(R, E)).astype(np.float32)
    weights, experts = torch.softmax(torch.tensor(logits), -1).topk(CHOSEN)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
        # gpt-oss: the largest, then a softmax over these.
        late = torch.softmax(torch.tensor(logits).topk(CHOSEN).values, -1)
        np.testing.assert_allclose(late, weights, rtol=1e-6)
    choice = softmax_router(jnp.asarray(logits), CHOSEN, renormalise=renormalise)
    np.testing.assert_array_equal(choice.experts, experts)
    np.testing.assert_allclose(choice.weights, weights, rtol=1e-6)
