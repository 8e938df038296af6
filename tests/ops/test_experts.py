"""Experts and routers: the sorted computation against one that computes every expert for every token."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compilation import FUSED
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from jaxformer.ops import TopK, mix_experts, sigmoid_router, softmax_router
from jaxformer.ops.experts import sort_by_expert

R, D, F, E, CHOSEN = 23, 5, 7, 11, 3
# Whom every token is sent to, besides a free choice.
SKEWED = {"an expert without tokens": (1, 2, 3), "all tokens to one": (4, 4, 4), "the last": (10, 9, 8)}


def expert(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ weights["up"] + weights["bias"][None]) @ weights["down"]


def dense(weights: dict[str, jax.Array], x: jax.Array, choice: TopK) -> jax.Array:
    """Every expert for every token, of which the chosen are weighed."""
    everything = jax.vmap(expert, in_axes=(0, None))(weights, x)  # [E, R, D]
    share = jnp.zeros((len(x), len(everything))).at[jnp.arange(len(x))[:, None], choice.experts].add(choice.weights)
    return jnp.einsum("RE,ERD->RD", share, everything)


@pytest.fixture
def weights(rng: np.random.Generator) -> dict[str, jax.Array]:
    shapes = {"up": (E, D, F), "bias": (E, F), "down": (E, F, D)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def assert_equals_dense(weights: Any, x: jax.Array, choice: TopK, size: int | None) -> None:
    def outcome(mix: Any) -> Any:
        def total(weights: Any, x: jax.Array, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
            mixed = mix(weights, x, TopK(choice.experts, shares))
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
    assert_equals_dense(weights, x, TopK(jnp.tile(jnp.array(experts), (rows, 1)), shares), None)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_each_row_has_a_place_in_a_block_of_its_expert(rng: np.random.Generator, size: int) -> None:
    experts = jnp.asarray(np.argsort(rng.normal(size=(R, E)))[:, :CHOSEN])
    plan = sort_by_expert(experts, E, size)
    np.testing.assert_array_equal(plan.rows[plan.row_index], np.arange(R * CHOSEN).reshape(R, CHOSEN))
    np.testing.assert_array_equal(plan.block_expert[plan.row_index // size], experts)
    counts = np.bincount(np.ravel(experts), minlength=E)
    assert plan.used == sum(-(-counts // size)) <= len(plan.block_expert)


def test_no_more_blocks_than_rows_and_experts_need() -> None:
    """The work does not grow with the number of experts beyond a block's padding for each."""
    for count in (8, 64):
        plan = jax.eval_shape(lambda experts, count=count: sort_by_expert(experts, count, 16), jnp.zeros((512, 2), int))
        assert len(plan.block_expert) == 64 + count
    assert len(sort_by_expert(jnp.array([[3, 1]]), 64, 1).block_expert) == 2


@pytest.mark.parametrize("backward", [False, True])
def test_compiled_work_does_not_grow_with_the_experts(backward: bool) -> None:
    """XLA counts the body of the loop once, which is one block of one expert: so much for 8 as for 64 of them."""
    rows, dim, inner, size = 512, 32, 48, 16

    def flops(count: int) -> float:
        shapes = {"up": (count, dim, inner), "bias": (count, inner), "down": (count, inner, dim)}
        weights = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        x, logits = (jax.ShapeDtypeStruct((rows, width), jnp.float32) for width in (dim, count))

        def mixed(weights: Any, x: jax.Array, logits: jax.Array) -> jax.Array:
            return mix_experts(expert, weights, x, softmax_router(logits, 2), size=size).sum()

        program = jax.jit(jax.grad(mixed, (0, 1)) if backward else mixed)
        fused = program.lower(weights, x, logits).compile(FUSED)
        return fused.cost_analysis()["flops"]

    block = 2 * 2 * size * dim * inner * (4 if backward else 1)
    whole = rows * 2 // size * block  # what all blocks of 8 or 64 experts take together, but for padding
    few, many = flops(8), flops(64)
    assert block < few
    assert many - few < whole / 20  # a router's softmax over more experts, and zeros where their gradients will be


