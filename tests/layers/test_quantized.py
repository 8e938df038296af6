"""Weights of 8 bits: the product by hand, and models whose linear maps have them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hf_models import save_decoder

from jaxformer import InputError, Transformer, decoder_only, encoder_decoder, from_pretrained, generate, save_pretrained
from jaxformer.cli.generate import decode_inputs
from jaxformer.config import TransformerConfig
from jaxformer.data import train_tokenizer
from jaxformer.layers import AdaptedLinear, Linear, QuantizedLinear
from jaxformer.ops import int8_matmul, quantize
from jaxformer.presets import deepseek_tiny

GPT = decoder_only(31, length=24, dim=24, layers=2, heads=3)


def test_vectors_are_steps_of_their_own() -> None:
    values, steps = quantize(jnp.array([[1.0, -2.54, 0.005], [0.0, 0.0, 0.0], [127.0, 63.6, -63.4]]))
    assert values.tolist() == [[50, -127, 0], [0, 0, 0], [127, 64, -63]]
    np.testing.assert_allclose(steps, [0.02, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("rows", [(1,), (2,), (3, 5)])
def test_the_product_is_that_of_the_rounded_factors(rows: tuple[int, ...], rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(*rows, 37)), jnp.float32)
    weight = quantize(jnp.asarray(rng.normal(size=(11, 37)), jnp.float32))
    left, right = (np.asarray(q.values, np.float64) * np.asarray(q.steps)[..., None] for q in (quantize(x), weight))
    np.testing.assert_allclose(int8_matmul(x, weight), left @ right.T, rtol=0, atol=1e-5)


def test_a_row_is_what_it_is_among_others(rng: np.random.Generator) -> None:
    x, weight = (jnp.asarray(rng.normal(size=(n, 37)), jnp.float32) for n in (4, 11))
    together = int8_matmul(x, quantize(weight))
    alone = jnp.stack([int8_matmul(row, quantize(weight)) for row in x])
    np.testing.assert_allclose(alone, together, rtol=1e-6)


def test_the_gradient_is_that_of_the_rounded_weight(rng: np.random.Generator) -> None:
    x, d_y = (jnp.asarray(rng.normal(size=(3, 5, n)), jnp.float32) for n in (37, 11))
    weight = quantize(jnp.asarray(rng.normal(size=(11, 37)), jnp.float32))
    (d_x,) = jax.vjp(lambda x: int8_matmul(x, weight), x)[1](d_y)
    dense = np.asarray(weight.values, np.float64) * np.asarray(weight.steps)[:, None]
    np.testing.assert_allclose(d_x, np.asarray(d_y) @ dense, rtol=0, atol=1e-5)


def test_a_low_rank_change_beside_the_weight(rng: np.random.Generator) -> None:
    linear = QuantizedLinear(Linear((3, 8), (2, 5), axes="D_NH", rngs=nnx.Rngs(0)))
    A, B = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((24, 2), (2, 10)))
    adapted, x = AdaptedLinear(linear, A, B), jnp.asarray(rng.normal(size=(4, 3, 8)), jnp.float32)
    change = (A @ B).reshape(3, 8, 2, 5)
    np.testing.assert_allclose(adapted.dense_weight(), linear.dense_weight() + change, rtol=0, atol=1e-5)
    expected = linear(x) + jnp.einsum("bij,ijno->bno", x, change)  # of sums of 24 products, up to some 30
    np.testing.assert_allclose(adapted(x), expected, rtol=0, atol=1e-6 * float(jnp.abs(expected).max()))


def test_a_map_with_several_axes_is_near_its_own(rng: np.random.Generator) -> None:
    linear = Linear((3, 8), (2, 5), axes="D_NH", rngs=nnx.Rngs(0))
    linear.bias = nnx.Param(jnp.asarray(rng.normal(size=(2, 5)), jnp.float32))
    x, rounded = jnp.asarray(rng.normal(size=(4, 3, 8)), jnp.float32), QuantizedLinear(linear)
    np.testing.assert_allclose(
        rounded.dense_weight(), linear.dense_weight(), rtol=0, atol=float(rounded.steps[...].max()) / 2 + 1e-6
    )
    np.testing.assert_allclose(rounded(x), linear(x), rtol=0, atol=0.02 * float(jnp.abs(linear(x)).max()))


@pytest.mark.parametrize(
    "config",
    [
        GPT,
        pytest.param(encoder_decoder(31, dim=24, layers=2, heads=3), marks=pytest.mark.slow),
        pytest.param(deepseek_tiny(31), marks=pytest.mark.slow),
    ],
    ids=["gpt", "encoder-decoder", "deepseek"],
)
def test_a_model_of_8_bits_generates(config: TransformerConfig, rng: np.random.Generator) -> None:
    """A quarter of the bytes but for tables and norms; logits that agree; a cache that gives what the forward gives."""
    model = Transformer(config, rngs=nnx.Rngs(0))
    rounded, ids = model.quantize(), rng.integers(3, 31, (2, 7))
    arguments = (ids, ids[:, :5]) if config.encoder else (ids,)
    forward = jax.jit(Transformer.__call__)
    ours, theirs = (np.asarray(forward(each, *arguments)) for each in (rounded, model))
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.98
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(each)) for each in (rounded, model)]
    assert sizes[0] < 0.45 * sizes[1]
    settings = {"max_new_tokens": 6, "eos_token_id": None}
    if config.encoder:
        settings["decoder_start_token_id"] = 1
    found = generate(rounded, ids, **settings).sequences
    again = forward(rounded, *([ids] if config.encoder else []), found[:, :-1])
    np.testing.assert_array_equal(np.argmax(again, axis=-1)[:, -6:], found[:, -6:])


@pytest.mark.slow
def test_a_folder_is_read_in_8_bits_and_not_written_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_decoder("gpt2", tmp_path)
    train_tokenizer("char", ["abcdefgh"], 40).save(tmp_path / "tokenizer.json")
    flags = ["--model", str(tmp_path), "--prompt", "abc", "--max-new-tokens", "5", "--json"]
    said = []
    for more in ([], ["--weights", "int8"]):
        decode_inputs([*flags, *more])
        said.append(json.loads(capsys.readouterr().out))
    assert said[0]["score"] != said[1]["score"]
    with pytest.raises(InputError, match="8 bits are not written"):
        save_pretrained(from_pretrained(tmp_path).quantize(), tmp_path / "copy")
