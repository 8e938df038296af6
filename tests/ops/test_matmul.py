"""Products with weight matrices: 16-bit numbers stay so, and nothing is lost but their own rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import FUSED

from jaxformer.backends.cpu import FEW_ROWS, batched_matmul_transposed, few_rows_options, matmul_transposed
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


def assert_product(y: jax.Array, x: jax.Array, weight: jax.Array, bound: float = 2e-7) -> None:
    """Whether y is x times weight in float64, but for so small a part of the sum of all absolute products."""
    one, other = (np.asarray(array, np.float64) for array in (x, weight))
    assert (np.abs(y - one @ other) <= bound * np.abs(one) @ np.abs(other)).all()


# Summed whole, in pieces of 128 and of 1024, and neither; weights with an odd number of rows, and too small for a loop.
SHAPES = [(24, 768), (37, 512), (9, 2048), (9, 5120), (201, 100), (7, 4999), (5, 12)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_few_rows_times_a_transposed_weight(shape: tuple[int, int], dtype: jnp.dtype, rng: np.random.Generator) -> None:
    weight = jnp.asarray(rng.normal(size=shape), dtype)
    for leading in ((), (1,), (1, 1), (FEW_ROWS, 1), (FEW_ROWS + 1,)):
        x = jnp.asarray(rng.normal(size=(*leading, shape[1])), dtype)
        y = matmul_transposed(x, weight)
        assert y.dtype == jnp.float32
        assert_product(y, x, weight.T)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 90])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_batch_of_rows_and_weights(rows: int, dtype: jnp.dtype, rng: np.random.Generator) -> None:
    x, weights = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((6, rows, 96), (6, 50, 96)))
    y = batched_matmul_transposed(x, weights)
    assert y.dtype == jnp.float32
    assert_product(y, x, weights.swapaxes(1, 2), bound=4e-7)  # sums of 96 in one chain, as tests compile them


def test_gradients_through_a_few_rows(rng: np.random.Generator) -> None:
    x, weight, d_y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 768), (24, 768), (2, 24)))
    d_x, d_weight = jax.vjp(matmul_transposed, x, weight)[1](d_y)
    assert_product(d_x, d_y, weight)
    assert_product(d_weight, d_y.T, x)


def test_no_rows_are_no_products() -> None:
    assert matmul_transposed(jnp.ones((0, 96)), jnp.ones((500, 96))).shape == (0, 500)
    assert batched_matmul_transposed(jnp.ones((6, 0, 96)), jnp.ones((6, 50, 96))).shape == (6, 0, 50)


def test_few_rows_with_numbers_of_64_bits_enabled(rng: np.random.Generator) -> None:
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            x, weight = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((1, 768), (96, 768)))
            y = matmul_transposed(x, weight)
            assert y.dtype == dtype
            assert_product(y, x, weight.T, bound=2e-7 if dtype == jnp.float32 else 4e-16)


def test_mapped_products_of_few_rows_stay_products(rng: np.random.Generator) -> None:
    """And so do their gradients: worked out before they are summed, they would be as large as the weight, each."""
    x, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((100, 768), (96, 768)))
    mapped = jax.jit(jax.vmap(matmul_transposed, in_axes=(0, None)))
    assert_product(mapped(x, weight), x, weight.T)
    squares = jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(matmul_transposed(x, weight) ** 2))))
    wide, matrix = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    bound = 4e-7 * np.abs(2 * wide) @ np.abs(matrix.T) @ np.abs(matrix)  # two products, one behind the other
    assert (np.abs(squares(x) - 2 * wide @ matrix.T @ matrix) <= bound).all()
    for function, arguments in ((mapped, (x, weight)), (squares, (x,))):
        assert function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes < 2**20


def test_a_row_that_is_no_number_spoils_no_other(rng: np.random.Generator) -> None:
    weight = jnp.asarray(rng.normal(size=(24, 768)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(3, 768)), jnp.float32)
    for bad in ([0], [2], [0, 1, 2]):
        for column in (0, 700):
            y = matmul_transposed(x.at[jnp.array(bad), column].set(jnp.nan), weight)
            assert np.isnan(y).all(axis=1).tolist() == [row in bad for row in range(3)]
            assert np.isnan(y).any(axis=1).tolist() == [row in bad for row in range(3)]


@pytest.mark.parametrize("inputs", [512, 768, 5120])
@pytest.mark.parametrize("rows", [1, FEW_ROWS])
def test_products_of_few_rows_are_not_laid_out(rows: int, inputs: int) -> None:
    """They are as many as the weight has numbers, times the rows, and belong into the loop that sums them."""
    options = (few_rows_options() or {}) | FUSED  # fused as users have it
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, inputs), (96, inputs))]
    program = jax.jit(matmul_transposed, compiler_options=options).lower(*shapes).compile()
    assert program.memory_analysis().temp_size_in_bytes < 96 * inputs
