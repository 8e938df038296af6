"""Llama and what has its shape.

Mistral (a window), Qwen2 (biases of queries, keys, values), Qwen3 (normed heads), SmolLM3 (layers without positions),
OLMo 2 (norms at the outputs), Phi-3 (fused tensors, LongRoPE). What has experts as well is in `mixture`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxformer.config import (
    AnyAttentionConfig,
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    MoEConfig,
    Placement,
    RMSNormConfig,
    StackConfig,
    TransformerConfig,
)
from jaxformer.pretrained.rope import rope
from jaxformer.pretrained.settings import activation, require
from jaxformer.pretrained.weights import WeightTable

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
# What the classes say where a file says nothing, if it is not what Llama says.
MISTRAL: dict[str, Any] = {"intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096}
QWEN2: dict[str, Any] = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_window_layers": 28,
}
QWEN3: dict[str, Any] = {**QWEN2, "head_dim": 128}
SMOLLM3: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}
OLMO2: dict[str, Any] = {"vocab_size": 50304, "rms_norm_eps": 1e-5}
PHI3: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "resid_pdrop": 0.0,
}
NORMS = (
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.feed_forward_norm\.", ".post_attention_layernorm."),
)
RENAMES = (
    (r"^embedding\.table$", "model.embed_tokens.weight"),
    (r"^decoder\.final_norm\.", "model.norm."),
    (r"^decoder\.blocks\.", "model.layers."),
    (r"^head\.output\.", "lm_head."),
    (r"\.attention\.(query|key)_norm\.", r".self_attn.\g<1>_norm."),
    (r"_attn\.query_norm\.", "_attn.q_norm."),
    (r"_attn\.key_norm\.", "_attn.k_norm."),
    (r"\.attention\.query\.", ".self_attn.q_proj."),
    (r"\.attention\.key\.", ".self_attn.k_proj."),
    (r"\.attention\.value\.", ".self_attn.v_proj."),
    (r"\.attention\.output\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.(gate|up|down)\.", r".mlp.\1_proj."),
    (r"\.scale$", ".weight"),
)
IGNORABLE = r"lm_head\.weight|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def llama_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Llama `config.json`."""
    hf = DEFAULTS | hf
    attention = attention_config(hf, bias=hf["attention_bias"], output_bias=hf["attention_bias"])
    return decoder_config(hf, lambda _: attention)


def mistral_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Mistral `config.json`: every layer sees a window, where one is set."""
    hf = DEFAULTS | MISTRAL | hf
    attention = attention_config(hf, window=hf["sliding_window"])
    return decoder_config(hf, lambda _: attention)


def qwen2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Qwen2 `config.json`: windows in some layers, biases on all but the output projection."""
    hf = DEFAULTS | QWEN2 | hf
    return decoder_config(hf, lambda layer: attention_config(hf, bias=True, window=qwen_window(hf, layer)))


def qwen3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Qwen3 `config.json`: queries and keys are normalised, head by head."""
    hf = DEFAULTS | QWEN3 | hf
    bias, norm = hf["attention_bias"], RMSNormConfig(hf["rms_norm_eps"])
    return decoder_config(
        hf,
        lambda layer: attention_config(
            hf, bias=bias, output_bias=bias, window=qwen_window(hf, layer), query_key_norm=norm
        ),
    )


def smollm3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a SmolLM3 `config.json`: some layers, every fourth by default, have no positions at all."""
    hf = DEFAULTS | SMOLLM3 | hf
    interval, layers = hf["no_rope_layer_interval"], range(hf["num_hidden_layers"])
    turned = hf.get("no_rope_layers") or [(layer + 1) % interval != 0 for layer in layers]

    def attention(layer: int) -> AttentionConfig:
        bias, types = hf["attention_bias"], hf.get("layer_types")
        slides = not turned[layer] if types is None else types[layer] == "sliding_attention"
        window = hf.get("sliding_window") if slides and hf.get("use_sliding_window") else None
        config = attention_config(hf, bias=bias, output_bias=bias, window=window, theta=2e6)
        return config if turned[layer] else replace(config, rope=None)

    return decoder_config(hf, attention)


