"""Cross-entropy against PyTorch, values and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial

from jaxformer import InputError
from jaxformer.ops import chunked_cross_entropy, cross_entropy, token_cross_entropy

B, T, V = 5, 7, 11


@pytest.fixture
def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the size that training ends with, and labels of which a third are ignored."""
    logits = 5 * rng.normal(size=(B, T, V)).astype(np.float32)
    labels = rng.integers(0, V, size=(B, T))
    return logits, np.where(rng.random((B, T)) < 1 / 3, -100, labels)


def torch_cross_entropy(
    logits: np.ndarray, labels: np.ndarray, reduction: str, **options: float
) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's loss, and the gradient of its sum with respect to the logits."""
    leaf = torch.tensor(logits, requires_grad=True)
    flat = leaf.reshape(-1, logits.shape[-1]), torch.tensor(labels).reshape(-1)
    loss = torch.nn.functional.cross_entropy(*flat, reduction=reduction, **options)
    loss.sum().backward()
    return loss.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 0, 3])
def test_mean_and_gradient_equal_torch(
    batch: tuple[np.ndarray, np.ndarray], smoothing: float, ignore_index: int
) -> None:
    logits, labels = batch[0], np.where(batch[1] < 0, ignore_index, batch[1])
    options = {"ignore_index": ignore_index, "label_smoothing": smoothing}
    expected, expected_gradient = torch_cross_entropy(logits, labels, "mean", **options)
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, jnp.asarray(labels), **options))(jnp.asarray(logits))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_tokens_equal_torch(batch: tuple[np.ndarray, np.ndarray], smoothing: float) -> None:
    logits, labels = batch
    expected, _ = torch_cross_entropy(logits, labels, "none", label_smoothing=smoothing)
    losses = token_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), label_smoothing=smoothing)
    assert losses.shape == (B, T)
    np.testing.assert_allclose(losses, expected.reshape(B, T), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(losses[labels == -100], 0)


def test_ignored_tokens_change_nothing(batch: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = batch
    changed = np.where((labels == -100)[..., None], 1e4, logits)
    before, after = (cross_entropy(jnp.asarray(x), jnp.asarray(labels)) for x in (logits, changed))
    assert before == after


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    loss = cross_entropy(jnp.zeros((3, V)), jnp.array([0, 5, 10]), label_smoothing=0.1)
    np.testing.assert_allclose(loss, np.log(V), rtol=1e-6)


def test_all_ignored_is_zero_with_zero_gradient() -> None:
    labels = jnp.full((B,), -100)
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels))(jnp.ones((B, V)))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_sixteen_bit_logits_are_summed_in_float32(rng: np.random.Generator) -> None:
    logits = jnp.asarray(rng.normal(size=(4099, V)), jnp.bfloat16)
    labels = jnp.asarray(rng.integers(0, V, size=4099))
    exact = cross_entropy(logits.astype(jnp.float32), labels)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == jnp.float32
    assert loss == exact


@pytest.mark.parametrize("label", [-1, V, V + 5])
def test_a_label_outside_the_vocabulary_is_loud(label: int) -> None:
    assert jnp.isnan(cross_entropy(jnp.zeros((2, V)), jnp.array([1, label])))


def test_extreme_logits_stay_finite() -> None:
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, jnp.array([0])))(jnp.array([[-3e38, 3e38]]))
    assert loss > 1e38
    assert jnp.isfinite(gradient).all()


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        cross_entropy(jnp.zeros((B, V)), jnp.zeros((B + 1,), int))
    with pytest.raises(InputError, match="integers"):
        cross_entropy(jnp.zeros((B, V)), jnp.zeros((B,)))
    with pytest.raises(InputError, match="label_smoothing"):
        cross_entropy(jnp.zeros((B, V)), jnp.zeros((B,), int), label_smoothing=1.5)


D = 6


@pytest.fixture
def weights(rng: np.random.Generator) -> tuple[jax.Array, ...]:
    """Hidden states [B, T, D], a matrix [D, V] and a bias [V]."""
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((B, T, D), (D, V), (V,)))


def project(weight: jax.Array, bias: jax.Array, states: jax.Array) -> jax.Array:
    """Logits of states."""
    return states @ weight + bias[None, None]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunks", [1, 2, 3, 7])
def test_chunks_change_nothing(
    weights: tuple[jax.Array, ...], batch: tuple[np.ndarray, np.ndarray], chunks: int, smoothing: float
) -> None:
    """Loss and gradients of logits in chunks are those of all logits at once, also where chunks do not divide T."""
    labels = jnp.asarray(batch[1])

    def whole(states: jax.Array, weight: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = project(weight, bias, states)
        return 3 * cross_entropy(logits, labels, label_smoothing=smoothing), cross_entropy(logits, labels)

    def in_chunks(states: jax.Array, weight: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        head = Partial(project, weight, bias)
        objective, plain = chunked_cross_entropy(head, states, labels, chunks=chunks, label_smoothing=smoothing)
        return 3 * objective, plain

    def evaluated(function: Any) -> Any:
        return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True))(*weights)

    for expected, actual in zip(*map(jax.tree.leaves, map(evaluated, (whole, in_chunks))), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(in_chunks(*weights), whole(*weights), rtol=2e-6)


def test_chunks_hold_a_part_of_the_logits() -> None:
    """The memory of loss and gradient falls with the number of chunks."""
    vocab, states, labels = 4096, jnp.zeros((2, 64, D)), jnp.zeros((2, 64), int)

    def loss(weight: jax.Array, chunks: int) -> jax.Array:
        return chunked_cross_entropy(Partial(project, weight, jnp.zeros(vocab)), states, labels, chunks=chunks)[0]

    def temporaries(chunks: int) -> int:
        compiled = jax.jit(jax.grad(loss), static_argnums=1).lower(jnp.zeros((D, vocab)), chunks).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 4


def test_only_what_is_differentiated_gets_a_gradient(weights: tuple[jax.Array, ...]) -> None:
    """A frozen matrix, or one of whole numbers, needs none."""
    states, weight, bias = weights
    labels = jnp.zeros((B, T), int)

    def loss(bias: jax.Array, weight: jax.Array) -> jax.Array:
        return chunked_cross_entropy(Partial(project, weight, bias), states, labels, chunks=2)[0]

    expected = jax.grad(lambda bias: cross_entropy(project(weight, bias, states), labels))(bias)
    np.testing.assert_allclose(jax.grad(loss)(bias, weight), expected, rtol=1e-5)
    shapes = [value.aval.shape for value in jax.make_jaxpr(jax.grad(loss))(bias, weight).jaxpr.outvars]
    assert shapes == [(V,)]
    whole = jax.grad(loss)(bias, weight.astype(int))
    assert np.isfinite(whole).all()


def test_chunks_without_labels_are_zero(weights: tuple[jax.Array, ...]) -> None:
    """No label gives no loss and no gradient."""
    states, weight, bias = weights

    def loss(weight: jax.Array) -> jax.Array:
        labels = jnp.full((B, T), -100)
        return chunked_cross_entropy(Partial(project, weight, bias), states, labels, chunks=2)[0]

    value, gradient = jax.value_and_grad(loss)(weight)
    assert value == 0
    assert (gradient == 0).all()


def test_labels_of_another_shape_are_refused(weights: tuple[jax.Array, ...]) -> None:
    """The labels belong to the states."""
    states, weight, bias = weights
    with pytest.raises(InputError, match="labels"):
        chunked_cross_entropy(Partial(project, weight, bias), states, jnp.zeros((B, T + 1), int), chunks=2)
