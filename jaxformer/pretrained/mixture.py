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
from jaxformer.pretrained.llama import DECODER, NORMS, RENAMES, TIES, UNUSED, attention_config, decoder_config
from jaxformer.pretrained.settings import LAYER_TYPES, activation, check_layer_types, read_settings
from jaxformer.pretrained.weights import WeightTable
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
ROUTER = (r"\.feed_forward\.router\.", ".mlp.gate.")
EXPERTS = (r"\.feed_forward\.experts\.", ".mlp.experts.*.")
PROJECTIONS = (r"\.experts\.\*\.(gate|up|down)\.", r".experts.*.\1_proj.")


def mixtral_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Mixtral `config.json`: Mistral whose every layer is a mixture of experts."""
    hf = read_settings(hf, MIXTRAL, ALIASES)
    check_experts(hf)
    expert = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=False)
    mixture = MoEConfig(hf["num_local_experts"], hf["num_experts_per_tok"], expert)
    attention = attention_config(hf, window=hf["sliding_window"], theta=1e6)
    return decoder_config(hf, lambda _: attention, feed_forward=lambda _: mixture)


def qwen3_moe_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Qwen3-MoE `config.json`: Qwen3 with experts in the layers that are not named as plain."""
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
    """Our configuration of a gpt-oss `config.json`: windows in every other layer, sinks, experts with bounded gates."""
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
    """Where Mixtral keeps its weights: each expert has three matrices called w1, w2 and w3."""
    renames = (
        (r"\.feed_forward\.router\.", ".block_sparse_moe.gate."),
        (r"\.feed_forward\.experts\.", ".block_sparse_moe.experts.*."),
        (r"\.experts\.\*\.gate\.", ".experts.*.w1."),
        (r"\.experts\.\*\.down\.", ".experts.*.w2."),
        (r"\.experts\.\*\.up\.", ".experts.*.w3."),
    )
    return WeightTable((*NORMS, *renames, *RENAMES), UNUSED, TIES, prefix="model.")


def qwen3_moe_table(config: TransformerConfig) -> WeightTable:
    """Where Qwen3-MoE keeps its weights: those of experts by their numbers."""
    return WeightTable((*NORMS, ROUTER, EXPERTS, PROJECTIONS, *RENAMES), UNUSED, TIES, prefix="model.")


def gpt_oss_table(config: TransformerConfig) -> WeightTable:
    """Where gpt-oss keeps its weights: one tensor for all experts, in which gates and other inner units alternate."""
    renames = (
        (r"\.feed_forward\.router\.", ".mlp.router."),
        (r"\.feed_forward\.experts\.(?:gate|up)\.(weight|bias)$", r".mlp.experts.gate_up_proj.\1"),
        (r"\.feed_forward\.experts\.down\.(weight|bias)$", r".mlp.experts.down_proj.\1"),
        (r"_proj\.weight$", "_proj"),
        (r"experts\.(\w+)_proj\.bias$", r"experts.\1_proj_bias"),
        (r"\.attention\.sinks$", ".self_attn.sinks"),
    )
    experts = r".*\.experts\.(gate_up|down)_proj(_bias)?"
    return WeightTable(
        (*NORMS, *renames, *RENAMES),
        UNUSED,
        TIES,
        prefix="model.",
        as_is=experts,
        alternating=experts,
    )
