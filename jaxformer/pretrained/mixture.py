"""Decoders of Llama's shape with experts in place of feed-forward networks.

Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, GraniteMoE, gpt-oss.
"""

from dataclasses import replace
from typing import Any

from jaxformer.config import (
    AttentionConfig,
    FeedForwardConfig,
    MoEConfig,
    RMSNormConfig,
    SoftmaxRouter,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.granite import GRANITE, granite_decoder
from jaxformer.pretrained.llama import (
    ATTENTION,
    DECODER,
    FEED_FORWARD,
    NORMS,
    PROJECTIONS,
    attention_config,
    decoder_config,
    decoder_table,
)
from jaxformer.pretrained.settings import LAYER_TYPES, activation, check_layer_types, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, count, experts, flag, integer, layers, list_of, nullable, number, only

MIXTRAL: Schema = {
    **DECODER,
    "intermediate_size": count(14336),
    "num_key_value_heads": nullable(count(8)),
    "max_position_embeddings": count(131072),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "num_experts_per_tok": count(2),
    "num_local_experts": experts(8),
    "sliding_window": count(None),
    "router_jitter_noise": only(0.0),
}
QWEN3_MOE: Schema = {
    **DECODER,
    "vocab_size": count(151936),
    "hidden_size": count(2048),
    "intermediate_size": count(6144),
    "num_hidden_layers": layers(24),
    "num_key_value_heads": count(4),
    "max_position_embeddings": count(32768),
    "attention_bias": flag(False),
    "sliding_window": nullable(count(4096)),
    "use_sliding_window": flag(False),
    "decoder_sparse_step": count(1),
    "mlp_only_layers": list_of(integer(0), None, most=4096),
    "moe_intermediate_size": count(768),
    "num_experts_per_tok": count(8),
    "num_local_experts": experts(128),
    "norm_topk_prob": flag(False),
}
QWEN2_MOE: Schema = {
    **{key: field for key, field in QWEN3_MOE.items() if key not in ("attention_bias", "num_local_experts")},
    "intermediate_size": count(5632),
    "num_attention_heads": count(16),
    "num_key_value_heads": nullable(count(16)),
    "sliding_window": nullable(integer(4096)),  # 0 where windows are not used, as transformers writes it
    "max_window_layers": integer(28),
    "layer_types": LAYER_TYPES,
    "moe_intermediate_size": count(1408),
    "shared_expert_intermediate_size": count(5632),
    "num_experts_per_tok": count(4),
    "num_experts": experts(60),
    "qkv_bias": flag(True),
}
OLMOE: Schema = {
    **DECODER,
    "vocab_size": count(50304),
    "hidden_size": count(2048),
    "intermediate_size": count(2048),
    "num_hidden_layers": layers(16),
    "num_attention_heads": count(16),
    "max_position_embeddings": count(4096),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "attention_bias": flag(False),
    "clip_qkv": number(None, 0.0, above=True),
    "num_experts_per_tok": count(8),
    "num_experts": experts(64),
    "norm_topk_prob": flag(False),
}
GRANITE_MOE: Schema = {
    **{key: field for key, field in GRANITE.items() if key != "mlp_bias"},
    "num_experts_per_tok": count(2),
    "num_local_experts": experts(8),
}
GPT_OSS: Schema = {
    **DECODER,
    "vocab_size": count(201088),
    "hidden_size": count(2880),
    "intermediate_size": count(2880),
    "head_dim": nullable(count(64)),
    "num_hidden_layers": layers(36),
    "num_attention_heads": count(64),
    "num_key_value_heads": nullable(count(8)),
    "max_position_embeddings": count(131072),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "attention_bias": flag(True),
    "sliding_window": count(128),
    "layer_types": LAYER_TYPES,
    "num_local_experts": experts(128),
    "num_experts_per_tok": count(4),
    "swiglu_alpha": only(1.702),
    "swiglu_limit": number(7.0, 0.0, above=True),
}
ALIASES = {"num_experts": "num_local_experts"}  # what yesterday's files say
# The positions of a gpt-oss whose file says nothing of them.
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
ROUTER = Row("feed_forward.router", "mlp.gate")
EXPERTS = nested("feed_forward.experts", "mlp.experts.*", *PROJECTIONS)


def mixtral_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Mixtral `config.json`: Mistral whose every layer is a mixture of experts."""
    hf = read_settings(hf, MIXTRAL, ALIASES)
    check_experts(hf)
    expert = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=False)
    mixture = MoEConfig(hf["num_local_experts"], hf["num_experts_per_tok"], expert)
    attention = attention_config(hf, window=hf["sliding_window"], theta=1e6)
    return decoder_config(hf, lambda _: attention, feed_forward=lambda _: mixture)


def qwen3_moe_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Qwen3-MoE `config.json`.

    Qwen3 with experts in the layers that are not named as plain.
    """
    hf = read_settings(hf, QWEN3_MOE, ALIASES)
    check_experts(hf)
    bias, norm = hf["attention_bias"], RMSNormConfig(hf["rms_norm_eps"])
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    attention = attention_config(hf, bias=bias, output_bias=bias, window=window, query_key_norm=norm)
    plain = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=False)
    expert = replace(plain, d_ff=hf["moe_intermediate_size"])
    router = SoftmaxRouter(renormalize=hf["norm_topk_prob"])
    mixture = MoEConfig(hf["num_local_experts"], hf["num_experts_per_tok"], expert, router)

    return decoder_config(hf, lambda _: attention, feed_forward=lambda layer: plain if is_dense(hf, layer) else mixture)


