"""Attention, cross-entropy, normalisation and rotary positions against the cases that ONNX generates for its operators.

ONNX applies its softcap as we do: after the scale, before masks.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from onnx_cases import Case, node_cases
from ops.structures import options_of

from jaxformer.ops import (
    CosSin,
    apply_rope,
    attention_scores,
    attention_weights,
    cross_entropy,
    dot_product_attention,
    layer_norm,
    rms_norm,
    token_cross_entropy,
)

ATTENTION = node_cases("Attention")
LAYER_NORM = node_cases("LayerNormalization")
RMS_NORM = node_cases("RMSNormalization")
ROTARY = node_cases("RotaryEmbedding")
CROSS_ENTROPY = node_cases("SoftmaxCrossEntropyLoss")
# Class weights are an input that we do not take.
WEIGHTED = {
    "test_sce_none_weights",
    "test_sce_none_weights_log_prob",
    "test_sce_mean_weight",
    "test_sce_mean_weight_log_prob",
    "test_sce_mean_weight_ii",
    "test_sce_mean_weight_ii_log_prob",
    "test_sce_mean_weight_ii_3d",
    "test_sce_mean_weight_ii_3d_log_prob",
    "test_sce_mean_weight_ii_4d",
    "test_sce_mean_weight_ii_4d_log_prob",
    "test_sce_NCd1d2d3d4d5_mean_weight",
    "test_sce_NCd1d2d3d4d5_mean_weight_log_prob",
    "test_sce_NCd1_mean_weight_negative_ii",
    "test_sce_NCd1_mean_weight_negative_ii_log_prob",
    "test_sce_NCd1d2d3_sum_weight_high_ii",
    "test_sce_NCd1d2d3_sum_weight_high_ii_log_prob",
}


def run_attention(case: Case) -> dict[str, jnp.ndarray]:
    """ONNX's layouts and names in, ours through, ONNX's out."""
    given, attributes = {name: jnp.asarray(x) for name, x in case.inputs.items()}, case.attributes
    query = heads_second(given["Q"], attributes.get("q_num_heads"))
    key, value = (heads_second(given[name], attributes.get("kv_num_heads")) for name in ("K", "V"))
    if "past_key" in given:
        key = jnp.concatenate([jnp.swapaxes(given["past_key"], 1, 2), key], axis=1)
        value = jnp.concatenate([jnp.swapaxes(given["past_value"], 1, 2), value], axis=1)
    rules = attention_rules(given, attributes, query.shape[1], key.shape[1])
    output = dot_product_attention(query, key, value, **rules)
    present = {"present_key": jnp.swapaxes(key, 1, 2), "present_value": jnp.swapaxes(value, 1, 2)}
    inner = inner_scores(query, key, rules, attributes.get("qk_matmul_output_mode", 0))
    is_flat = case.inputs["Q"].ndim == 3
    shaped = output.reshape(*output.shape[:2], -1) if is_flat else jnp.swapaxes(output, 1, 2)
    return {"Y": shaped, **present, "qk_matmul_output": inner.astype(query.dtype)}


def heads_second(x: jnp.ndarray, heads: int | None) -> jnp.ndarray:
    """[B, T, N * H] or [B, N, T, H] as [B, T, N, H]."""
    return x.reshape(*x.shape[:2], heads, -1) if x.ndim == 3 else jnp.swapaxes(x, 1, 2)


def attention_rules(given: dict[str, jnp.ndarray], attributes: dict[str, Any], T: int, S: int) -> dict[str, Any]:
    """The keywords of our attention. Masks shorter than the keys hide the rest, and queries follow their cache."""
    rules: dict[str, Any] = {"causal": bool(attributes.get("is_causal", 0)), "scale": attributes.get("scale")}
    rules["softcap"] = attributes.get("softcap") or None  # 0, the default, means none
    sides = (attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    rules["window"] = tuple(None if size < 0 else size for size in sides)
    if "past_key" in given:
        rules["offset"] = given["past_key"].shape[2]
    if "nonpad_kv_seqlen" in given:
        rules["lengths"] = given["nonpad_kv_seqlen"]
        rules["offset"] = given["nonpad_kv_seqlen"] - T
    if "attn_mask" in given:
        mask = given["attn_mask"]
        is_boolean = mask.dtype == bool
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        hidden = False if is_boolean else -jnp.inf
        rules["mask" if is_boolean else "bias"] = jnp.pad(
            mask, [(0, 0)] * 3 + [(0, S - mask.shape[3])], constant_values=hidden
        )
    return options_of(S, **rules)


def inner_scores(query: jnp.ndarray, key: jnp.ndarray, rules: dict[str, Any], mode: int) -> jnp.ndarray:
    """0: the scaled scores, 1: capped as well, 2: biased and masked as well, 3: after the softmax."""
    match mode:
        case 0:
            return attention_scores(query, key, scale=rules["scale"])
        case 1:
            return attention_scores(query, key, scale=rules["scale"], softcap=rules["softcap"])
        case 2:
            return attention_scores(query, key, **rules)
    return attention_weights(query, key, **rules)


def test_there_are_93_attention_cases() -> None:
    assert len(ATTENTION) == 93


@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_attention(case: Case) -> None:
    outputs = run_attention(case)
    for name, expected in case.outputs.items():
        assert outputs[name].shape == expected.shape
        assert outputs[name].dtype == expected.dtype
        assert_close(outputs[name], expected, case)


@pytest.mark.parametrize(
    "case", [case for case in ATTENTION if case.inputs["Q"].dtype.itemsize == 2], ids=lambda case: case.name
)
def test_sixteen_bit_attention_is_no_further_from_float32_than_onnx(case: Case) -> None:
    widened = {name: np.float32(x) if x.dtype.itemsize == 2 else x for name, x in case.inputs.items()}
    exact = np.float64(run_attention(dataclasses.replace(case, inputs=widened))["Y"])
    ours, theirs = (np.abs(np.float64(y) - exact) for y in (run_attention(case)["Y"], case.outputs["Y"]))
    assert ours.max() <= theirs.max()


def assert_close(actual: jnp.ndarray, expected: np.ndarray, case: Case) -> None:
    """ONNX's tolerance, and two units in the last place for 16-bit numbers as its runner allows for bfloat16.

    Its expected outputs are rounded to 16 bits after each step, ours at the end.
    """
    two_units = 2 * float(jnp.finfo(expected.dtype).eps) if expected.dtype.itemsize == 2 else 0.0
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), np.asarray(expected, np.float64), rtol=max(case.rtol, two_units), atol=case.atol
    )


def test_only_class_weights_are_left_out() -> None:
    assert {case.name for case in CROSS_ENTROPY if "weights" in case.inputs} == WEIGHTED
    assert len(CROSS_ENTROPY) == 34


@pytest.mark.parametrize(
    "case", [case for case in CROSS_ENTROPY if case.name not in WEIGHTED], ids=lambda case: case.name
)
def test_cross_entropy(case: Case) -> None:
    logits = jnp.moveaxis(jnp.asarray(case.inputs["scores"]), 1, -1)  # ONNX has the classes second
    labels = jnp.asarray(case.inputs["labels"])
    # Without an ignore_index ONNX counts every label: one that no label can be has the same effect here.
    ignore_index = case.attributes.get("ignore_index", -1)
    losses = token_cross_entropy(logits, labels, ignore_index=ignore_index)
    match case.attributes["reduction"]:
        case b"mean":
            actual = cross_entropy(logits, labels, ignore_index=ignore_index)
        case b"sum":
            actual = losses.sum()
        case b"none":
            actual = losses
    assert_close(actual, case.outputs["output"], case)
    if "log_prob" in case.outputs:
        # The loss of every class as the label is minus the logarithm of its probability.
        V = logits.shape[-1]
        log_prob = jnp.stack([-token_cross_entropy(logits, jnp.full(labels.shape, label)) for label in range(V)], 1)
        assert_close(log_prob, case.outputs["log_prob"], case)


def test_there_are_19_layer_normalisation_cases() -> None:
    assert len(LAYER_NORM) == 19


@pytest.mark.parametrize("case", LAYER_NORM, ids=lambda case: case.name)
def test_layer_normalisation(case: Case) -> None:
    """ONNX normalises over all axes from `axis` on, and also hands out mean and deviation, which we have no use for."""
    x = jnp.asarray(case.inputs["X"])
    leading = x.shape[: case.attributes.get("axis", -1)]
    scale, shift = (jnp.asarray(case.inputs[name]).reshape(-1) for name in ("Scale", "B"))
    output = layer_norm(x.reshape(*leading, -1), scale, shift, epsilon=case.attributes.get("epsilon", 1e-5))
    assert_close(output.reshape(x.shape), case.outputs["Y"], case)


def test_there_are_19_rms_normalisation_and_8_rotary_cases() -> None:
    assert (len(RMS_NORM), len(ROTARY)) == (19, 8)


@pytest.mark.parametrize("case", RMS_NORM, ids=lambda case: case.name)
def test_rms_normalisation(case: Case) -> None:
    x = jnp.asarray(case.inputs["X"])
    leading = x.shape[: case.attributes.get("axis", -1)]
    scale = jnp.asarray(case.inputs["scale"]).reshape(-1)
    output = rms_norm(x.reshape(*leading, -1), scale, epsilon=case.attributes.get("epsilon", 1e-5))
    assert_close(output.reshape(x.shape), case.outputs["Y"], case)


@pytest.mark.parametrize("case", ROTARY, ids=lambda case: case.name)
def test_rotary_positions(case: Case) -> None:
    """ONNX has heads before positions, or inside the last axis, and gives cosines and sines as tables."""
    x, heads_first = jnp.asarray(case.inputs["X"]), case.inputs["X"].ndim == 4
    heads = jnp.swapaxes(x, 1, 2) if heads_first else x.reshape(*x.shape[:2], case.attributes["num_heads"], -1)
    tables = (jnp.asarray(case.inputs[name]) for name in ("cos_cache", "sin_cache"))
    if "position_ids" in case.inputs:
        tables = (table[case.inputs["position_ids"]] for table in tables)
    layout = "interleaved" if case.attributes.get("interleaved") else "halves"
    turned = apply_rope(heads, CosSin(*tables), layout=layout)
    assert_close(jnp.swapaxes(turned, 1, 2) if heads_first else turned.reshape(x.shape), case.outputs["Y"], case)