@pytest.mark.parametrize("renormalize", [True, False])
def test_the_softmax_router_is_softmax_and_top_k(rng: np.random.Generator, renormalize: bool) -> None:
    """As Mixtral and Qwen3-MoE have it: a softmax over all experts, of which the largest are taken."""
    logits = rng.normal(size=(R, E)).astype(np.float32)
    weights, experts = torch.softmax(torch.tensor(logits), -1).topk(CHOSEN)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
        # gpt-oss: the largest, then a softmax over these.
        late = torch.softmax(torch.tensor(logits).topk(CHOSEN).values, -1)
        np.testing.assert_allclose(late, weights, rtol=1e-6)
    choice = softmax_router(jnp.asarray(logits), CHOSEN, renormalize=renormalize)
    np.testing.assert_array_equal(choice.experts, experts)
    np.testing.assert_allclose(choice.weights, weights, rtol=1e-6)


# Twelve experts in four groups, or in none; all that the two routers of DeepSeek can be set to.
GROUPED = [{"n_group": 4, "topk_group": 2}, {"n_group": 3, "topk_group": 1}, {"n_group": 1, "topk_group": 1}]


def deepseek(router: Any, states: torch.Tensor, weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What a router of transformers chooses and weighs, in the order of the experts."""
    with torch.no_grad():
        router.weight.copy_(weight)
        _, weights, experts = router(states)
    order = experts.argsort(-1)
    return experts.gather(-1, order).numpy(), weights.gather(-1, order).numpy()


def ordered(choice: TopK) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(choice.experts, axis=-1)
    return np.take_along_axis(np.asarray(choice.experts), order, -1), np.take_along_axis(
        np.asarray(choice.weights), order, -1
    )


@pytest.mark.parametrize("groups", GROUPED)
def test_the_routers_of_deepseek(rng: np.random.Generator, groups: dict[str, int]) -> None:
    """V2: softmax, the groups with the best expert. V3: corrected sigmoids, the groups with the two best."""
    states, weight = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in ((R, D), (12, D)))
    logits, correction = jnp.asarray(states @ weight.T), rng.normal(size=12).astype(np.float32)
    settings = {
        "num_experts_per_tok": 3,
        "hidden_size": D,
        "num_attention_heads": 1,
        "routed_scaling_factor": 1.7,
        **groups,
    }
    ours = {"groups": groups["n_group"], "top_k_groups": groups["topk_group"], "scale": 1.7}
    method = "greedy" if groups["n_group"] == 1 else "group_limited_greedy"
    router = DeepseekV2TopkRouter(DeepseekV2Config(n_routed_experts=12, topk_method=method, **settings))
    expected, found = deepseek(router, states, weight), ordered(softmax_router(logits, 3, renormalize=False, **ours))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=2e-6)
    for renormalize in (True, False):
        config = DeepseekV3Config(n_routed_experts=12, norm_topk_prob=renormalize, **settings)
        router = DeepseekV3TopkRouter(config)
        router.e_score_correction_bias.copy_(torch.tensor(correction))
        expected = deepseek(router, states, weight)
        found = ordered(sigmoid_router(logits, jnp.asarray(correction), 3, renormalize=renormalize, **ours))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=2e-6)


def test_the_correction_has_no_gradient(rng: np.random.Generator) -> None:
    logits, correction = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((R, E), (E,)))

    def total(logits: jax.Array, correction: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(jnp.arange(CHOSEN)[None] + sigmoid_router(logits, correction, CHOSEN).weights))

    d_logits, d_correction = jax.grad(total, (0, 1))(logits, correction)
    assert np.abs(d_logits).max() > 1e-3
    assert not d_correction.any()
