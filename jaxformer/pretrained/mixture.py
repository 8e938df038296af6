"""Decoders of Llama's shape with experts in place of feed-forward networks: Mixtral, Qwen3-MoE, gpt-oss."""

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
from jaxformer.pretrained.settings import LAYER_TYPES, activation, check_layer_types, read_settings
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

    def feed_forward(layer: int) -> FeedForwardConfig | MoEConfig:
        dense = layer in (hf["mlp_only_layers"] or ()) or (layer + 1) % hf["decoder_sparse_step"]
        return plain if dense else mixture

    return decoder_config(hf, lambda _: attention, feed_forward=feed_forward)


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
