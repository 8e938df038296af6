"""Blockwise attention against the dense form: outputs, gradients, memory, and when it is chosen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops.structures import options_of

from jaxformer.ops import AttentionMask, attention_weights, dot_product_attention, weighted_values
from jaxformer.ops.blockwise import blockwise_attention

B, T, S, K, G, H, HV = 2, 37, 41, 3, 2, 5, 7

STRUCTURES = {
    "everything": {},
    "causal": {"causal": True},
    "causal from a cache": {"causal": True, "offset": 4},
    "causal, one offset per row": {"causal": True, "offset": jnp.array([11, -6])},
    "window": {"window": (5, 3)},
    "causal window": {"causal": True, "window": (6, None)},
    "window with offsets": {"window": (9, 0), "offset": jnp.array([30, 0])},
    "lengths": {"lengths": jnp.array([17, S])},
    "a row without keys": {"lengths": jnp.array([0, S]), "causal": True},
    "softcap": {"softcap": 1.5, "causal": True},
    "softcap and a row without keys": {"softcap": 1.5, "lengths": jnp.array([S, 0])},
    "left padding": {"causal": True, "mask": jnp.arange(S)[None, None, None] >= jnp.array([9, 0])[:, None, None, None]},
    "before every key": {"causal": True, "offset": -T},
    "after every key": {"window": (2, 2), "offset": S + 3},
    "scale": {"scale": 2.0},
    "packed": {"causal": True, "segments": jnp.arange(S)[None] // jnp.array([[7], [15]])},
    "packed, in a cache": {"window": (6, 2), "offset": jnp.array([3, 1]), "segments": jnp.arange(S)[None] // 9},
}


def inputs(dtype: jnp.dtype = jnp.float32) -> list[jax.Array]:
    """query, key, value and a gradient of the output."""
    rng = np.random.default_rng(5)
    shapes = (B, T, K * G, H), (B, S, K, H), (B, S, K, HV), (B, T, K * G, HV)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def dense(query: jax.Array, key: jax.Array, value: jax.Array, **options: object) -> jax.Array:
    """Through the map, which is dense by definition."""
    return weighted_values(attention_weights(query, key, **options_of(key.shape[1], **options)), value)


def blockwise(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    block: int,
    rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    **options: object,
) -> jax.Array:
    """The blockwise form with a block of its own choice, whatever the size."""
    keywords = options_of(key.shape[1], **options)
    mask = keywords["mask"]
    if mask.explicit is not None:
        mask = dataclasses.replace(mask, key_valid=mask.explicit[:, 0, 0], explicit=None)
    scale = keywords.get("scale", query.shape[3] ** -0.5)
    static = (scale, keywords.get("softcap"), block, rate)
    return compiled_blockwise(query, key, value, mask, *static, keywords.get("sinks"), dropout_key)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def compiled_blockwise(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    scale: float,
    softcap: float | None,
    block: int,
    rate: float,
    sinks: jax.Array | None,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """One program for all masks of one structure."""
    options = {"scale": scale, "softcap": softcap, "sinks": sinks, "block": block}
    return blockwise_attention(query, key, value, mask, **options, dropout_rate=rate, dropout_key=dropout_key)


def output_and_gradients(function: object, primals: list[jax.Array], d_output: jax.Array, **options: object) -> list:
    output, pull = jax.vjp(lambda *x: function(*x, **options), *primals)
    return [output, *pull(d_output)]


@pytest.mark.parametrize("options", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_equals_dense(options: dict[str, object]) -> None:
    assert_equals_dense(options, block=8)


@pytest.mark.parametrize("block", [19, 64])
def test_equals_dense_for_any_block(block: int) -> None:
    assert_equals_dense(STRUCTURES["window with offsets"], block)


@pytest.mark.parametrize("name", ["causal", "a row without keys", "before every key", "window with offsets"])
def test_sinks_equal_dense_in_value_and_gradient(name: str) -> None:
    *primals, d_output = inputs()
    sinks, options = jnp.linspace(-2, 2, K * G), STRUCTURES[name]

    def with_sinks(form: object, **settings: object) -> object:
        return lambda query, key, value, sinks: form(query, key, value, sinks=sinks, **settings, **options)

    expected = output_and_gradients(with_sinks(dense), [*primals, sinks], d_output)
    ours = output_and_gradients(with_sinks(blockwise, block=8), [*primals, sinks], d_output)
    for actual, reference in zip(ours, expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-5)


def assert_equals_dense(options: dict[str, object], block: int) -> None:
    *primals, d_output = inputs()
    expected = output_and_gradients(dense, primals, d_output, **options)
    ours = output_and_gradients(blockwise, primals, d_output, block=block, **options)
    for actual, reference in zip(ours, expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-5)


def test_huge_scores_stay_finite_and_equal_dense() -> None:
    """Whole numbers, so that both forms have exactly the same scores, thousands of them apart."""
    query, key, value, d_output = inputs()
    primals = [1000 * jnp.round(3 * query), jnp.round(2 * key), value]
    expected = output_and_gradients(dense, primals, d_output, causal=True, scale=1.0)
    ours = output_and_gradients(blockwise, primals, d_output, causal=True, scale=1.0, block=8)
    for actual, reference in zip(ours, expected, strict=True):
        assert jnp.isfinite(actual).all()
        np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-5 * max(1, float(jnp.abs(reference).max())))


def test_sixteen_bit_inputs() -> None:
    *primals, d_output = inputs(jnp.bfloat16)
    expected = output_and_gradients(dense, primals, d_output, causal=True)
    ours = output_and_gradients(blockwise, primals, d_output, causal=True, block=8)
    for actual, reference in zip(ours, expected, strict=True):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(actual), np.float32(reference), rtol=0.03, atol=0.03)


def test_blocks_that_are_ruled_out_are_never_computed() -> None:
    """NaN keys in the blocks before every window and after the last query: one look at them would spread."""
    query, key, value, d_output = inputs()
    poisoned = [x.at[:, :8].set(jnp.nan).at[:, 40:].set(jnp.nan) for x in (key, value)]
    options = {"causal": True, "window": (8, None), "offset": 16}  # queries at 16 .. 39 see keys 8 .. 39
    output, d_query, d_key, d_value = output_and_gradients(
        blockwise, [query[:, :24], *poisoned], d_output[:, :24], block=8, **options
    )
    for x in (output, d_query, d_key, d_value):
        assert jnp.isfinite(x).all()
    np.testing.assert_array_equal(d_key[:, :8], 0)
    np.testing.assert_array_equal(d_value[:, 40:], 0)


def long_inputs(length: int) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((1, length, 8, 64), jnp.float32)] * 3


def temporary_bytes(length: int, **options: object) -> int:
    """Bytes of temporaries of the compiled forward and backward pass."""

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.sum(dot_product_attention(query, key, value, **options_of(length, **options)))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*long_inputs(length)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.optimised
def test_16384_tokens_need_less_than_a_gigabyte() -> None:
    assert temporary_bytes(16_384, causal=True) < 1 << 30


@pytest.mark.optimised
@pytest.mark.parametrize("options", [{}, {"causal": True, "window": (100, None)}], ids=["full", "window"])
def test_memory_is_linear_in_the_length(options: dict[str, object]) -> None:
    assert temporary_bytes(16_384, **options) < 2.2 * temporary_bytes(8_192, **options)


def holds_an_array_of(size: int, **options: object) -> bool:
    """Whether 600 queries and keys, with these keywords, make any array of at least `size` numbers."""
    x = jax.ShapeDtypeStruct((1, 600, 1, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda q, k, v: dot_product_attention(q, k, v, **options_of(600, **options)))(x, x, x)
    return any(variable.aval.size >= size for equation in jaxpr.eqns for variable in equation.outvars)


def test_chosen_from_the_structure_of_the_mask() -> None:
    lengths, padding = jnp.array([600]), jnp.ones((1, 1, 1, 600), bool)
    for options in [
        {},
        {"causal": True, "offset": jnp.array([3])},
        {"window": (5, 5), "softcap": 3.0},
        {"lengths": lengths},
        {"mask": padding, "causal": True},
    ]:
        assert not holds_an_array_of(600 * 600, **options), options
    for options in [{"mask": jnp.ones((600, 600), bool)}, {"bias": jnp.zeros((1, 1, 1, 600))}]:
        assert holds_an_array_of(600 * 600, **options), options


def test_the_choice_changes_no_result() -> None:
    rng = np.random.default_rng(7)
    query, key, value = (jnp.asarray(rng.normal(size=(2, 521, 2, 8)), jnp.float32) for _ in range(3))
    options = {"causal": True, "lengths": jnp.array([521, 300])}
    keywords = options_of(521, **options)
    chosen = output_and_gradients(dot_product_attention, [query, key, value], jnp.ones_like(value), **keywords)
    expected = output_and_gradients(dense, [query, key, value], jnp.ones_like(value), **options)
    for actual, reference in zip(chosen, expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-5)


def test_under_vmap_and_jit() -> None:
    *primals, _ = inputs()
    stacked = [jnp.stack([x, 2 * x]) for x in primals]
    mapped = jax.jit(jax.vmap(lambda *x: blockwise(*x, block=8, causal=True)))(*stacked)
    np.testing.assert_allclose(mapped[1], dense(*(2 * x for x in primals), causal=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["causal", "left padding", "softcap", "packed"])
def test_dropout_drops_the_same_weights_in_both_directions(name: str) -> None:
    """Averaging unit vectors shows which weights are left; with them, the dense form has equal gradients."""
    options, rate = STRUCTURES[name], 0.3
    query, key, value, d_output = inputs()
    drops = {"rate": rate, "dropout_key": jax.random.key(3)}
    unit = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, K, S))
    left = jnp.swapaxes(blockwise(query, key, unit, block=16, **options, **drops), 1, 2)  # [B, N, T, S]
    weights = attention_weights(query, key, **options_of(S, **options))
    factors = jnp.where(weights > 1e-6, left / jnp.maximum(weights, 1e-6), 0)
    kept = factors > 0.5
    # The factor is a quotient of weights as small as 1e-6, each rounded at 1e-7 of the largest one.
    np.testing.assert_allclose(factors[kept], 1 / (1 - rate), rtol=1e-3)
    seen = (weights > 1e-6).sum()
    assert abs(kept.sum() / seen - (1 - rate)) < 0.05

    def masked(query: jax.Array, key: jax.Array, value: jax.Array, **_: object) -> jax.Array:
        weights = attention_weights(query, key, **options_of(S, **options))
        return weighted_values(weights * jnp.where(kept, 1 / (1 - rate), 0), value)

    expected = output_and_gradients(masked, [query, key, value], d_output)
    actual = output_and_gradients(
        functools.partial(blockwise, block=16, **options, **drops), [query, key, value], d_output
    )
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)


def test_long_sequences_are_dropped_block_by_block() -> None:
    """Attention with dropout holds no map of 1,024 tokens either, and another key drops other weights."""
    query = jax.random.normal(jax.random.key(0), (1, 1024, 2, 8))

    def attended(key: jax.Array | None) -> jax.Array:
        mask = AttentionMask(causal=True)
        return dot_product_attention(query, query, query, mask=mask, dropout_rate=0.1, dropout_key=key)

    text = jax.jit(attended).lower(jax.random.key(1)).as_text()
    assert "1024x1024" not in text
    first, again, other, whole = map(attended, (jax.random.key(1), jax.random.key(1), jax.random.key(2), None))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert np.abs(np.mean(first - whole)) < 0.01
