"""Scaled dot-product attention against PyTorch, and the laws of its keywords."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.structures import options_of

from jaxformer import InputError
from jaxformer.ops import AttentionMask, attention_scores, attention_weights, dot_product_attention, weighted_values

B, T, S, K, G, H, HV = 2, 5, 7, 3, 2, 11, 13
N = K * G


def arrays(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.fixture
def inputs(rng: np.random.Generator) -> list[np.ndarray]:
    """query, key, value, and a gradient of the output."""
    return arrays(rng, (B, T, N, H), (B, S, K, H), (B, S, K, HV), (B, T, N, HV))


def torch_attention(inputs: list[np.ndarray], **options: object) -> list[np.ndarray]:
    """PyTorch's output [B, T, N, Hv] and the gradients of query, key and value."""
    *leaves, d_output = (torch.tensor(x) for x in inputs)
    leaves = [x.requires_grad_() for x in leaves]
    query, key, value = (x.transpose(1, 2) for x in leaves)
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True, **options)
    output = output.transpose(1, 2)
    output.backward(d_output)
    return [output.detach().numpy(), *(x.grad.numpy() for x in leaves)]


def our_attention(inputs: list[np.ndarray], **options: object) -> list[jax.Array]:
    *primals, d_output = (jnp.asarray(x) for x in inputs)
    keywords = options_of(inputs[1].shape[1], **options)
    output, pull = jax.vjp(lambda *x: dot_product_attention(*x, **keywords), *primals)
    return [output, *pull(d_output)]


def assert_equal_torch(ours: list[jax.Array], expected: list[np.ndarray]) -> None:
    for actual, reference in zip(ours, expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-6, atol=1e-6)


def test_plain_with_groups_and_two_widths_equals_torch(inputs: list[np.ndarray]) -> None:
    assert_equal_torch(our_attention(inputs), torch_attention(inputs))


def test_scale_equals_torch(inputs: list[np.ndarray]) -> None:
    assert_equal_torch(our_attention(inputs, scale=0.7), torch_attention(inputs, scale=0.7))


def test_causal_equals_torch(inputs: list[np.ndarray]) -> None:
    assert_equal_torch(our_attention(inputs, causal=True), torch_attention(inputs, is_causal=True))


