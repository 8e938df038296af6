"""When the fused kernel is taken, and that it is called with the right meaning (XLA stands in for cuDNN on a CPU)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops.structures import options_of

from jaxformer.backends.gpu import cuda_capability, fused_attention, fused_kernel_applies
from jaxformer.ops import attention_weights, dot_product_attention, weighted_values
from jaxformer.ops.attention import Scoring, check_options

B, T, N, K, H = 2, 14, 6, 3, 8
APPLIES = {
    "plain": {},
    "causal": {"causal": True},
    "causal window": {"causal": True, "window": (3, None)},
    "window that looks back": {"window": (3, 0)},
    "lengths": {"lengths": jnp.array([5, T])},
    "a row without keys": {"lengths": jnp.array([0, T]), "causal": True},
    "padding mask": {"causal": True, "mask": (jnp.arange(T) >= 4)[None, None, None]},
    "padding and window": {"causal": True, "window": (2, None), "lengths": jnp.array([5, T])},
    "scale": {"scale": 0.5},
    "offset that does not matter": {"offset": jnp.array([3])},
}
DOES_NOT = {
    "mask per query": {"mask": jnp.ones((T, T), bool)},
    "offset": {"causal": True, "offset": 1},
    "offset known only at run time": {"causal": True, "offset": jnp.array([0])},
    "window to the right": {"window": (3, 1)},
    "open window to the right": {"window": (3, None)},
}


def inputs(width: int = H, keys: int = T, dtype: jnp.dtype = jnp.bfloat16) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(11)
    shapes = (B, T, N, width), (B, keys, K, width), (B, keys, K, width)
    query, key, value = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return query, key, value


def scoring_of(query: jax.Array, key: jax.Array, options: dict[str, object]) -> Scoring:
    return check_options(query, key, **options_of(key.shape[1], **options))


def applies(options: dict[str, object], capability: float = 9.0, **shape: object) -> bool:
    query, key, value = inputs(**shape)
    return fused_kernel_applies(query, key, value, scoring_of(query, key, options).mask, capability)


@pytest.mark.parametrize("options", APPLIES.values(), ids=APPLIES.keys())
def test_applies(options: dict[str, object]) -> None:
    assert applies(options)
    assert not applies(options, capability=7.5)
    assert not applies(options, capability=0.0)


@pytest.mark.parametrize("options", DOES_NOT.values(), ids=DOES_NOT.keys())
def test_does_not_apply(options: dict[str, object]) -> None:
    assert not applies(options)


def test_widths_types_and_lengths() -> None:
    assert applies({}, width=128)
    assert applies({}, dtype=jnp.float16)
    assert not applies({}, dtype=jnp.float32)
    assert not applies({}, width=136)
    assert not applies({}, width=12)
    assert not applies({"lengths": jnp.array([5, 5])}, keys=13)
    assert applies({"causal": True}, keys=13)
    assert not applies({"causal": True, "window": (3, None)}, keys=T - 1)
    query, key, value = inputs()
    mask = scoring_of(query, key, {}).mask
    assert not fused_kernel_applies(query, key, value[..., :4], mask, 9.0)
    assert not fused_kernel_applies(query, key, value.astype(jnp.float16), mask, 9.0)


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"bias": jnp.zeros((T, T))}, {"sinks": jnp.zeros(N)}])
def test_not_taken_for_what_it_cannot_compute(monkeypatch: pytest.MonkeyPatch, options: dict[str, object]) -> None:
    """Not even on a GPU that has it: a call of the kernel would fail on this machine."""
    monkeypatch.setattr("jaxformer.ops.attention.cuda_capability", lambda: 9.0)
    monkeypatch.setattr("jaxformer.ops.attention.fused_attention", lambda *_, **__: pytest.fail("taken"))
    dot_product_attention(*inputs(), **options)
    with pytest.raises(pytest.fail.Exception, match="taken"):
        dot_product_attention(*inputs())


def test_a_machine_without_a_gpu_has_no_capability() -> None:
    has_gpu = jax.default_backend() == "gpu"
    assert (cuda_capability() > 0) == has_gpu


@pytest.mark.parametrize("options", APPLIES.values(), ids=APPLIES.keys())
def test_equals_dense_with_gradients(options: dict[str, object]) -> None:
    query, key, value = inputs(dtype=jnp.float32)

    def fused(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        scoring = scoring_of(query, key, options)
        return fused_attention(query, key, value, scoring.mask, scale=scoring.scale, implementation="xla")

    def dense(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return weighted_values(attention_weights(query, key, **options_of(T, **options)), value)

    d_output = jnp.cos(jnp.arange(B * T * N * H, dtype=jnp.float32)).reshape(B, T, N, H)
    ours, expected = (jax.vjp(function, query, key, value) for function in (fused, dense))
    for actual, reference in zip((ours[0], *ours[1](d_output)), (expected[0], *expected[1](d_output)), strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-5)
