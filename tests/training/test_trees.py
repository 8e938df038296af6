"""What trains takes parameters as a module, an `nnx.State` or nested dictionaries, and does the same to each."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxformer import Transformer
from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    LearnedPositions,
    MoEConfig,
    RelativePositions,
    SigmoidRouter,
    StackConfig,
    TransformerConfig,
)
from jaxformer.layers.variables import Frozen, RouterBias, freeze, parameter_path
from jaxformer.training import (
    Loss,
    OptimizerConfig,
    init_state,
    learning_rates,
    make_optimizer,
    make_train_step,
    update_router_biases,
)
from jaxformer.training.optimizer import decay_mask

ATTENTION, DENSE = AttentionConfig(2, bias=True), FeedForwardConfig(12)
MIXTURE = BlockConfig(ATTENTION, MoEConfig(4, 2, DENSE, router=SigmoidRouter()))
DECODER = StackConfig(EmbeddingConfig(11), (BlockConfig(ATTENTION, DENSE), MIXTURE), LearnedPositions(7))
ENCODER = StackConfig(EmbeddingConfig(11, types=2), (BlockConfig(ATTENTION, DENSE),), RelativePositions())
TREES: dict[str, Callable[[Transformer], Any]] = {
    "module": lambda model: model,
    "state": nnx.state,
    "dictionaries": lambda model: nnx.to_pure_dict(nnx.state(model)),
}


def make_model(**stacks: StackConfig) -> Transformer:
    return Transformer(TransformerConfig(8, **stacks), rngs=nnx.Rngs(0))


def by_name(tree: Any) -> dict[tuple, Any]:
    return {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_names_are_the_same_in_every_tree() -> None:
    model = make_model(decoder=DECODER)
    names = [set(by_name(tree(model))) for tree in TREES.values()]
    assert names[0] == names[1] == names[2]
    assert ("decoder", "blocks", 0, "attention", "value", "weight") in names[0]
    assert not any("value" in name[-1:] for name in names[0])


@pytest.mark.parametrize("kind", TREES)
def test_only_matrices_and_embeddings_decay(kind: str) -> None:
    found = by_name(decay_mask(TREES[kind](make_model(encoder=ENCODER)))) | by_name(
        decay_mask(TREES[kind](make_model(decoder=DECODER)))
    )
    kept = {path[-1] for path, decays in found.items() if not decays}
    assert kept == {"bias", "scale", "router_bias", "token_type_embedding"}
    assert {path[-1] for path, decays in found.items() if decays} == {"weight", "embedding"}
    assert not found["encoder", "positions", "bias"]


@pytest.mark.parametrize("kind", TREES)
def test_a_step_is_the_same_in_every_tree(kind: str) -> None:
    """Compared with dictionaries: the optimizer with decay, and the biases of routers moved against their load."""

    def trained(tree: Callable[[Transformer], Any]) -> dict[tuple, Any]:
        model = make_model(decoder=DECODER)
        graphdef = nnx.graphdef(model)
        config = OptimizerConfig(weight_decay=0.3, warmup_steps=1)
        params, optimizer = tree(model), make_optimizer(config, 9)

        def loss(params: Any, tokens: jax.Array, key: jax.Array) -> tuple[jax.Array, Loss]:
            model = params if isinstance(params, nnx.Module) else nnx.merge(graphdef, params)
            value = jnp.mean(jnp.square(model(tokens)))
            return value, Loss(value, jnp.float32(tokens.size), {1: jnp.array([0.6, 0.2, 0.1, 0.1])})

        def adjust(params: Any, loads: Any) -> Any:
            return update_router_biases(params, loads, 0.01)

        step = make_train_step(loss, optimizer, learning_rates(config, 9), adjust=adjust)
        state = init_state(params, optimizer, 0)
        for _ in range(3):
            state, _ = step(state, jnp.array([[1, 2, 3], [4, 5, 6]]))
        return by_name(state.params)

    ours, expected = trained(TREES[kind]), trained(TREES["dictionaries"])
    assert ours.keys() == expected.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-6, err_msg=str(path))
    np.testing.assert_allclose(
        ours["decoder", "blocks", 1, "feed_forward", "router_bias"], [-0.03, 0.03, 0.03, 0.03], atol=1e-6
    )


def test_flax_optimizer_updates_parameters_only() -> None:
    model = freeze(make_model(decoder=DECODER), lambda path: path[0] == "embedding")
    assert isinstance(model.embedding.embedding, Frozen)
    assert isinstance(model.decoder.blocks[1].feed_forward.router_bias, RouterBias)
    before = jax.tree.map(jnp.copy, by_name(model))
    optimizer = nnx.Optimizer(model, optax.sgd(1.0), wrt=nnx.Param)
    trained = nnx.DiffState(0, nnx.Param)
    gradient = nnx.grad(lambda model: jnp.sum(jnp.square(model(jnp.array([[1, 2, 3]])))), argnums=trained)(model)
    optimizer.update(model, gradient)
    same = {path for path, leaf in by_name(model).items() if np.array_equal(leaf, before[path])}
    assert {("embedding", "embedding"), ("decoder", "blocks", 1, "feed_forward", "router_bias")} <= same
    assert ("decoder", "positions", "embedding") not in same


@pytest.mark.parametrize("tree", [lambda model: model, nnx.state], ids=["module", "state"])
def test_our_optimizer_leaves_frozen_parameters_alone(tree: Callable[[Transformer], Any]) -> None:
    """Neither a gradient nor decay moves them, nor do they count in the norm that is clipped."""
    model = freeze(make_model(decoder=DECODER), lambda path: path[0] == "embedding")
    params, optimizer = tree(model), make_optimizer(OptimizerConfig(weight_decay=0.5, warmup_steps=1), 9)
    gradient = jax.tree.map(jnp.ones_like, params)
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    before, after = by_name(model), by_name(params)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert set(before) - moved == {("embedding", "embedding"), ("decoder", "blocks", 1, "feed_forward", "router_bias")}


def test_a_shared_parameter_is_frozen_wherever_it_is() -> None:
    """And any module will do: parameters without letters, with metadata of their own, in lists."""

    class Two(nnx.Module):
        def __init__(self) -> None:
            shared = nnx.Param(jnp.ones(3), note="mine")
            self.first, self.second = nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 3, rngs=nnx.Rngs(1))
            self.first.bias = self.second.bias = shared
            self.several = nnx.List([nnx.Param(jnp.zeros(2)), nnx.Param(jnp.zeros(2))])

    frozen = freeze(Two(), lambda path: path == ("first", "bias") or path == ("several", 1))
    assert isinstance(frozen.first.bias, Frozen)
    assert frozen.first.bias is frozen.second.bias
    assert frozen.first.bias.note == "mine"
    assert [type(each) for each in frozen.several] == [nnx.Param, Frozen]


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu", "quick_gelu", "tanh"])
def test_models_can_be_pickled_and_copied(activation: str) -> None:
    block = BlockConfig(ATTENTION, FeedForwardConfig(12, activation))
    model = make_model(decoder=StackConfig(EmbeddingConfig(11), (block,), LearnedPositions(7)))
    tokens = jnp.array([[1, 2, 3]])
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(other(tokens), model(tokens))


def test_every_variable_has_a_letter_for_each_axis() -> None:
    for model in (make_model(decoder=DECODER), make_model(encoder=ENCODER)):
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            assert len(variable.axes) == variable[...].ndim, path
    experts = make_model(decoder=DECODER).decoder.blocks[1].feed_forward.experts
    assert (experts.up.weight.axes, experts.down.bias.axes) == ("EDF", "ED")