@pytest.mark.parametrize("shape", [(T, S), (1, 1, T, S), (B, 1, 1, S), (B, 1, T, S), (1, N, T, S), (B, N, T, S)])
def test_mask_and_bias_equal_torch(inputs: list[np.ndarray], rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    mask = rng.random(shape) < 0.6
    mask[..., 0] = True  # PyTorch's gradients are NaN where a query sees nothing
    bias = rng.normal(size=shape).astype(np.float32)
    expected = torch_attention(inputs, attn_mask=torch.tensor(mask))
    assert_equal_torch(our_attention(inputs, mask=jnp.asarray(mask)), expected)
    expected = torch_attention(inputs, attn_mask=torch.tensor(bias))
    assert_equal_torch(our_attention(inputs, bias=jnp.asarray(bias)), expected)
    hidden = np.where(mask, bias, -np.inf)
    expected = torch_attention(inputs, attn_mask=torch.tensor(hidden))
    assert_equal_torch(our_attention(inputs, bias=jnp.asarray(hidden)), expected)
    assert_equal_torch(our_attention(inputs, mask=jnp.asarray(mask), bias=jnp.asarray(bias)), expected)


def test_gradient_of_the_bias_equals_torch(inputs: list[np.ndarray], rng: np.random.Generator) -> None:
    (bias,) = arrays(rng, (1, N, T, S))
    query, key, value, d_output = (jnp.asarray(x) for x in inputs)
    ours = jax.grad(lambda b: jnp.vdot(dot_product_attention(query, key, value, bias=b), d_output))(jnp.asarray(bias))
    leaf = torch.tensor(bias, requires_grad=True)
    torch_inputs = (torch.tensor(x).transpose(1, 2) for x in inputs[:3])
    output = torch.nn.functional.scaled_dot_product_attention(*torch_inputs, attn_mask=leaf, enable_gqa=True)
    output.transpose(1, 2).backward(torch.tensor(inputs[3]))
    np.testing.assert_allclose(ours, leaf.grad.numpy(), rtol=1e-6, atol=1e-6)


def test_sinks_equal_a_key_of_that_score_without_value(inputs: list[np.ndarray], rng: np.random.Generator) -> None:
    """Which PyTorch can be given: a key of zeros, its score added as a bias, a value of zeros."""
    (sinks,) = arrays(rng, (N,))
    nothing = [((0, 0), (0, extra), (0, 0), (0, 0)) for extra in (0, 1, 1, 0)]
    widened = [np.pad(x, padding) for x, padding in zip(inputs, nothing, strict=True)]
    bias = np.zeros((B, N, T, S + 1), np.float32)
    bias[..., -1] = sinks[None, :, None]
    bias = torch.tensor(bias, requires_grad=True)
    expected, d_query, d_key, d_value = torch_attention(widened, attn_mask=bias)
    *primals, d_output = map(jnp.asarray, inputs)
    output, pull = jax.vjp(lambda *x: dot_product_attention(*x[:3], sinks=x[3]), *primals, jnp.asarray(sinks))
    d_sinks = bias.grad[..., -1].sum((0, 2)).numpy()
    wanted = [expected, d_query, d_key[:, :S], d_value[:, :S], d_sinks]
    for actual, reference in zip([output, *pull(d_output)], wanted, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-6, atol=1e-5)
    rows = attention_weights(*primals[:2], sinks=jnp.asarray(sinks)).sum(-1)
    assert rows.min() > 0
    assert rows.max() < 1


@pytest.mark.parametrize("heads", [(1, 1), (6, 1), (6, 6)])
def test_any_grouping_equals_repeated_heads(rng: np.random.Generator, heads: tuple[int, int]) -> None:
    queries, keys = heads
    query, key, value = (jnp.asarray(x) for x in arrays(rng, (B, T, queries, H), (B, S, keys, H), (B, S, keys, HV)))
    repeated = [jnp.repeat(x, queries // keys, axis=2) for x in (key, value)]
    np.testing.assert_allclose(
        dot_product_attention(query, key, value), dot_product_attention(query, *repeated), rtol=1e-6, atol=1e-7
    )


def test_one_query_and_one_key() -> None:
    value = jnp.arange(3.0).reshape(1, 1, 1, 3)
    output = dot_product_attention(jnp.ones((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2)), value)
    np.testing.assert_array_equal(output, value)


def test_the_scale_is_one_over_the_root_of_the_key_width() -> None:
    query, key = jnp.full((1, 1, 1, 16), 2.0), jnp.full((1, 1, 1, 16), 3.0)
    np.testing.assert_array_equal(attention_scores(query, key), [[[[16 * 6 / 4]]]])
    np.testing.assert_array_equal(attention_scores(query, key, scale=1.0), [[[[16 * 6]]]])


def test_without_the_scale_the_softmax_saturates(rng: np.random.Generator) -> None:
    query, key = (jnp.asarray(x) for x in arrays(rng, (1, 31, 1, 512), (1, 31, 1, 512)))
    assert attention_weights(query, key, scale=1.0).max(axis=-1).mean() > 0.9
    assert attention_weights(query, key).max(axis=-1).mean() < 0.4


def test_scores_weights_and_values_compose(inputs: list[np.ndarray]) -> None:
    query, key, value, _ = (jnp.asarray(x) for x in inputs)
    options = options_of(S, causal=True, offset=1, softcap=2.0, lengths=jnp.array([3, S]))
    scores, weights = attention_scores(query, key, **options), attention_weights(query, key, **options)
    assert scores.shape == weights.shape == (B, N, T, S)
    assert scores.dtype == weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, jax.nn.softmax(scores), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(weighted_values(weights, value), dot_product_attention(query, key, value, **options))


def test_softcap_then_bias_then_mask(inputs: list[np.ndarray], rng: np.random.Generator) -> None:
    query, key = (jnp.asarray(x) for x in inputs[:2])
    bias, mask = 9 * rng.normal(size=(T, S)).astype(np.float32), rng.random((T, S)) < 0.5
    plain = np.asarray(attention_scores(query, key))
    expected = np.where(mask, 1.5 * np.tanh(plain / 1.5) + bias, -np.inf)
    scores = attention_scores(query, key, softcap=1.5, bias=jnp.asarray(bias), mask=jnp.asarray(mask))
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)


NOTHING_VISIBLE = {
    "mask": {"mask": jnp.zeros((T, S), bool)},
    "key mask": {"mask": jnp.zeros((B, 1, 1, S), bool)},
    "bias": {"bias": jnp.full((T, S), -jnp.inf)},
    "lengths": {"lengths": jnp.zeros((B,), int)},
    "offset": {"causal": True, "offset": -T},
    "window": {"window": (0, 0), "offset": S},
}


@pytest.mark.parametrize("options", NOTHING_VISIBLE.values(), ids=NOTHING_VISIBLE.keys())
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_query_that_sees_nothing_gives_zeros_and_zero_gradients(
    inputs: list[np.ndarray], options: dict[str, object], softcap: float | None
) -> None:
    for x in our_attention(inputs, softcap=softcap, **options):
        np.testing.assert_array_equal(x, 0)
    query, key = (jnp.asarray(x) for x in inputs[:2])
    keywords = options_of(S, **options)
    np.testing.assert_array_equal(attention_weights(query, key, **keywords), 0)
    np.testing.assert_array_equal(attention_scores(query, key, **keywords), -np.inf)


def test_no_keys_at_all_gives_zeros() -> None:
    output = dot_product_attention(jnp.ones((B, T, N, H)), jnp.ones((B, 0, K, H)), jnp.ones((B, 0, K, HV)))
    np.testing.assert_array_equal(output, np.zeros((B, T, N, HV)))


def test_huge_scores_stay_finite(inputs: list[np.ndarray]) -> None:
    scaled = [1e4 * inputs[0], *inputs[1:]]
    for x in our_attention(scaled):
        assert jnp.isfinite(x).all()
    weights = attention_weights(jnp.asarray(scaled[0]), jnp.asarray(scaled[1]))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)


def visible_by_hand(options: dict[str, object]) -> np.ndarray:
    """[B, T, S] cell by cell."""
    seen = np.zeros((B, T, S), bool)
    left, right = options.get("window") or (None, None)
    for row, i, j in itertools.product(range(B), range(T), range(S)):
        position = i + int(np.broadcast_to(options.get("offset", 0), (B,))[row])
        seen[row, i, j] = (
            (not options.get("causal") or j <= position)
            and (left is None or j >= position - left)
            and (right is None or j <= position + right)
            and j < np.asarray(options.get("lengths", [S] * B))[row]
        )
    return seen


sides = st.none() | st.integers(0, 4)
structures = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window": st.none() | st.tuples(sides, sides),
        "offset": st.integers(-3, 9) | st.tuples(st.integers(-3, 9), st.integers(-3, 9)),
        "lengths": st.tuples(st.integers(0, S), st.integers(0, S)),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(structures)
def test_structure_means_what_its_definition_says(options: dict[str, object]) -> None:
    rng = np.random.default_rng(3)
    query, key, value = (jnp.asarray(x) for x in arrays(rng, (B, T, N, H), (B, S, K, H), (B, S, K, HV)))
    mask = jnp.asarray(visible_by_hand(options))[:, None]
    ours = {name: jnp.asarray(x) if isinstance(x, tuple) and name != "window" else x for name, x in options.items()}
    np.testing.assert_array_equal(
        dot_product_attention(query, key, value, **options_of(S, **ours)),
        dot_product_attention(query, key, value, mask=mask),
    )
    materialized = options_of(S, **ours)["mask"].materialize(T, S)
    np.testing.assert_array_equal(jnp.broadcast_to(materialized, mask.shape), mask)


@pytest.mark.parametrize("offset", [0, 2, -1])
def test_a_traced_offset_equals_a_static_one(inputs: list[np.ndarray], offset: int) -> None:
    query, key, value, _ = (jnp.asarray(x) for x in inputs)

    @jax.jit
    def traced(at: jax.Array) -> jax.Array:
        return dot_product_attention(query, key, value, mask=AttentionMask(causal=True, offset=at))

    static = dot_product_attention(query, key, value, mask=AttentionMask(causal=True, offset=offset))
    np.testing.assert_allclose(traced(jnp.asarray(offset)), static, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(traced(jnp.full((B,), offset)), static, rtol=1e-6, atol=1e-6)


def test_queries_one_at_a_time_equal_all_at_once(inputs: list[np.ndarray]) -> None:
    query, key, value, _ = (jnp.asarray(x) for x in inputs)
    whole = dot_product_attention(query, key, value, mask=AttentionMask(causal=True, offset=2, window=(3, None)))
    single = [
        dot_product_attention(
            query[:, i : i + 1], key, value, mask=AttentionMask(causal=True, offset=2 + i, window=(3, None))
        )
        for i in range(T)
    ]
    np.testing.assert_allclose(jnp.concatenate(single, axis=1), whole, rtol=1e-6, atol=1e-6)


def test_left_padding_changes_nothing(inputs: list[np.ndarray]) -> None:
    query, key, value, _ = (jnp.asarray(x) for x in inputs)
    padding = 4
    padded = [jnp.pad(x, ((0, 0), (padding, 0), (0, 0), (0, 0)), constant_values=99.0) for x in (key, value)]
    real = jnp.arange(S + padding)[None] >= padding
    expected = dot_product_attention(query, key, value, mask=AttentionMask(causal=True))
    output = dot_product_attention(query, *padded, mask=AttentionMask(causal=True, offset=padding, key_valid=real))
    np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-6)


def test_rows_of_a_batch_do_not_meet(inputs: list[np.ndarray]) -> None:
    query, key, value, _ = (jnp.asarray(x) for x in inputs)
    order = jnp.array([1, 0, 1])
    lengths, offsets = jnp.array([3, 6]), jnp.array([2, 0])
    output = dot_product_attention(query, key, value, **options_of(S, causal=True, lengths=lengths, offset=offsets))
    options = options_of(S, causal=True, lengths=lengths[order], offset=offsets[order])
    permuted = dot_product_attention(query[order], key[order], value[order], **options)
    np.testing.assert_allclose(permuted, output[order], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bit_inputs_have_float32_scores_and_outputs_of_their_type(
    inputs: list[np.ndarray], dtype: jnp.dtype
) -> None:
    query, key, value = (jnp.asarray(x, dtype) for x in inputs[:3])
    wide = [x.astype(jnp.float32) for x in (query, key, value)]
    scores = attention_scores(query, key)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, attention_scores(*wide[:2]), rtol=1e-6, atol=1e-6)
    output = dot_product_attention(query, key, value)
    assert output.dtype == dtype
    unit = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(output.astype(jnp.float32), dot_product_attention(*wide), rtol=2 * unit, atol=unit)


BAD_INPUT = {
    "rank": ({"query": (T, N, H)}, {}, "must be"),
    "batch": ({"query": (B + 1, T, N, H)}, {}, "batch"),
    "head width": ({"query": (B, T, N, H + 1)}, {}, "head width"),
    "groups": ({"query": (B, T, N + 1, H)}, {}, "7 query heads are not a multiple of 3"),
    "no key heads": ({"key": (B, S, 0, H)}, {}, "multiple"),
    "value length": ({"value": (B, S + 1, K, HV)}, {}, "value"),
    "value heads": ({"value": (B, S, K + 1, HV)}, {}, "value"),
    "mask type": ({}, {"mask": jnp.zeros((T, S))}, "boolean"),
    "mask shape": ({}, {"mask": jnp.ones((S, T), bool)}, "mask"),
    "mask rank": ({}, {"mask": jnp.ones((B, T, S), bool)}, "mask"),
    "mask batch": ({}, {"mask": jnp.ones((B + 1, 1, 1, S), bool)}, "mask"),
    "bias type": ({}, {"bias": jnp.ones((T, S), bool)}, "floating"),
    "bias shape": ({}, {"bias": jnp.ones((1, N, T, S + 1))}, "bias"),
    "mask values": ({}, {"mask": 2 * jnp.ones((T, S), int)}, "other integers"),
    "key_valid": ({}, {"mask": AttentionMask(key_valid=jnp.ones((B + 1, S), bool))}, "key_valid"),
    "key_valid type": ({}, {"mask": AttentionMask(key_valid=jnp.ones((B, S)))}, "key_valid"),
    "offset": ({}, {"mask": AttentionMask(offset=jnp.zeros((B + 1,), int))}, "offset"),
    "offset type": ({}, {"mask": AttentionMask(offset=jnp.zeros((B,)))}, "offset"),
    "window": ({}, {"mask": AttentionMask(window=(-1, 0))}, "window"),
    "window sides": ({}, {"mask": AttentionMask(window=(1, 2, 3))}, "window"),
    "softcap": ({}, {"softcap": 0.0}, "softcap"),
    "sinks": ({}, {"sinks": jnp.zeros(2)}, "sinks must be a number for each of"),
}


@pytest.mark.parametrize(("shapes", "options", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_refused(shapes: dict[str, tuple[int, ...]], options: dict[str, object], message: str) -> None:
    right = {"query": (B, T, N, H), "key": (B, S, K, H), "value": (B, S, K, HV)}
    query, key, value = (jnp.ones(shape) for shape in (right | shapes).values())
    with pytest.raises(InputError, match=message):
        dot_product_attention(query, key, value, **options)


def test_integer_masks_are_masks(inputs: list[np.ndarray], rng: np.random.Generator) -> None:
    query, key, value, _ = (jnp.asarray(x) for x in inputs)
    for shape in ((T, S), (B, 1, 1, S)):
        mask = rng.random(shape) < 0.6
        expected = dot_product_attention(query, key, value, mask=jnp.asarray(mask))
        for kind in (np.int32, np.int64, np.uint8):
            ours = dot_product_attention(query, key, value, mask=mask.astype(kind))
            np.testing.assert_array_equal(ours, expected)
        jitted = jax.jit(lambda mask: dot_product_attention(query, key, value, mask=mask))
        np.testing.assert_allclose(jitted(mask.astype(int)), expected, atol=1e-6)


def test_unknown_keywords_are_refused(inputs: list[np.ndarray]) -> None:
    with pytest.raises(TypeError, match="causal"):
        dot_product_attention(*map(jnp.asarray, inputs[:3]), causal=True)
    with pytest.raises(InputError, match="sinks"):
        attention_scores(*map(jnp.asarray, inputs[:2]), sinks=jnp.zeros(N))
