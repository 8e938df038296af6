"""Normalisation against PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxformer import rms_norm


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-1])
def test_rms_norm_equals_torch(rng: np.random.Generator, mean: float, epsilon: float) -> None:
    x, scale = rng.normal(mean, 1, (3, 5, 13)).astype(np.float32), rng.normal(1, 1, 13).astype(np.float32)
    theirs = torch.nn.functional.rms_norm(torch.tensor(x), (13,), torch.tensor(scale), eps=epsilon).numpy()
    np.testing.assert_allclose(
        rms_norm(jnp.asarray(x), jnp.asarray(scale), epsilon=epsilon), theirs, rtol=1e-6, atol=1e-6
    )


def test_sixteen_bits_are_normalised_in_float32(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(5, 257)), jnp.bfloat16)
    ours = rms_norm(x, jnp.ones(257, jnp.bfloat16))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, rms_norm(x.astype(jnp.float32), jnp.ones(257)).astype(jnp.bfloat16))
