"""Llama and what has its shape: Mistral (a window), Qwen2 (biases of queries, keys, values), Qwen3 (normed heads)."""

from collections.abc import Callable
from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    RMSNormConfig,
    Rope,
    StackConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
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
RENAMES = (
    (r"^embedding\.table$", "model.embed_tokens.weight"),
    (r"^decoder\.final_norm\.", "model.norm."),
    (r"^decoder\.blocks\.", "model.layers."),
    (r"^head\.output\.", "lm_head."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.feed_forward_norm\.", ".post_attention_layernorm."),
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
    attention = attention_config(hf, bias=False, output_bias=False, window=hf["sliding_window"])
    return decoder_config(hf, lambda _: attention)


def qwen2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Qwen2 `config.json`: windows in some layers, biases on all but the output projection."""
    hf = DEFAULTS | QWEN2 | hf
    return decoder_config(
        hf, lambda layer: attention_config(hf, bias=True, output_bias=False, window=qwen_window(hf, layer))
    )


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


def llama_table(config: TransformerConfig) -> WeightTable:
    """Where all of them keep their weights."""
    return WeightTable(RENAMES, IGNORABLE, prefix="model.")


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
    bias: bool,
    output_bias: bool,
    window: int | None = None,
    query_key_norm: RMSNormConfig | None = None,
) -> AttentionConfig:
    """Attention with rotary positions and grouped heads."""
    return AttentionConfig(
        hf["num_attention_heads"],
        hf["num_key_value_heads"],
        hf["head_dim"],
        window=window,
        bias=bias,
        output_bias=output_bias,
        rope=rope(hf),
        query_key_norm=query_key_norm,
        dropout=hf["attention_dropout"],
    )


def rope(hf: dict[str, Any]) -> Rope:
    """Rotary positions, as files say it today (rope_parameters) or said it once (rope_theta and rope_scaling)."""
    said = hf.get("rope_parameters") or {"rope_theta": hf.get("rope_theta", 10000.0), **(hf.get("rope_scaling") or {})}
    kind = said.get("rope_type", said.get("type", "default"))
    if kind != "default":
        raise InputError(f"rope_type={kind!r} is not supported: only 'default' is")
    return Rope(float(said["rope_theta"]))


def decoder_config(hf: dict[str, Any], attention: Callable[[int], AttentionConfig]) -> TransformerConfig:
    """A pre-norm decoder with RMSNorm and a gated feed-forward network; layers may differ in their attention."""
    require(hf, pretraining_tp=1)
    norm = RMSNormConfig(hf["rms_norm_eps"])
    feed_forward = FeedForwardConfig(
        hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=hf["mlp_bias"]
    )
    blocks = tuple(
        BlockConfig(attention(layer), feed_forward, norm=norm, placement="pre")
        for layer in range(hf["num_hidden_layers"])
    )
    embedding = EmbeddingConfig(hf["vocab_size"], scale=False)
    stack = StackConfig(embedding, blocks, None, final_norm=norm, position_index="slot")
    return TransformerConfig(hf["hidden_size"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))
