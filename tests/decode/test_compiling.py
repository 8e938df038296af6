"""How searches are compiled: with options where the compiler knows them, and without where it does not."""

import importlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

compiling = importlib.import_module("jaxformer.decode.compiling")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What the compiler said before, and will say later, is forgotten."""
    compiling.for_few_rows.cache_clear()
    yield
    compiling.for_few_rows.cache_clear()


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    return x @ weight


def test_products_of_a_few_rows_are_not_given_to_ynnpack() -> None:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 512), (512, 2048))]
    assert "__ynn_fusion" not in compiling.Compiled(product).program.lower(*shapes).compile().as_text()


def test_products_of_integers_are_given_to_ynnpack() -> None:
    """Without it, a model of 8 bits would be four times slower than one of 32."""

    def integers(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)

    rows, weight = np.ones((4, 512), np.int8), np.ones((2048, 512), np.int8)
    call = compiling.Compiled(integers)
    np.testing.assert_array_equal(call(rows, weight), rows.astype(np.int32) @ weight.T)
    assert "program" not in vars(call)
    assert "__ynn_fusion" in call.program_of_integers.lower(rows, weight).compile().as_text()


def test_a_compiler_that_does_not_know_the_options_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "FEW_ROWS", {"xla_cpu_unheard_of": ""})
    assert compiling.for_few_rows() is None
    np.testing.assert_array_equal(compiling.Compiled(product)(jnp.eye(3), 2 * jnp.eye(3)), 2 * np.eye(3))
