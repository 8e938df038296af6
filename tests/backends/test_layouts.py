"""What backends do differently, caches and experts: whichever it is, the answers are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer import (
    AttentionMask,
    InputError,
    Session,
    Transformer,
    backends,
    decoder_only,
    encoder_decoder,
    generate,
    modern_decoder_only,
)
from jaxformer.backends import KVCache, PackedKVCache, kv_cache
from jaxformer.config import (
    AttentionConfig,
    FeedForwardConfig,
    LatentAttentionConfig,
    MoEConfig,
    RelativePositions,
    Rope,
    SoftmaxRouter,
)
from jaxformer.layers.any_attention import make_attention
from jaxformer.layers.embedding import RelativePositionBias
from jaxformer.layers.experts import Experts
from jaxformer.presets import deepseek_tiny

V = 29
MODELS = {
    "gpt": decoder_only(V, length=24, dim=24, layers=2, heads=3),
    "modern": modern_decoder_only(V, dim=24, layers=1, heads=4, kv_heads=2),
    "encoder-decoder": encoder_decoder(V, dim=24, layers=1, heads=2),
    "deepseek": deepseek_tiny(V),
}
EXPERTS = {
    "plain": FeedForwardConfig(9, "gelu"),
    "gated": FeedForwardConfig(9, "silu", gated=True, bias=False),
    "limited": FeedForwardConfig(9, "quick_gelu", gated=True, limit=0.5),
}
ATTENTIONS = {
    "grouped": AttentionConfig(4, kv_heads=2, head_dim=6, rope=Rope()),
    "latent": LatentAttentionConfig(2, 9, 7, 6, 4, rope=Rope()),
}


def test_cpus_pack_and_others_do_not() -> None:
    keys = jnp.zeros((2, 5, 3, 4))
    with backends.using("cpu"):
        assert isinstance(kv_cache(keys, keys), PackedKVCache)
    with backends.using("default"):
        cache = kv_cache(keys, keys)
        assert isinstance(cache, KVCache)
        assert cache.key.shape == (2, 5, 3, 4)


@pytest.mark.parametrize(
    "name", ["gpt", "modern", *(pytest.param(n, marks=pytest.mark.slow) for n in ("encoder-decoder", "deepseek"))]
)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same(name: str, beams: int, rng: np.random.Generator) -> None:
    model = Transformer(MODELS[name], rngs=nnx.Rngs(0))
    prompts = rng.integers(3, V, (2, 4))
    call = {"num_beams": beams, "max_new_tokens": 8, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
    found = {}
    for layout in ("cpu", "default"):
        with backends.using(layout):
            found[layout] = generate(model, prompts, **call)
            cache = jax.eval_shape(lambda: model.init_cache(1, 4)).layers[0]
        if name != "deepseek":
            assert isinstance(cache, {"cpu": PackedKVCache, "default": KVCache}[layout])
    np.testing.assert_array_equal(found["cpu"].sequences, found["default"].sequences)
    np.testing.assert_allclose(found["cpu"].sequences_scores, found["default"].sequences_scores, atol=1e-5)


@pytest.mark.parametrize("layout", ["cpu", "default"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_rows_may_stand_at_slots_of_their_own(name: str, rows: int, layout: str, rng: np.random.Generator) -> None:
    """Requests of different lengths in one batch: each as if it were alone."""
    attention = make_attention(ATTENTIONS[name], 24, rngs=nnx.Rngs(0))
    read = rng.integers(1, 6, rows)
    x = jnp.asarray(rng.normal(size=(rows, 9, 24)), jnp.float32)
    with backends.using(layout):
        cache = attention.init_cache(rows, 12)
        whole = attention(x[:, :6], mask=AttentionMask(causal=True), cache=cache).cache
        states, moved, _ = attention(x[:, 6:8], mask=AttentionMask(causal=True, offset=jnp.asarray(read)), cache=whole)
        for row, length in enumerate(read.tolist()):
            alone = jnp.concatenate([x[row : row + 1, :length], x[row : row + 1, 6:8]], axis=1)
            expected = attention(alone, mask=AttentionMask(causal=True)).states[:, length:]
            np.testing.assert_allclose(states[row : row + 1], expected, atol=1e-5)
        assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, whole)


@pytest.mark.parametrize("layout", ["cpu", "default"])
def test_the_methods_of_a_cache(layout: str, rng: np.random.Generator) -> None:
    """Written out with NumPy."""
    key, value, new = (rng.normal(size=(3, length, 2, 4)).astype(np.float32) for length in (7, 7, 2))
    with backends.using(layout):
        cache, more = kv_cache(jnp.asarray(key), jnp.asarray(value)), kv_cache(jnp.asarray(new), jnp.asarray(new))
        assert (cache.rows, cache.capacity) == (3, 7)
        appended = np.concatenate([key[:, :3], new, key[:, 5:]], axis=1)
        np.testing.assert_array_equal(cache.append(more, 3).unpack()[0], appended)
        rows = np.array([2, 0, 2])
        for ours, theirs in zip(cache.reorder(rows).unpack(), (key, value), strict=True):
            np.testing.assert_array_equal(ours, theirs[rows])
        copied = key.copy()
        copied[:, 2:5] = key[rows, 2:5]
        np.testing.assert_array_equal(cache.copy_slots(rows, 2, 3).unpack()[0], copied)
        np.testing.assert_array_equal(cache.prefix(4).unpack()[1], value[:, :4])


@pytest.mark.parametrize("expert", EXPERTS.values(), ids=EXPERTS)
def test_grouped_experts_equal_the_loop_over_blocks(expert: FeedForwardConfig, rng: np.random.Generator) -> None:
    """In value and gradient, also where an expert has no token."""
    layer = Experts(MoEConfig(5, 2, expert, SoftmaxRouter(bias=True)), 12, rngs=nnx.Rngs(0))
    layer.router.bias[...] = jnp.array([3.0, 0.0, 1.0, -50.0, 0.0])
    layer = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), layer)
    x = jnp.asarray(rng.normal(size=(3, 7, 12)), jnp.float32)

    def found(name: str) -> tuple:
        with backends.using(name):
            return jax.jit(jax.value_and_grad(lambda layer, x: jnp.sum(jnp.sin(layer(x))), (0, 1)))(layer, x)

    loop, grouped = found("cpu"), found("default")
    assert "ragged_dot" in str(jax.make_jaxpr(in_default)(layer, x))
    for ours, theirs in zip(jax.tree.leaves(grouped), jax.tree.leaves(loop), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, float(jnp.abs(theirs).max())))


def in_default(layer: Experts, x: jax.Array) -> jax.Array:
    with backends.using("default"):
        return layer(x)


@pytest.mark.parametrize("layout", ["cpu", "default"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_empty_slots_are_never_seen_and_tokens_must_fit(name: str, layout: str) -> None:
    attention, x = make_attention(ATTENTIONS[name], 24, rngs=nnx.Rngs(0)), jnp.ones((2, 3, 24))
    with backends.using(layout):
        cache = attention.init_cache(2, 8)
        for mask in (None, AttentionMask(), AttentionMask(window=(5, 3))):
            with pytest.raises(InputError, match="empty slots"):
                attention(x, mask=mask, cache=cache)
        for offset in (6, -5, np.int64(6)):
            with pytest.raises(InputError, match="do not fit"):
                attention(x, mask=AttentionMask(causal=True, offset=offset), cache=cache)
        hidden = jnp.arange(8)[None] < 3
        seen = attention(x, mask=AttentionMask(key_valid=hidden), cache=cache)
        np.testing.assert_allclose(seen.states, attention(x).states, atol=1e-5)


@pytest.mark.parametrize("layout", ["cpu", "default"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_offsets_and_types_of_a_cache(name: str, layout: str, rng: np.random.Generator) -> None:
    """One slot for all rows may be an array; what is written takes the type of the cache."""
    attention = make_attention(ATTENTIONS[name], 24, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(3, 4, 24)), jnp.float32)
    with backends.using(layout):
        expected = attention(x, mask=AttentionMask(causal=True, offset=2), cache=attention.init_cache(3, 8)).states
        for offset in (jnp.array([2]), jnp.array([2, 2, 2]), jnp.array(2), np.int32(2)):
            mask = AttentionMask(causal=True, offset=offset)
            states = attention(x, mask=mask, cache=attention.init_cache(3, 8)).states
            np.testing.assert_allclose(states, expected, atol=1e-5)
            narrow = attention(x, mask=mask, cache=attention.init_cache(3, 8, jnp.bfloat16)).cache
            assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}


def test_a_session_keeps_its_layout() -> None:
    model = Transformer(MODELS["gpt"], rngs=nnx.Rngs(0))
    call = {"max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 0}
    with backends.using("default"):
        session = Session(model, [[3, 4]], **call)
    while not session.finished:
        session.advance()
    np.testing.assert_array_equal(session.result().sequences, generate(model, [[3, 4]], **call).sequences)
    with pytest.raises(InputError, match="gpu"), backends.using("gpu"):
        pass


def test_relative_positions_of_rows_at_slots_of_their_own() -> None:
    bias = RelativePositionBias(RelativePositions(8, 16), 3, rngs=nnx.Rngs(0))
    together = bias(1, 6, first=jnp.array([0, 5, 2]), causal=True)
    assert together.shape == (3, 3, 1, 6)
    for row, first in enumerate((0, 5, 2)):
        np.testing.assert_array_equal(together[row : row + 1], bias(1, 6, first=first, causal=True))
