"""Facts of the libraries beneath that this package relies on: an upgrade that changes one should fail here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx


class Scale(nnx.Module):
    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.float32(2.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.weight[...] * x


def test_modules_are_pytrees_for_the_transformations_of_jax() -> None:
    module = Scale()
    assert jax.jit(lambda m, x: m(x))(module, 3.0) == 6.0
    gradient = jax.grad(lambda m: m(3.0))(module)
    assert isinstance(gradient, Scale)
    assert gradient.weight[...] == 3.0
    assert jax.jit(lambda step, x: step(x))(jax.tree_util.Partial(Scale.__call__, module), 3.0) == 6.0
    doubled = jax.tree.map(lambda leaf: 2 * leaf, module)
    assert (doubled(1.0), module(1.0)) == (4.0, 2.0)


def test_mutation_under_jit_is_lost() -> None:
    module = Scale()

    def change(m: Scale) -> None:
        m.weight[...] = jnp.float32(7.0)

    jax.jit(change)(module)
    assert module.weight[...] == 2.0


def test_a_model_splits_into_a_plain_dictionary_and_back() -> None:
    graphdef, params = nnx.split(Scale())
    assert nnx.to_pure_dict(params) == {"weight": 2.0}
    assert nnx.merge(graphdef, {"weight": jnp.float32(5.0)})(1.0) == 5.0


def test_gelu_is_the_tanh_form_unless_told_otherwise() -> None:
    x = np.linspace(-3, 3, 101, dtype=np.float32)
    exact = torch.nn.functional.gelu(torch.tensor(x)).numpy()
    assert np.abs(jax.nn.gelu(x) - exact).max() > 1e-4
    np.testing.assert_allclose(jax.nn.gelu(x, approximate=False), exact, atol=1e-6)


def test_the_softmax_of_nothing_is_not_a_number() -> None:
    assert np.isnan(jax.nn.softmax(jnp.full(3, -jnp.inf))).all()


@pytest.mark.parametrize("size", [5, 1000])
def test_top_k_takes_the_lowest_index_of_equals(size: int) -> None:
    assert jax.lax.top_k(jnp.zeros(size), 3)[1].tolist() == [0, 1, 2]
