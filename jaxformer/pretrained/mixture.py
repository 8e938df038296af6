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
from jaxformer.pretrained.llama import DEFAULTS, IGNORABLE, NORMS, RENAMES, attention_config, decoder_config
from jaxformer.pretrained.settings import activation, require
from jaxformer.pretrained.weights import WeightTable

MIXTRAL: dict[str, Any] = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "sliding_window": None,
}
QWEN3_MOE: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "norm_topk_prob": False,
}
GPT_OSS: dict[str, Any] = {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "head_dim": 64,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "sliding_window": 128,
    "layer_types": None,
    "attention_bias": True,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_limit": 7.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
ROUTER = (r"\.feed_forward\.router\.", ".mlp.gate.")
EXPERTS = (r"\.feed_forward\.experts\.", ".mlp.experts.*.")
PROJECTIONS = (r"\.experts\.\*\.(gate|up|down)\.", r".experts.*.\1_proj.")


def mixtral_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Mixtral `config.json`: Mistral whose every layer is a mixture of experts."""
    hf = DEFAULTS | MIXTRAL | hf
    require(hf, router_jitter_noise=0.0)
    expert = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=False)
    mixture = MoEConfig(hf["num_local_experts"], hf["num_experts_per_tok"], expert)
    attention = attention_config(hf, window=hf["sliding_window"], theta=1e6)
    return decoder_config(hf, lambda _: attention, feed_forward=lambda _: mixture)


def qwen3_moe_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Qwen3-MoE `config.json`: Qwen3 with experts in the layers that are not named as plain."""
    hf = DEFAULTS | QWEN3_MOE | hf
    experts = hf.get("num_local_experts", hf["num_experts"])  # the one is what today's files say, the other yesterday's
    bias, norm = hf["attention_bias"], RMSNormConfig(hf["rms_norm_eps"])
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    attention = attention_config(hf, bias=bias, output_bias=bias, window=window, query_key_norm=norm)
    plain = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=False)
    expert = replace(plain, hidden=hf["moe_intermediate_size"])
    router = SoftmaxRouter(renormalise=hf["norm_topk_prob"])
    mixture = MoEConfig(experts, hf["num_experts_per_tok"], expert, router)

    def feed_forward(layer: int) -> FeedForwardConfig | MoEConfig:
        dense = layer in (hf["mlp_only_layers"] or ()) or (layer + 1) % hf["decoder_sparse_step"]
        return plain if dense else mixture

    return decoder_config(hf, lambda _: attention, feed_forward=feed_forward)


def gpt_oss_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a gpt-oss `config.json`: windows in every other layer, sinks, experts with bounded gates."""
    hf = DEFAULTS | GPT_OSS | hf
    require(hf, swiglu_alpha=1.702)
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


def mixtral_table(config: TransformerConfig) -> WeightTable:
    """Where Mixtral keeps its weights: each expert has three matrices called w1, w2 and w3."""
    renames = (
        (r"\.feed_forward\.router\.", ".block_sparse_moe.gate."),
        (r"\.feed_forward\.experts\.", ".block_sparse_moe.experts.*."),
        (r"\.experts\.\*\.gate\.", ".experts.*.w1."),
        (r"\.experts\.\*\.down\.", ".experts.*.w2."),
        (r"\.experts\.\*\.up\.", ".experts.*.w3."),
    )
    return WeightTable((*NORMS, *renames, *RENAMES), IGNORABLE, prefix="model.")


def qwen3_moe_table(config: TransformerConfig) -> WeightTable:
    """Where Qwen3-MoE keeps its weights: those of experts by their numbers."""
    return WeightTable((*NORMS, ROUTER, EXPERTS, PROJECTIONS, *RENAMES), IGNORABLE, prefix="model.")


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
        IGNORABLE,
        prefix="model.",
        as_is=experts,
        alternating=experts,
    )
