"""Sinusoidal positions against the formula, against Marian's table bit by bit; distances."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from jaxformer import InputError
from jaxformer.ops import alibi_slopes, distance_buckets, sinusoidal_positions


def formula(position: int, column: int, dim: int, base: float = 10000.0) -> float:
    """PE of one cell in the paper's order, section 3.5."""
    angle = position / base ** (2 * (column // 2) / dim)
    return math.sin(angle) if column % 2 == 0 else math.cos(angle)


@pytest.mark.parametrize("dim", [1, 6, 7, 10])
def test_formula_cell_by_cell(dim: int) -> None:
    table = sinusoidal_positions(11, dim)
    assert table.shape == (11, dim)
    assert table.dtype == jnp.float32
    expected = [[formula(position, column, dim) for column in range(dim)] for position in range(11)]
    np.testing.assert_allclose(table, expected, rtol=1e-7, atol=1e-7)


def test_position_zero_is_sine_zero_then_cosine_one() -> None:
    np.testing.assert_array_equal(sinusoidal_positions(1, 6)[0], [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(sinusoidal_positions(1, 6, "halves")[0], [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("dim", [8, 9])
def test_halves_hold_the_same_columns(dim: int) -> None:
    interleaved, halves = sinusoidal_positions(13, dim), sinusoidal_positions(13, dim, "halves")
    np.testing.assert_array_equal(halves, jnp.concatenate([interleaved[:, 0::2], interleaved[:, 1::2]], axis=1))


@pytest.mark.parametrize(("length", "dim"), [(512, 512), (1031, 22), (97, 7)])
def test_halves_equal_marian_bit_by_bit(length: int, dim: int) -> None:
    marian = MarianSinusoidalPositionalEmbedding(length, dim)
    marian.weight.data = marian.create_weight()
    np.testing.assert_array_equal(sinusoidal_positions(length, dim, "halves"), marian.weight.detach().numpy())


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_traced_position_ids_read_the_same_values(layout: str) -> None:
    table = np.asarray(sinusoidal_positions(20011, 26, layout))
    ids = jnp.array([[0, 3, 20010], [511, 8191, 7]])
    looked_up = jax.jit(lambda positions: sinusoidal_positions(positions, 26, layout))(ids)
    assert looked_up.dtype == jnp.float32
    np.testing.assert_allclose(looked_up, table[np.asarray(ids)], rtol=0, atol=6e-8)  # one unit in the last place of 1


def test_positions_work_inside_scan_vmap_and_grad() -> None:
    table = sinusoidal_positions(7, 6)
    _, scanned = jax.lax.scan(lambda carry, at: (carry, sinusoidal_positions(at, 6)), 0, jnp.arange(7))
    np.testing.assert_allclose(scanned, table, atol=6e-8)
    np.testing.assert_allclose(jax.vmap(lambda at: sinusoidal_positions(at, 6))(jnp.arange(7)), table, atol=6e-8)
    gradient = jax.grad(lambda scale: jnp.sum(scale * sinusoidal_positions(jnp.arange(7), 6)))(2.0)
    np.testing.assert_allclose(gradient, jnp.sum(table), rtol=1e-6)


def test_base_sets_the_longest_wavelength() -> None:
    expected = [formula(5, column, 8, base=100.0) for column in range(8)]
    np.testing.assert_allclose(sinusoidal_positions(6, 8, base=100.0)[5], expected, rtol=1e-7, atol=1e-7)


def test_positions_refuse_what_they_cannot_encode() -> None:
    with pytest.raises(InputError, match="width"):
        sinusoidal_positions(4, 0)
    with pytest.raises(InputError, match="negative"):
        sinusoidal_positions(-1, 4)
    with pytest.raises(InputError, match="integers"):
        sinusoidal_positions(jnp.array([0.5]), 4)
    with pytest.raises(InputError, match="layout"):
        sinusoidal_positions(4, 4, "sideways")


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 5), (6, 20), (64, 1000)])
@pytest.mark.parametrize("causal", [False, True])
def test_distance_buckets_equal_t5(buckets: int, longest: int, causal: bool) -> None:
    distances = np.arange(-1200, 1201)
    expected = T5Attention._relative_position_bucket(
        torch.tensor(distances), bidirectional=not causal, num_buckets=buckets, max_distance=longest
    )
    found = distance_buckets(jnp.asarray(distances), buckets=buckets, max_distance=longest, causal=causal)
    np.testing.assert_array_equal(found, expected)


def test_near_distances_have_buckets_of_their_own() -> None:
    """Section 2.1: by hand, 8 buckets to each side of which 4 are near, up to distance 16."""
    distances = jnp.array([0, -1, -3, -4, -6, -8, -16, -100, 1, 3, 4, 100])
    found = distance_buckets(distances, buckets=16, max_distance=16)
    assert found.tolist() == [0, 1, 3, 4, 5, 6, 7, 7, 9, 11, 12, 15]


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (1, [2**-8]),
        (4, [2**-2, 2**-4, 2**-6, 2**-8]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),  # Press et al.: every other one of eight heads
    ],
)
def test_slopes_of_alibi(heads: int, slopes: list[float]) -> None:
    np.testing.assert_array_equal(alibi_slopes(heads), np.float32(slopes))
