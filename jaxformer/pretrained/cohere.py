"""Cohere (Command R) and Cohere 2: sub-layers side by side behind a norm without a shift, logits with a factor."""

from dataclasses import replace
from typing import Any

from jaxformer.config import AttentionConfig, LayerNormConfig, TransformerConfig
from jaxformer.pretrained.llama import (
    ATTENTION,
    DECODER,
    FEED_FORWARD,
    NORMS,
    attention_config,
    changed,
    decoder_config,
    decoder_table,
)
from jaxformer.pretrained.settings import LAYER_TYPES, check_layer_types, read_settings
from jaxformer.pretrained.weights import WeightTable
from jaxformer.schema import Schema, count, flag, layers, number

# What both may say.
COMMON: Schema = {
    **{key: field for key, field in DECODER.items() if key not in ("rms_norm_eps", "pretraining_tp")},
    "vocab_size": count(256000),
    "hidden_size": count(8192),
    "intermediate_size": count(22528),
    "num_hidden_layers": layers(40),
    "num_attention_heads": count(64),
    "max_position_embeddings": count(8192),
    "layer_norm_eps": number(1e-5, 0.0, 1.0),
    "logit_scale": number(0.0625),
    "attention_bias": flag(False),
    "tie_word_embeddings": flag(True),
}
COHERE: Schema = {**COMMON, "use_qk_norm": flag(False)}
COHERE2: Schema = {
    **COMMON,
    "sliding_window": count(4096),
    "sliding_window_pattern": count(4),
    "layer_types": LAYER_TYPES,
}


def cohere_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Cohere `config.json`: each head may have a norm of its own."""
    hf = read_settings(hf, COHERE)
    bias, norm = hf["attention_bias"], LayerNormConfig(hf["layer_norm_eps"], bias=False)
    attention = attention_config(
        hf,
        bias=bias,
        output_bias=bias,
        query_key_norm=norm if hf["use_qk_norm"] else None,
        theta=500000.0,
        layout="interleaved",
    )
    attention = replace(attention, normed="separate heads")
    return side_by_side(hf, decoder_config(hf, lambda _: attention, norm=norm))


def cohere2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Cohere 2 `config.json`: layers have a window and positions, or neither."""
    hf = read_settings(hf, COHERE2)
    check_layer_types(hf)
    types, bias, pattern = hf["layer_types"], hf["attention_bias"], hf["sliding_window_pattern"]
    near = attention_config(hf, bias=bias, output_bias=bias, window=hf["sliding_window"], layout="interleaved")
    everywhere = replace(near, window=None, rope=None)

    def attention(layer: int) -> AttentionConfig:
        slides = (layer + 1) % pattern != 0 if types is None else types[layer] == "sliding_attention"
        return near if slides else everywhere

    norm = LayerNormConfig(hf["layer_norm_eps"], bias=False)
    return side_by_side(hf, decoder_config(hf, attention, norm=norm))


def side_by_side(hf: dict[str, Any], config: TransformerConfig) -> TransformerConfig:
    """Return a decoder whose sub-layers stand side by side behind one norm, and whose logits have a factor."""
    return changed(config, block={"parallel": True, "shared_norm": True}, head={"scale": hf["logit_scale"]})


def cohere_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of both: Llama's without the second norm."""
    return decoder_table(NORMS[0], *ATTENTION, *FEED_FORWARD)