def olmo2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of an OLMo 2 `config.json`: norms after the sub-layers, and over all queries and all keys."""
    hf = DEFAULTS | OLMO2 | hf
    bias, norm = hf["attention_bias"], RMSNormConfig(hf["rms_norm_eps"])
    attention = attention_config(hf, bias=bias, output_bias=bias, query_key_norm=norm)
    return decoder_config(hf, lambda _: replace(attention, normed="all heads"), placement="output")


def phi3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Phi-3 `config.json`: Llama with fused projections, dropout of residuals and LongRoPE."""
    hf = DEFAULTS | PHI3 | hf
    attention = attention_config(hf, window=hf.get("sliding_window"))
    return decoder_config(hf, lambda _: attention, dropout=hf["resid_pdrop"])


def llama_table(config: TransformerConfig) -> WeightTable:
    """Where Llama and most of its kin keep their weights."""
    return WeightTable((*NORMS, *RENAMES), IGNORABLE, prefix="model.")


def olmo2_table(config: TransformerConfig) -> WeightTable:
    """Where OLMo 2 keeps its weights: the norms are named for what they follow."""
    names = (
        (r"\.attention_norm\.", ".post_attention_layernorm."),
        (r"\.feed_forward_norm\.", ".post_feedforward_layernorm."),
    )
    return WeightTable((*names, *RENAMES), IGNORABLE, prefix="model.")


def phi3_table(config: TransformerConfig) -> WeightTable:
    """Where Phi-3 keeps its weights: what reads the same input is one tensor."""
    fused = (
        (r"\.attention\.(query|key|value)\.", ".self_attn.qkv_proj."),
        (r"\.feed_forward\.(gate|up)\.", ".mlp.gate_up_proj."),
    )
    return WeightTable((*NORMS, *fused, *RENAMES), IGNORABLE, prefix="model.")


def qwen_window(hf: dict[str, Any], layer: int) -> int | None:
    """How many keys a layer of Qwen sees; None: all."""
    if not hf.get("use_sliding_window") or hf.get("sliding_window") is None:
        return None
    types = hf.get("layer_types")
    slides = layer >= hf["max_window_layers"] if types is None else types[layer] == "sliding_attention"
    return hf["sliding_window"] if slides else None


def attention_config(
    hf: dict[str, Any],
    *,
    bias: bool = False,
    output_bias: bool = False,
    window: int | None = None,
    query_key_norm: RMSNormConfig | None = None,
    theta: float = 10000.0,
) -> AttentionConfig:
    """Attention with rotary positions and grouped heads."""
    heads = hf["num_attention_heads"]
    return AttentionConfig(
        heads,
        hf["num_key_value_heads"],
        hf["head_dim"],
        window=window,
        bias=bias,
        output_bias=output_bias,
        rope=rope(hf, hf["head_dim"] or hf["hidden_size"] // heads, theta=theta),
        query_key_norm=query_key_norm,
        dropout=hf["attention_dropout"],
    )


def decoder_config(
    hf: dict[str, Any],
    attention: Callable[[int], AnyAttentionConfig],
    *,
    placement: Placement = "pre",
    norm: RMSNormConfig | None = None,
    scale_embedding: bool = False,
    dropout: float = 0.0,
    feed_forward: Callable[[int], FeedForwardConfig | MoEConfig] | None = None,
) -> TransformerConfig:
    """A decoder with RMSNorm and a gated feed-forward network; layers may differ in their attention and in this."""
    require(hf, pretraining_tp=1)
    norm = norm or RMSNormConfig(hf["rms_norm_eps"])
    plain = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=hf["mlp_bias"])
    blocks = tuple(
        BlockConfig(
            attention(layer),
            feed_forward(layer) if feed_forward else plain,
            norm=norm,
            placement=placement,
            dropout=dropout,
        )
        for layer in range(hf["num_hidden_layers"])
    )
    embedding = EmbeddingConfig(hf["vocab_size"], scale=scale_embedding)
    stack = StackConfig(embedding, blocks, None, final_norm=norm, position_index="slot")
    head = HeadConfig(tied=hf["tie_word_embeddings"], softcap=hf.get("final_logit_softcapping"))
    return TransformerConfig(hf["hidden_size"], decoder=stack, head=head)
