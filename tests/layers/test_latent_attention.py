"""Latent attention: both of its forms against keys and values made by hand for every head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer import InputError, Transformer, decoder_only
from jaxformer.config import LatentAttentionConfig, Rope
from jaxformer.layers import LatentAttention, MLACache
from jaxformer.ops import AttentionMask, apply_rope, rope_cos_sin, rotary_frequencies

B, T, S, D = 3, 5, 9, 14
SELF = LatentAttentionConfig(4, 10, 7, 6, 4, 5, rope=Rope(50.0, layout="interleaved"), bias=True)
PLAIN = LatentAttentionConfig(4, 10, None, 6, 4, norm=None, scale=0.7)
CROSS = LatentAttentionConfig(2, 8, None, 6, 0)
CONFIGS = {"self": SELF, "plain": PLAIN, "cross": CROSS}


def make(config: LatentAttentionConfig) -> LatentAttention:
    """A layer whose biases and norms are random too."""
    rng = np.random.default_rng(3)
    module = LatentAttention(config, D, rngs=nnx.Rngs(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), module)


@jax.numpy_rank_promotion("allow")
def by_hand(module: LatentAttention, x: jax.Array, y: jax.Array, valid: jax.Array, start: int | None) -> jax.Array:
    """Queries of x over the states y, head by head. start: the slot of the first query of a causal layer."""
    config, places = module.config, jnp.arange(y.shape[1])
    R, H = config.kv_lora_rank, config.qk_nope_head_dim

    def normed(vector: jax.Array, norm: Any) -> jax.Array:
        if norm is None:
            return vector
        return vector / jnp.sqrt(jnp.mean(vector**2, -1, keepdims=True) + config.norm.epsilon) * norm.scale[...]

    def turned(vector: jax.Array, positions: jax.Array) -> jax.Array:
        if config.rope is None:
            return vector
        by = rope_cos_sin(positions[None], rotary_frequencies(vector.shape[-1], config.rope.base))
        return apply_rope(vector[:, :, None], by, layout=config.rope.layout)[:, :, 0]

    q = x
    if module.query_down is not None:
        q = normed(x @ module.query_down.weight[...] + module.query_down.bias[...], module.query_norm)
    down = y @ module.down.weight[...] + (0 if module.down.bias is None else module.down.bias[...])
    latent, shared = normed(down[..., :R], module.latent_norm), turned(down[..., R:], places)
    scale = (H + config.qk_rope_head_dim) ** -0.5 if config.scale is None else config.scale
    visible = jnp.broadcast_to(valid[:, None], (len(x), x.shape[1], y.shape[1]))
    at = jnp.arange(x.shape[1]) + (start or 0)
    if start is not None:
        visible = visible & (places[None, None] <= at[None, :, None])
    said = 0
    for head in range(config.heads):
        query = q @ module.query.weight[:, head]
        query = jnp.concatenate([query[..., :H], turned(query[..., H:], at)], -1)
        key = jnp.concatenate([latent @ module.key.weight[:, head], shared], -1)
        scores = jnp.where(visible, scale * jnp.einsum("BTH,BSH->BTS", query, key), -jnp.inf)
        said += jax.nn.softmax(scores, -1) @ (latent @ module.value.weight[:, head]) @ module.output.weight[head]
    return said + (0 if module.output.bias is None else module.output.bias[...])


def states(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def assert_close(ours: Any, theirs: Any) -> None:
    """Every leaf within 1e-5 of the largest entry."""
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * max(1, np.abs(their).max()))


@pytest.mark.parametrize("absorbed", [False, True], ids=["expanded", "absorbed"])
@pytest.mark.parametrize("name", ["self", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plain", "cross"))])
def test_equals_the_layer_by_hand_in_value_and_gradient(name: str, absorbed: bool, rng: np.random.Generator) -> None:
    """The last T of S positions over all of them, some of which are padding; or T queries over a source of S."""
    module, y = make(CONFIGS[name]), states(rng, B, S, D)
    start = None if name == "cross" else S - T
    x = states(rng, B, T, D) if start is None else y[:, start:]
    valid = jnp.asarray(np.arange(S) < np.array([S, S - 1, S - 2])[:, None])
    mask = AttentionMask(causal=start is not None, offset=start or 0, key_valid=valid)

    def ours(module: LatentAttention, x: jax.Array, y: jax.Array) -> jax.Array:
        at = jnp.arange(S)[None]
        kv = module.project_kv(y, at if module.config.rope else None)
        return module(x, kv=kv, mask=mask, position_ids=at[:, S - T :], absorbed=absorbed).states

    def outcome(layer: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda *inputs: jnp.sum(jnp.sin(layer(*inputs))), (0, 1, 2)))(module, x, y)

    reference = lambda module, x, y: by_hand(module, x, y, valid, start)  # noqa: E731
    assert_close(ours(module, x, y), reference(module, x, y))
    assert_close(outcome(ours), outcome(reference))


def test_dropout_drops_the_same_weights_in_both_forms(rng: np.random.Generator) -> None:
    module, x = make(dataclasses.replace(SELF, dropout=0.4)), states(rng, B, S, D)
    key, mask = jax.random.key(2), AttentionMask(causal=True)
    forms = [module(x, mask=mask, absorbed=form, dropout_key=key).states for form in (False, True)]
    assert_close(*forms)
    assert float(jnp.abs(forms[0] - module(x, mask=mask).states).max()) > 1e-2


def test_rows_that_share_a_source_get_what_copies_would_give(rng: np.random.Generator) -> None:
    module, beams = make(CROSS), 2
    x, kv = states(rng, B * beams, T, D), module.project_kv(states(rng, B, S, D))
    copies = MLACache.of(jnp.repeat(kv.unpack(), beams, axis=0))
    for form in (False, True):
        assert_close(*(module(x, kv=each, absorbed=form, return_weights=True) for each in (kv, copies)))


def test_the_form_follows_from_the_work() -> None:
    """Many queries are expanded, the next one is absorbed; and XLA counts fewer operations for it."""
    module = make(LatentAttentionConfig(8, 32, None, 16, 8, rope=Rope()))
    assert not module.absorbs(64, 64)
    assert module.absorbs(1, 64)
    x, kv, at = jnp.zeros((1, 1, D)), MLACache.of(jnp.zeros((1, 64, 40))), jnp.array([[63]])

    def flops(absorbed: bool) -> float:
        call = jax.jit(lambda module, x, kv: module(x, kv=kv, position_ids=at, absorbed=absorbed).states)
        return call.lower(module, x, kv).cost_analysis()["flops"]

    assert flops(True) < flops(False) / 5


def test_keys_stay_turned_as_they_were_written(rng: np.random.Generator) -> None:
    """By the position of their token: what is written later, and where a later call starts, changes none of them."""
    attention = LatentAttentionConfig(4, 9, 7, 6, 4, 5, rope=Rope(9.0))
    config = decoder_only(29, length=17, dim=20, layers=1, heads=4)
    block = dataclasses.replace(config.decoder.blocks[0], attention=attention)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, blocks=(block,)))
    model, extend = Transformer(config, rngs=nnx.Rngs(0)), jax.jit(Transformer.extend)
    tokens = jnp.asarray(rng.integers(0, 29, (2, 8)))
    whole = extend(model, tokens, model.init_cache(2, 12))[1].layers[0].states
    cache, written = model.init_cache(2, 12), 0
    for size in (3, 1, 4):
        before = cache.layers[0].states
        _, cache = extend(model, tokens[:, written : written + size], cache)
        np.testing.assert_array_equal(cache.layers[0].states[:, :written], before[:, :written])
        written += size
        np.testing.assert_allclose(cache.layers[0].states[:, :written], whole[:, :written], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"kv_lora_rank": 0}, "at least one, not kv_lora_rank=0"),
        ({"qk_rope_head_dim": -1}, "cannot have a width of -1"),
    ],
)
def test_impossible_widths_are_refused(widths: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LatentAttentionConfig(**widths)
