"""Linear maps that are stored transposed: where they stand, and that they are the same maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer import Transformer, decoder_only, encoder_decoder
from jaxformer.config import TransformerConfig
from jaxformer.layers import Linear, LinearMap, TransposedLinear
from jaxformer.presets import deepseek_tiny


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_transposed_map_is_the_same(dtype: jnp.dtype, rng: np.random.Generator) -> None:
    linear = Linear((3, 8), (2, 5), rngs=nnx.Rngs(0))
    linear.bias = nnx.Param(jnp.asarray(rng.normal(size=(2, 5)), jnp.float32))
    x, transposed = jnp.asarray(rng.normal(size=(4, 3, 8)), dtype), TransposedLinear(linear)
    assert transposed(x).dtype == dtype
    np.testing.assert_allclose(
        np.asarray(transposed(x), np.float32), np.asarray(linear(x), np.float32), rtol=jnp.finfo(dtype).eps, atol=1e-6
    )
    assert transposed.matrix().tolist() == linear.matrix().tolist()


@pytest.mark.parametrize(
    ("config", "narrowing"),
    [
        (decoder_only(31, length=24, dim=24, layers=2, heads=3), {"down"}),
        (encoder_decoder(31, dim=24, layers=2, heads=3), {"down"}),
        # Experts stay: they are many maps in one array.
        pytest.param(deepseek_tiny(31), {"query_down", "down", "router"}, marks=pytest.mark.slow),
    ],
    ids=["gpt", "paper", "deepseek"],
)
def test_steps_of_one_row_have_narrowing_maps_transposed(config: TransformerConfig, narrowing: set[str]) -> None:
    """In the decoder alone; steps of several rows keep them; logits and caches stay what they were."""
    model = Transformer(config, rngs=nnx.Rngs(0))
    single, several = model.for_steps(1), model.for_steps(2)
    assert transposed_maps(single) == narrowing
    assert transposed_maps(several) == transposed_maps(model) == set()
    encoded = None if model.encoder is None else model.encode(jnp.array([[3, 4, 5]]))
    prompt = jnp.array([[3, 1, 4]])
    _, cache = model.prefill(prompt, model.empty_cache(1, 8, encoded=encoded), length=3)
    plain, turned = (each.step(jnp.array([[7]]), cache) for each in (model, single))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), plain, turned)


def transposed_maps(model: Transformer) -> set[str]:
    """The names of the maps that are stored transposed."""
    maps = ((path[-1], module) for path, module in nnx.iter_modules(model) if isinstance(module, LinearMap))
    return {str(name) for name, module in maps if isinstance(module, TransposedLinear)}
