"""Dropout: what it keeps, what it scales, and when it does nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.ops import dropout

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropped_fraction_and_expectation(rate: float) -> None:
    dropped = dropout(jnp.ones((997, 1009)), rate, KEY)
    zero = dropped == 0
    np.testing.assert_allclose(zero.mean(), rate, atol=0.003)
    np.testing.assert_allclose(dropped.mean(), 1.0, atol=0.01)
    np.testing.assert_allclose(dropped[~zero], 1 / (1 - rate), rtol=1e-4)


def test_the_two_entries_that_share_a_word_are_independent() -> None:
    stayed = np.asarray(dropout(jnp.ones((997, 1009)), 0.5, KEY) != 0)
    pairs = stayed[:, :1008].reshape(997, 504, 2)
    both = pairs.all(axis=-1).mean()
    np.testing.assert_allclose(both, 0.25, atol=0.003)
    np.testing.assert_allclose(pairs.mean(axis=(0, 1)), 0.5, atol=0.003)


def test_scale_matches_the_rounded_rate_exactly() -> None:
    # 0.1 is rounded to 6554 of 65536 levels.
    dropped = dropout(jnp.ones((101,)), 0.1, KEY)
    np.testing.assert_allclose(dropped.max(), 65536 / (65536 - 6554), rtol=1e-7)


def test_no_key_or_no_rate_is_the_identity() -> None:
    x = jnp.arange(5.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, KEY) is x


def test_gradient_passes_where_the_entry_stayed() -> None:
    x = jnp.arange(1.0, 102.0)
    gradient = jax.grad(lambda x: dropout(x, 0.5, KEY).sum())(x)
    np.testing.assert_array_equal(gradient, jnp.where(dropout(x, 0.5, KEY) == 0, 0, 2))


def test_one_key_gives_one_mask_and_another_key_another() -> None:
    x = jnp.ones((101,))
    np.testing.assert_array_equal(dropout(x, 0.5, KEY), dropout(x, 0.5, KEY))
    assert (dropout(x, 0.5, KEY) != dropout(x, 0.5, jax.random.key(1))).any()


def test_type_is_kept_and_a_dropped_infinity_is_zero() -> None:
    dropped = dropout(jnp.full((101,), jnp.inf, jnp.bfloat16), 0.5, KEY)
    assert dropped.dtype == jnp.bfloat16
    assert not jnp.isnan(dropped).any()
    assert (dropped == 0).any()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(InputError, match="dropout rate"):
        dropout(jnp.ones(3), rate, KEY)
