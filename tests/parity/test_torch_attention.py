"""Multi-head attention against torch.nn.MultiheadAttention, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxformer.config import AttentionConfig
from jaxformer.layers import Attention
from jaxformer.ops import AttentionMask

pytestmark = pytest.mark.optimised  # and in every run, compiled quickly

B, T, S = 3, 5, 7


def pair(heads: int, width: int) -> tuple[torch.nn.MultiheadAttention, Attention]:
    """The reference and ours, with the same random weights and biases."""
    torch.manual_seed(3)
    dim = heads * width
    reference = torch.nn.MultiheadAttention(dim, heads, batch_first=True)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    module = Attention(AttentionConfig(heads), dim, rngs=nnx.Rngs(0))
    weights = reference.in_proj_weight.detach().numpy().reshape(3, heads, width, dim).transpose(0, 3, 1, 2)
    biases = reference.in_proj_bias.detach().numpy().reshape(3, heads, width)
    for linear, weight, bias in zip((module.query, module.key, module.value), weights, biases, strict=True):
        linear.weight[...], linear.bias[...] = jnp.asarray(weight), jnp.asarray(bias)
    module.output.weight[...] = jnp.asarray(reference.out_proj.weight.detach().numpy().T.reshape(heads, width, dim))
    module.output.bias[...] = jnp.asarray(reference.out_proj.bias.detach().numpy())
    return reference, module


@pytest.mark.parametrize(("heads", "width"), [(1, 13), (2, 11), (5, 3)])
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_outputs_and_weights_equal_torch(rng: np.random.Generator, heads: int, width: int, cross: bool, causal: bool):
    reference, module = pair(heads, width)
    x = rng.normal(size=(B, T, heads * width)).astype(np.float32)
    y = rng.normal(size=(B, S, heads * width)).astype(np.float32) if cross else x
    length = y.shape[1]
    valid = np.arange(length) < np.array([length, 2, length - 1])[:, None]

    kv = module.project_kv(jnp.asarray(y)) if cross else None
    visible = AttentionMask(causal=causal, key_valid=jnp.asarray(valid))
    output, _, weights = module(jnp.asarray(x), kv=kv, mask=visible, return_weights=True)

    mask = torch.ones(T, length, dtype=torch.bool).triu(1) if causal else None
    for averaged in (True, False):
        theirs, their_weights = reference(
            torch.tensor(x),
            torch.tensor(y),
            torch.tensor(y),
            key_padding_mask=torch.tensor(~valid),
            attn_mask=mask,
            average_attn_weights=averaged,
        )
        ours = weights.mean(axis=1) if averaged else weights
        np.testing.assert_allclose(ours, their_weights.detach().numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(output, theirs.detach().numpy(), rtol=0, atol=1e-5)


def test_rows_that_share_a_source_get_what_copies_would_give(rng: np.random.Generator) -> None:
    _, module = pair(2, 11)
    beams = 3
    x = jnp.asarray(rng.normal(size=(B * beams, T, 22)), jnp.float32)
    states = jnp.asarray(rng.normal(size=(B, S, 22)), jnp.float32)
    valid = jnp.asarray(np.arange(S) < np.array([S, 2, 4])[:, None])
    kv, copies = module.project_kv(states), module.project_kv(jnp.repeat(states, beams, axis=0))
    mask = AttentionMask(key_valid=jnp.repeat(valid, beams, axis=0))
    expected = module(x, kv=copies, mask=mask, return_weights=True)
    ours = module(x, kv=kv, mask=AttentionMask(key_valid=valid), return_weights=True)
    np.testing.assert_allclose(ours.states, expected.states, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.weights, expected.weights, rtol=0, atol=1e-6)


def test_gradients_equal_torch(rng: np.random.Generator) -> None:
    reference, module = pair(2, 11)
    x = rng.normal(size=(B, T, 22)).astype(np.float32)
    direction = rng.normal(size=(B, T, 22)).astype(np.float32)
    tensor = torch.tensor(x, requires_grad=True)
    (reference(tensor, tensor, tensor, need_weights=False)[0] * torch.tensor(direction)).sum().backward()

    def score(x: jax.Array) -> jax.Array:
        return (module(x).states * direction).sum()

    expected = tensor.grad.numpy()
    np.testing.assert_allclose(jax.grad(score)(jnp.asarray(x)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
