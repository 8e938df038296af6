"""The whole model against torch.nn.Transformer: logits, loss, every gradient, three steps of AdamW."""

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch_reference import (
    SOURCE_VOCAB,
    VOCAB,
    TorchTransformer,
    flat,
    gradients_of,
    our_config,
    parameters_of,
    with_parameters,
)

from jaxformer import Transformer, cross_entropy

pytestmark = pytest.mark.optimised  # and in every run, compiled quickly

PAD = -100
SHAPES = [("post", "relu"), ("pre", "gelu")]


def make_batch() -> dict[str, np.ndarray]:
    """Three pairs of sequences of unlike lengths, right-padded."""
    rng = np.random.default_rng(1)
    source_lengths, target_lengths = np.array([7, 3, 5]), np.array([5, 4, 2])
    source_valid = np.arange(7) < source_lengths[:, None]
    target_valid = np.arange(5) < target_lengths[:, None]
    return {
        "source": rng.integers(0, SOURCE_VOCAB, (3, 7)),
        "source_valid": source_valid,
        "target": rng.integers(0, VOCAB, (3, 5)),
        "target_valid": target_valid,
        "labels": np.where(target_valid, rng.integers(0, VOCAB, (3, 5)), PAD),
    }


def our_logits(model: Transformer, batch: dict[str, np.ndarray]) -> jax.Array:
    return model(
        batch["source"], batch["target"], inputs_mask=batch["source_valid"], targets_mask=batch["target_valid"]
    )


def our_loss(model: Transformer, batch: dict[str, np.ndarray]) -> jax.Array:
    return cross_entropy(our_logits(model, batch), batch["labels"])


def torch_logits(model: TorchTransformer, batch: dict[str, np.ndarray]) -> torch.Tensor:
    tensors = {name: torch.tensor(array) for name, array in batch.items()}
    return model(tensors["source"], tensors["target"], ~tensors["source_valid"], ~tensors["target_valid"])


def torch_loss(model: TorchTransformer, batch: dict[str, np.ndarray]) -> torch.Tensor:
    labels = torch.tensor(batch["labels"])
    return torch.nn.functional.cross_entropy(torch_logits(model, batch).flatten(0, 1), labels.flatten())


@pytest.fixture(
    params=[SHAPES[0], pytest.param(SHAPES[1], marks=pytest.mark.slow)], ids=["-".join(shape) for shape in SHAPES]
)
def pair(request: pytest.FixtureRequest) -> tuple[TorchTransformer, Transformer]:
    """The reference and ours, with the same parameters."""
    torch.manual_seed(2)
    reference = TorchTransformer(*request.param)
    return reference, with_parameters(our_config(*request.param), parameters_of(reference))


def test_logits_and_loss_agree(pair: tuple[TorchTransformer, Transformer]) -> None:
    reference, model = pair
    batch = make_batch()
    expected = torch_logits(reference, batch).detach().numpy()
    actual = np.asarray(jax.jit(our_logits)(model, batch))
    real = batch["target_valid"]
    bound = 1e-5 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(actual[real], expected[real], rtol=0, atol=bound)
    np.testing.assert_allclose(jax.jit(our_loss)(model, batch), torch_loss(reference, batch).item(), rtol=1e-6)


def test_every_gradient_agrees(pair: tuple[TorchTransformer, Transformer]) -> None:
    reference, model = pair
    batch = make_batch()
    torch_loss(reference, batch).backward()
    expected, actual = gradients_of(reference), flat(jax.jit(jax.grad(our_loss))(model, batch))
    for name, gradient in expected.items():
        if name.endswith("key.bias"):  # zero by mathematics: softmax ignores a shift that all keys share
            bound = 1e-7
        else:
            bound = 1e-5 * np.abs(gradient).max()
            assert bound > 0
        np.testing.assert_allclose(actual[name], gradient, rtol=0, atol=bound, err_msg=name)


def adamw_steps(
    reference: TorchTransformer, model: Transformer, batch: dict[str, np.ndarray], count: int
) -> Transformer:
    """Train both for a few steps of AdamW and return ours."""
    torch_optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, eps=1e-5, weight_decay=0.01)
    optimizer = optax.adamw(1e-3, eps=1e-5, weight_decay=0.01)
    state = optimizer.init(nnx.state(model))

    @jax.jit
    def step(model: Transformer, state: optax.OptState) -> tuple[Transformer, optax.OptState]:
        graphdef, params = nnx.split(model)
        gradient = nnx.state(jax.grad(our_loss)(model, batch))
        updates, state = optimizer.update(gradient, state, params)
        return nnx.merge(graphdef, optax.apply_updates(params, updates)), state

    for _ in range(count):
        torch_optimizer.zero_grad()
        torch_loss(reference, batch).backward()
        torch_optimizer.step()
        model, state = step(model, state)
    return model


@pytest.mark.slow
def test_three_steps_of_adamw_stay_together(pair: tuple[TorchTransformer, Transformer]) -> None:
    reference, model = pair
    batch = make_batch()
    model = adamw_steps(reference, model, batch, 3)
    for name, expected in parameters_of(reference).items():
        np.testing.assert_allclose(flat(model)[name], expected, rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(jax.jit(our_loss)(model, batch), torch_loss(reference, batch).item(), rtol=1e-5)
