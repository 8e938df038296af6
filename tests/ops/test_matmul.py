"""Products with weight matrices: 16-bit numbers stay so, and nothing is lost but their own rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import matmul


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_products_and_gradients_equal_those_in_float64(dtype: jnp.dtype, rng: np.random.Generator) -> None:
    x, weight, d_y = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((2, 3, 7), (7, 11), (2, 3, 11)))
    y, gradients = jax.vjp(matmul, x, weight)
    exact = [np.asarray(array, np.float64) for array in (x, weight, d_y)]
    expected = (exact[0] @ exact[1], exact[2] @ exact[1].T, np.einsum("bti,bto->io", exact[0], exact[2]))
    for ours, theirs in zip((y, *gradients(d_y)), expected, strict=True):
        assert ours.dtype == dtype
        # Rounded once, at the end: half a unit in the last place, and the sum's own float32 error.
        bound = 0.51 * float(jnp.finfo(dtype).eps) * np.abs(theirs) + 2e-6
        assert (np.abs(np.asarray(ours, np.float64) - theirs) <= bound).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_no_operand_of_a_product_is_widened(dtype: jnp.dtype) -> None:
    """Forward and backward multiply 16-bit numbers: three products, each of two such operands."""
    x, weight, d_y = (jnp.ones(shape, dtype) for shape in ((2, 3, 7), (7, 11), (2, 3, 11)))

    def forward_and_backward(x: jax.Array, weight: jax.Array, d_y: jax.Array) -> object:
        y, gradients = jax.vjp(matmul, x, weight)
        return y, gradients(d_y)

    text = jax.jit(forward_and_backward).lower(x, weight, d_y).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3
    short = {"bfloat16": "bf16", "float16": "f16"}[jnp.dtype(dtype).name]
    for line in products:
        operands = line.split(" : (")[1].split(") -> ")[0].split(", ")
        assert all(operand.endswith(f"x{short}>") for operand in operands), line
