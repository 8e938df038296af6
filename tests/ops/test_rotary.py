"""Rotary positions against the functions of PyTorch models in transformers, and their defining law."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from jaxformer import InputError, apply_rope, rope_cos_sin, rotary_frequencies
from jaxformer.layers.rotary import frequencies_and_factor
from jaxformer.pretrained.rope import rope

B, T, N, H = 2, 5, 3, 14
FAR = [0, 1, 511, 4096, 8191]


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("width", [6, 14, 32, 64, 80, 128])
def test_frequencies_equal_torch_bit_for_bit(base: float, width: int) -> None:
    theirs = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))
    np.testing.assert_array_equal(rotary_frequencies(width, base), theirs.numpy())
    np.testing.assert_array_equal(jax.jit(lambda: rotary_frequencies(width, base))(), theirs.numpy())


@pytest.mark.parametrize("compiled", [False, True])
def test_rotation_equals_transformers_at_far_positions(rng: np.random.Generator, compiled: bool) -> None:
    reference = LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=N * H, num_attention_heads=N, max_position_embeddings=8192)
    )
    x = rng.normal(size=(B, T, N, H)).astype(np.float32)
    positions = np.array([FAR, FAR[::-1]])
    heads_first = torch.tensor(x).swapaxes(1, 2)
    theirs, _ = apply_rotary_pos_emb(heads_first, heads_first, *reference(heads_first, torch.tensor(positions)))

    def ours(x: jax.Array, positions: jax.Array) -> jax.Array:
        return apply_rope(x, rope_cos_sin(positions, rotary_frequencies(H)))

    turned = (jax.jit(ours) if compiled else ours)(jnp.asarray(x), jnp.asarray(positions))
    np.testing.assert_allclose(turned, theirs.swapaxes(1, 2).numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_scores_depend_on_the_distance_alone(rng: np.random.Generator, layout: str) -> None:
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, H)).astype(np.float32)) for _ in range(2))

    def score(at: int, other: int) -> float:
        turned = (
            apply_rope(x, rope_cos_sin(jnp.array([[p]]), rotary_frequencies(H)), layout=layout)
            for x, p in ((query, at), (key, other))
        )
        return float(jnp.vdot(*turned))

    assert score(7, 4) == pytest.approx(score(103, 100), abs=1e-4)
    assert abs(score(7, 4) - score(4, 7)) > 1e-3  # a direction, too


def test_the_layouts_differ_by_the_order_of_dimensions_alone(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(B, T, N, H)).astype(np.float32))
    by = rope_cos_sin(jnp.arange(T)[None], rotary_frequencies(H))
    order = np.arange(H).reshape(2, H // 2).T.ravel()  # 0, H/2, 1, H/2 + 1 ...
    np.testing.assert_allclose(
        apply_rope(x, by)[..., order], apply_rope(x[..., order], by, layout="interleaved"), atol=1e-6
    )


def test_dimensions_beyond_the_width_stay(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(B, T, N, H)).astype(np.float32))
    turned = apply_rope(x, rope_cos_sin(jnp.arange(T)[None], rotary_frequencies(6)))
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    assert jnp.abs(turned - x)[:, 1:, :, :6].min() > 0


def test_what_cannot_be_turned_is_refused() -> None:
    with pytest.raises(InputError, match="the width must be even, not 7"):
        rotary_frequencies(7)
    with pytest.raises(InputError, match="16 dimensions cannot be rotated in a head of width 14"):
        apply_rope(jnp.zeros((B, T, N, H)), rope_cos_sin(jnp.arange(T)[None], rotary_frequencies(16)))


LONG = 16  # pairs are turned by positions below this length in training
SCALINGS = {
    "linear": {"factor": 3.0},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0},
    "yarn": {"factor": 4.0},
    "yarn-exact": {"factor": 4.0, "truncate": False, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn-magnitudes": {"factor": 8.0, "mscale": 0.7, "mscale_all_dim": 0.2},
    "longrope": {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]},
    "dynamic": {"factor": 3.0},
}


@pytest.mark.parametrize("longest", [LONG - 2, 4 * LONG])
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_equal_transformers(name: str, longest: int) -> None:
    """Bit for bit, but where the base is computed in the program."""
    kind = name.split("-")[0]
    parameters = {"rope_type": kind, "rope_theta": 100.0, "original_max_position_embeddings": LONG} | SCALINGS[name]
    maximum = LONG if kind == "dynamic" else 4 * LONG
    hf = {"rope_parameters": parameters, "max_position_embeddings": maximum}
    config = LlamaConfig(hidden_size=16, num_attention_heads=1, **copy.deepcopy(hf))
    expected, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=longest)
    found = jax.jit(lambda position_ids: frequencies_and_factor(rope(hf, 16), 16, position_ids)[0])
    frequencies = found(jnp.arange(longest)[None])
    exact = kind != "dynamic" or longest < LONG
    np.testing.assert_allclose(frequencies, expected, rtol=0 if exact else 1e-6, atol=0)
    assert frequencies_and_factor(rope(hf, 16), 16, jnp.arange(longest)[None])[1] == pytest.approx(
        attention_factor, abs=0
    )