def qwen2_moe_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Qwen2-MoE `config.json`: a gate on the shared expert, windows in some layers."""
    hf = read_settings(hf, QWEN2_MOE)
    check_experts(hf, "num_experts")
    check_layer_types(hf)
    types, slides = hf["layer_types"], hf["use_sliding_window"]
    if slides and hf["sliding_window"] == 0:
        raise InputError("sliding_window=0 hides everything: give use_sliding_window=false")
    if types and "sliding_attention" in types and not slides:
        raise InputError("layer_types has sliding_attention, which use_sliding_window=false contradicts")

    def attention(layer: int) -> AttentionConfig:
        near = (
            layer % 2 == 0 and layer < hf["max_window_layers"] if types is None else types[layer] == "sliding_attention"
        )
        return attention_config(hf, bias=hf["qkv_bias"], window=hf["sliding_window"] if slides and near else None)

    plain = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=False)
    mixture = MoEConfig(
        hf["num_experts"],
        hf["num_experts_per_tok"],
        replace(plain, d_ff=hf["moe_intermediate_size"]),
        SoftmaxRouter(renormalize=hf["norm_topk_prob"]),
        shared=replace(plain, d_ff=hf["shared_expert_intermediate_size"]),
        shared_gate=True,
    )
    return decoder_config(hf, attention, feed_forward=lambda layer: plain if is_dense(hf, layer) else mixture)


def is_dense(hf: dict[str, Any], layer: int) -> bool:
    """Return whether a layer of Qwen has no experts."""
    return layer in (hf["mlp_only_layers"] or ()) or (layer + 1) % hf["decoder_sparse_step"] != 0


def olmoe_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an OLMoE `config.json`: norms over all queries and all keys, which may be clipped."""
    hf = read_settings(hf, OLMOE, {"num_local_experts": "num_experts"})
    check_experts(hf, "num_experts")
    width = head_width(hf, "hidden_size", "num_attention_heads")
    if hf["head_dim"] not in (None, width):
        raise InputError(f"head_dim={hf['head_dim']} must be hidden_size / num_attention_heads = {width}")
    bias, norm = hf["attention_bias"], RMSNormConfig(hf["rms_norm_eps"])
    attention = attention_config(hf, bias=bias, output_bias=bias, query_key_norm=norm)
    attention = replace(attention, normed="all heads", clip_qkv=hf["clip_qkv"])
    expert = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=False)
    router = SoftmaxRouter(renormalize=hf["norm_topk_prob"])
    mixture = MoEConfig(hf["num_experts"], hf["num_experts_per_tok"], expert, router)
    return decoder_config(hf, lambda _: attention, feed_forward=lambda _: mixture)


