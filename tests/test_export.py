"""`jax.export` with symbolic sizes: one artefact for any batch and length, as servers want it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from jaxformer import InputError, Transformer, decoder_only, encoder_decoder, encoder_only, modern_decoder_only
from jaxformer.config import TransformerConfig
from jaxformer.presets import deepseek_tiny

V = 29
MODELS = {
    "encoder-decoder": encoder_decoder(V, dim=16, layers=1, heads=2),
    "decoder": decoder_only(V, length=700, dim=16, layers=1, heads=2),
    "encoder": encoder_only(V, length=700, dim=16, layers=1, heads=2),
    "modern": modern_decoder_only(V, dim=16, layers=1, heads=2, kv_heads=1),
    "deepseek": deepseek_tiny(V),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "deepseek" else name for name in MODELS]
)
def test_one_export_serves_every_batch_and_length(name: str, rng: np.random.Generator) -> None:
    config: TransformerConfig = MODELS[name]
    model = Transformer(config, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    params, several = nnx.to_pure_dict(state), name == "encoder-decoder"
    b, t, s = export.symbolic_shape("b, t, s")
    shapes = [(b, s), (b, t)] if several else [(b, t)]
    tokens = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]

    def forward(params: dict, mask: jax.Array, *tokens: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(*tokens, inputs_mask=mask)

    mask = jax.ShapeDtypeStruct(shapes[0], jnp.int32)
    shaped = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    artefact = export.export(jax.jit(forward))(shaped, mask, *tokens)
    for batch, length in ((1, 7), (3, 5)):
        inputs = [rng.integers(0, V, (batch, length + number)).astype(np.int32) for number in range(len(shapes))]
        real = np.ones_like(inputs[0])
        real[0, -2:] = 0
        expected = model(*inputs, inputs_mask=real)
        found = artefact.call(params, real, *inputs)
        np.testing.assert_allclose(found[:, : length - 2], expected[:, : length - 2], rtol=0, atol=1e-5)


def test_integer_masks_are_masks(rng: np.random.Generator) -> None:
    """As tokenizers give them, in every argument of a model that takes a mask."""
    model = Transformer(MODELS["encoder-decoder"], rngs=nnx.Rngs(0))
    source, target = rng.integers(0, V, (2, 6)), rng.integers(0, V, (2, 5))
    real, heard = np.array([[1] * 6, [1] * 4 + [0] * 2]), np.array([[1] * 5, [1] * 3 + [0] * 2])
    expected = model(source, target, inputs_mask=real.astype(bool), targets_mask=heard.astype(bool))
    np.testing.assert_array_equal(model(source, target, inputs_mask=real, targets_mask=heard), expected)
    encoded = model.encode(source, mask=real)
    np.testing.assert_array_equal(encoded, model.encode(source, mask=real.astype(bool)))
    for kind in (bool, int):
        cache = model.init_cache(2, 5, encoded=encoded, encoded_mask=real.astype(kind))
        hidden, _ = model.extend(target, cache, mask=heard.astype(kind))
        np.testing.assert_allclose(model.logits(hidden), expected, atol=1e-5)
        cache = model.init_cache(2, 5, encoded=encoded, encoded_mask=real.astype(kind))
        logits, _ = model.prefill(target, cache, length=3, mask=heard.astype(kind))
        np.testing.assert_allclose(logits, expected[:, 2], atol=1e-5)


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_a_mask_of_one_row_holds_for_all_and_other_shapes_are_refused(name: str, rng: np.random.Generator) -> None:
    model, tokens = Transformer(MODELS[name], rngs=nnx.Rngs(0)), rng.integers(0, V, (3, 8))
    mask = np.array([[1, 1, 1, 1, 1, 1, 0, 0]])
    expected = model(tokens, inputs_mask=np.repeat(mask, 3, axis=0))
    np.testing.assert_allclose(model(tokens, inputs_mask=mask), expected, atol=1e-6)
    for wrong in (mask[0], mask[:, :6], np.repeat(mask, 2, axis=0), np.ones((3, 9), int)):
        with pytest.raises(InputError, match="must be"):
            model(tokens, inputs_mask=wrong)
