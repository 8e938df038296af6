"""Linear maps that are stored transposed: where they stand, and that they are the same maps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer import Transformer, decoder_only, encoder_decoder
from jaxformer.backends.cpu import FEW_ROWS
from jaxformer.config import TransformerConfig
from jaxformer.layers import Head, Linear, TransposedLinear
from jaxformer.presets import deepseek_tiny


def deepseek_wide() -> TransformerConfig:
    """With latents so wide that the maps from them are large."""
    config = deepseek_tiny(31)
    assert config.decoder is not None
    blocks = tuple(
        replace(block, attention=replace(block.attention, kv_lora_rank=128)) for block in config.decoder.blocks
    )
    return replace(config, decoder=replace(config.decoder, blocks=blocks))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_transposed_map_is_the_same(dtype: jnp.dtype, rng: np.random.Generator) -> None:
    linear = Linear((3, 8), (2, 5), axes="D_NH", rngs=nnx.Rngs(0))
    linear.bias = nnx.Param(jnp.asarray(rng.normal(size=(2, 5)), jnp.float32))
    x, transposed = jnp.asarray(rng.normal(size=(4, 3, 8)), dtype), TransposedLinear(linear)
    assert transposed(x).dtype == dtype
    np.testing.assert_allclose(
        np.asarray(transposed(x), np.float32), np.asarray(linear(x), np.float32), rtol=jnp.finfo(dtype).eps, atol=1e-6
    )
    assert transposed.dense_weight().tolist() == linear.dense_weight().tolist()


@pytest.mark.parametrize(
    ("config", "transposed"),
    [
        (decoder_only(31, length=24, dim=128, layers=2, heads=4), "query key value output up down"),
        # Keys and values of the source are made before the steps, those of latents of all that is remembered.
        (encoder_decoder(31, dim=128, layers=2, heads=4), "query key value output up down cross.query cross.output"),
        # Experts stay: they are many maps in one array.
        pytest.param(deepseek_wide(), "query output gate up down", marks=pytest.mark.slow),
    ],
    ids=["gpt", "paper", "deepseek"],
)
def test_steps_of_a_few_rows_have_large_maps_transposed(config: TransformerConfig, transposed: str) -> None:
    """In the decoder alone; steps of many rows keep them; logits and caches stay what they were."""
    model = Transformer(config, rngs=nnx.Rngs(0))
    few, many = model.optimize_for_decoding(FEW_ROWS), model.optimize_for_decoding(FEW_ROWS + 1)
    assert transposed_maps(few) == set(transposed.split())
    assert transposed_maps(many) == transposed_maps(model) == set()
    rows = np.arange(FEW_ROWS)[:, None]
    encoded = None if model.encoder is None else model.encode(jnp.array([[3, 4, 5]]) + rows)
    _, cache = model.prefill(jnp.array([[3, 1, 4]]) + rows, model.init_cache(FEW_ROWS, 8, encoded=encoded), length=3)
    plain, turned = (each.step(7 + jnp.asarray(rows), cache) for each in (model, few))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), plain, turned)


@pytest.mark.parametrize(("vocab_size", "few_are_tied"), [(31, False), (131, True)])
def test_a_large_tied_table_serves_a_few_rows_as_it_lies(vocab_size: int, few_are_tied: bool) -> None:
    model = Transformer(decoder_only(vocab_size, length=24, dim=128, layers=1, heads=4), rngs=nnx.Rngs(0))
    few, many = (model.optimize_for_decoding(rows).head for rows in (FEW_ROWS, FEW_ROWS + 1))
    assert isinstance(few, Head)
    assert isinstance(many, Head)
    assert isinstance(few.output, TransposedLinear) == few_are_tied
    assert few_are_tied == any(leaf is model.embedding.embedding[...] for leaf in jax.tree.leaves(few))
    assert isinstance(many.output, Linear)
    assert isinstance(model.head, Head)
    assert model.head.output is None


def transposed_maps(model: Transformer) -> set[str]:
    """The names of the maps that are stored transposed."""
    maps = (path for path, module in nnx.iter_modules(model) if isinstance(module, TransposedLinear))
    return {"cross." * (path[-2] == "cross") + str(path[-1]) for path in maps}