def granite_moe_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a GraniteMoE `config.json`: Granite with experts."""
    hf = read_settings(hf, GRANITE_MOE)
    check_experts(hf)
    expert = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=False)
    mixture = MoEConfig(hf["num_local_experts"], hf["num_experts_per_tok"], expert)
    return granite_decoder(hf, feed_forward=lambda _: mixture)


def gpt_oss_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a gpt-oss `config.json`.

    Windows in every other layer, sinks, experts with bounded gates.
    """
    hf = read_settings(hf, GPT_OSS, ALIASES)
    check_experts(hf)
    check_layer_types(hf)
    hf["rope_parameters"] = YARN if hf["rope_parameters"] is None else hf["rope_parameters"]
    expert = FeedForwardConfig(hf["intermediate_size"], "quick_gelu", gated=True, limit=hf["swiglu_limit"])
    mixture = MoEConfig(hf["num_local_experts"], hf["num_experts_per_tok"], expert, SoftmaxRouter(bias=True))
    types = hf["layer_types"] or [
        "full_attention" if layer % 2 else "sliding_attention" for layer in range(hf["num_hidden_layers"])
    ]

    def attention(layer: int) -> AttentionConfig:
        window = hf["sliding_window"] if types[layer] == "sliding_attention" else None
        bias = hf["attention_bias"]
        return replace(attention_config(hf, bias=bias, output_bias=bias, window=window, theta=150000.0), sinks=True)

    return decoder_config(hf, attention, feed_forward=lambda _: mixture)


def check_experts(hf: dict[str, Any], experts: str = "num_local_experts") -> None:
    """Raise InputError where a token would go to more experts than there are."""
    if hf["num_experts_per_tok"] > hf[experts]:
        raise InputError(f"num_experts_per_tok={hf['num_experts_per_tok']} exceeds {experts}={hf[experts]}")


def mixtral_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of Mixtral: each expert has three matrices called w1, w2 and w3."""
    experts = (
        Row("experts.gate", "experts.*.w1"),
        Row("experts.down", "experts.*.w2"),
        Row("experts.up", "experts.*.w3"),
    )
    mixture = nested("feed_forward", "block_sparse_moe", Row("router", "gate"), *experts)
    return decoder_table(*NORMS, *ATTENTION, *mixture)


def qwen3_moe_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of Qwen3-MoE: experts have Llama's names behind their numbers."""
    return decoder_table(*NORMS, *ATTENTION, *FEED_FORWARD, ROUTER, *EXPERTS)


def qwen2_moe_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of Qwen2-MoE: one shared expert, and a gate on it."""
    shared = nested("feed_forward.shared", "mlp.shared_expert", *PROJECTIONS)
    gate = Row("feed_forward.shared_gate", "mlp.shared_expert_gate")
    return decoder_table(*NORMS, *ATTENTION, *FEED_FORWARD, ROUTER, *EXPERTS, *shared, gate)


def granite_moe_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of GraniteMoE: experts share tensors, gates before other inner units."""
    mixture = nested(
        "feed_forward",
        "block_sparse_moe",
        Row("router", "router.layer"),
        Row(("experts.gate.weight", "experts.up.weight"), "input_linear.weight", "E (+ F) D"),
        Row("experts.down.weight", "output_linear.weight", "E D F"),
    )
    return decoder_table(*NORMS, *ATTENTION, *mixture)


def gpt_oss_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of gpt-oss: experts share tensors, in which gates and other inner units alternate."""
    mixture = nested(
        "feed_forward",
        "mlp",
        Row("router", "router"),
        Row(("experts.gate.weight", "experts.up.weight"), "experts.gate_up_proj", "E D (F +)"),
        Row(("experts.gate.bias", "experts.up.bias"), "experts.gate_up_proj_bias", "E (F +)"),
        Row("experts.down.weight", "experts.down_proj", "E F D"),
        Row("experts.down.bias", "experts.down_proj_bias"),
    )
    return decoder_table(*NORMS, *ATTENTION, Row("attention.sinks", "self_attn.sinks"), *mixture)
