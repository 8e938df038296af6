"""The masks, cell by cell, and how they combine."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.ops import AttentionMask, attention_weights, causal_mask, padding_mask
from jaxformer.ops.masks import window_mask

pytestmark = pytest.mark.smoke


def test_causal_mask_of_five_cell_by_cell() -> None:
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    mask = causal_mask(5)
    assert mask.dtype == bool
    for row in range(5):
        for column in range(5):
            assert mask[row, column] == bool(expected[row][column]), (row, column)


def test_padding_mask() -> None:
    mask = padding_mask(jnp.array([3, 5, 0]), 5)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])


def test_causal_and_padding_combined() -> None:
    both = causal_mask(5)[None, None] & padding_mask(jnp.array([3]), 5)[:, None, None, :]
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
    ]
    np.testing.assert_array_equal(both[0, 0], expected)


def test_attention_combines_causality_and_padding_as_the_written_out_mask(rng: np.random.Generator) -> None:
    query, key = (jnp.asarray(rng.normal(size=(2, 5, 3, 7)), jnp.float32) for _ in range(2))
    real = padding_mask(jnp.array([3, 5]), 5)
    apart = attention_weights(query, key, mask=AttentionMask(causal=True, key_valid=real))
    together = attention_weights(query, key, mask=causal_mask(5)[None, None] & real[:, None, None])
    np.testing.assert_array_equal(apart, together)


def test_window_mask() -> None:
    positions = jnp.arange(5)
    expected = [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(window_mask(positions[None], positions, 1, 2)[0], expected)


def test_window_mask_of_rows_that_stand_apart() -> None:
    mask = window_mask(jnp.array([[0, 1], [2, 3]]), jnp.arange(4), None, 0)
    np.testing.assert_array_equal(mask, [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]])


def test_masks_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(InputError, match="negative"):
        causal_mask(-1)
    with pytest.raises(InputError, match="integer vector"):
        padding_mask(jnp.array([1.5]), 3)
    with pytest.raises(InputError, match="integer vector"):
        padding_mask(jnp.array([[1]]), 3)
