"""The masks, cell by cell, and how they combine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.ops import AttentionMask, attention_weights, causal_mask, padding_mask, segment_positions
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


def test_segment_mask_and_positions() -> None:
    segments = jnp.array([[1, 1, 1, 2, 2], [4, 4, 0, 0, 0]])
    expected = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]], bool)
    np.testing.assert_array_equal(AttentionMask(segment_ids=segments).materialize(5, 5)[0, 0], expected)
    offsets = AttentionMask(segment_ids=segments, offset=jnp.array([2, 1])).materialize(2, 5)[:, 0]
    np.testing.assert_array_equal(offsets, [[[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]], [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]])
    np.testing.assert_array_equal(segment_positions(segments), [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    np.testing.assert_array_equal(segment_positions(jnp.array([[3, 5, 3, 3]])), [[0, 0, 0, 1]])


def test_masks_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(InputError, match="negative"):
        causal_mask(-1)
    with pytest.raises(InputError, match="integer vector"):
        padding_mask(jnp.array([1.5]), 3)
    with pytest.raises(InputError, match="integer vector"):
        padding_mask(jnp.array([[1]]), 3)


def test_masks_combine() -> None:
    """As arrays do; the offset is that of the mask that has positions to look at."""
    valid, explicit = jnp.array([[1, 1, 0, 1, 1, 1]]), jnp.arange(24).reshape(4, 6) % 5 > 0
    masks = [
        AttentionMask(causal=True, offset=2),
        AttentionMask(window=(2, None), offset=2),
        AttentionMask(key_valid=valid),
        AttentionMask(explicit=explicit.astype(int)),
        AttentionMask(segment_ids=jnp.array([[0, 0, 1, 1, 1, 2]]), offset=2),
    ]
    for one in masks:
        for other in masks:
            if one is other is masks[4]:
                continue
            expected = one.materialize(4, 6) & other.materialize(4, 6)
            found = (one & other).materialize(4, 6)
            assert found.dtype == bool
            np.testing.assert_array_equal(*jnp.broadcast_arrays(found, expected))
    assert (masks[2] & masks[3]).window is None
    same = jax.jit(lambda one, other: (one & other).materialize(4, 6))(masks[0], masks[2])
    np.testing.assert_array_equal(same, (masks[0] & masks[2]).materialize(4, 6))
    equal = AttentionMask(causal=True, offset=jnp.array([2])) & AttentionMask(window=(1, 0), offset=jnp.array([2]))
    assert equal.bounds == (1, 0)
    with pytest.raises(InputError, match="different offsets"):
        masks[0] & AttentionMask(causal=True, offset=3)
    with pytest.raises(InputError, match="different offsets"):
        masks[4] & AttentionMask(causal=True, offset=3)
    with pytest.raises(InputError, match="two masks with segment_ids"):
        masks[4] & masks[4]


def test_integers_in_a_mask_are_checked_where_it_is_used() -> None:
    assert AttentionMask(key_valid=jnp.array([[0, 1]])).materialize(3, 2).dtype == bool
    assert AttentionMask(explicit=jnp.ones((3, 2), int)).materialize(3, 2).shape == (1, 1, 3, 2)
    with pytest.raises(InputError, match="other integers"):
        AttentionMask(key_valid=jnp.array([[1, 2]])) & AttentionMask()
