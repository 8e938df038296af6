"""Gemma 1, 2 and 3 (text): scaled embeddings, norms whose scale is stored as its distance from one, soft caps."""

from dataclasses import replace
from typing import Any

from jaxformer.config import AttentionConfig, RMSNormConfig, TransformerConfig
from jaxformer.pretrained.llama import (
    ATTENTION,
    DECODER,
    FEED_FORWARD,
    attention_config,
    decoder_config,
    decoder_table,
)
from jaxformer.pretrained.rope import rope, ropes_by_layer_type
from jaxformer.pretrained.settings import LAYER_TYPES, activation_name, check_layer_types, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable
from jaxformer.schema import Schema, count, flag, layers, nullable, number, only

# What all of them may say.
COMMON: Schema = {
    **DECODER,
    "vocab_size": count(256000),
    "head_dim": count(256),
    "attention_bias": flag(False),
    "max_position_embeddings": count(8192),
    "tie_word_embeddings": flag(True),
    "use_bidirectional_attention": nullable(only(False)),
}
GEMMA: Schema = {
    **COMMON,
    "hidden_size": count(3072),
    "intermediate_size": count(24576),
    "num_hidden_layers": layers(28),
    "num_attention_heads": count(16),
    "num_key_value_heads": count(16),
    "hidden_act": activation_name("gelu_pytorch_tanh"),
}
GEMMA2: Schema = {
    **COMMON,
    "hidden_size": count(2304),
    "intermediate_size": count(9216),
    "num_hidden_layers": layers(26),
    "num_attention_heads": count(8),
    "num_key_value_heads": count(4),
    "hidden_activation": activation_name("gelu_pytorch_tanh"),
    "query_pre_attn_scalar": number(256, 0.0, above=True),
    "sliding_window": nullable(count(4096)),
    "layer_types": LAYER_TYPES,
    "attn_logit_softcapping": nullable(number(50.0, 0.0, above=True)),
    "final_logit_softcapping": nullable(number(30.0, 0.0, above=True)),
}
GEMMA3: Schema = {
    **GEMMA2,
    "vocab_size": count(262208),
    "max_position_embeddings": count(131072),
    "final_logit_softcapping": number(None, 0.0, above=True),
    "sliding_window_pattern": count(6),
    "rope_local_base_freq": number(10000.0, 1.0, above=True),
}


def gemma_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Gemma `config.json`.

    Old files say "gelu" and mean its tanh form, as all of them do.
    """
    hf = read_settings(hf, GEMMA)
    if hf["hidden_act"] == "gelu":
        hf["hidden_act"] = "gelu_pytorch_tanh"
    norm = RMSNormConfig(hf["rms_norm_eps"], offset=True)
    attention = attention_config(hf, bias=hf["attention_bias"], output_bias=hf["attention_bias"])
    return decoder_config(hf, lambda _: attention, norm=norm, scale_embedding=True)


def gemma2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Gemma 2 `config.json`.

    Every other layer sees a window; scores and logits are capped.
    """
    hf = read_settings(hf, GEMMA2)
    return sandwich_config(hf, lambda layer: layer % 2 == 0, lambda _: rope(hf, hf["head_dim"]))


def gemma3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Gemma 3 text `config.json`.

    Most layers see a window and have faster rotary positions.

    Its soft cap of the scores is a setting that the model never applied.
    """
    hf = read_settings(hf, GEMMA3)
    pattern = hf["sliding_window_pattern"]
    rope_of = ropes_by_layer_type(hf, hf["head_dim"], theta=1e6, near=hf["rope_local_base_freq"])
    norm = RMSNormConfig(hf["rms_norm_eps"], offset=True)
    hf = hf | {"attn_logit_softcapping": None}
    return sandwich_config(hf, lambda layer: (layer + 1) % pattern != 0, rope_of, query_key_norm=norm)


def gemma2_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of Gemma 2 and 3: a block has four norms."""
    norms = (
        Row("attention_norm", "input_layernorm"),
        Row("attention_output_norm", "post_attention_layernorm"),
        Row("feed_forward_norm", "pre_feedforward_layernorm"),
        Row("feed_forward_output_norm", "post_feedforward_layernorm"),
    )
    return decoder_table(*norms, *ATTENTION, *FEED_FORWARD)


def sandwich_config(
    hf: dict[str, Any], slides_by_default: Any, rope_of: Any, query_key_norm: RMSNormConfig | None = None
) -> TransformerConfig:
    """Return what Gemma 2 and 3 share.

    Norms stand before and after each sub-layer, some layers have windows, scores have a scale.

    Args:
        hf: Settings.
        slides_by_default: Whether a layer has a window where the file does not say.
        rope_of: The rotary positions of layers with and without one.
        query_key_norm: Norm of queries and keys. None: none.
    """
    check_layer_types(hf)
    head_width(hf, "hidden_size", "num_attention_heads")  # asked by transformers too, though nothing follows from it
    hf = hf | {"hidden_act": hf["hidden_activation"]}
    bias, types = hf["attention_bias"], hf["layer_types"]

    def attention(layer: int) -> AttentionConfig:
        slides = slides_by_default(layer) if types is None else types[layer] == "sliding_attention"
        config = attention_config(
            hf | {"rope_parameters": None, "rope_scaling": None},
            bias=bias,
            output_bias=bias,
            window=hf["sliding_window"] if slides else None,
            query_key_norm=query_key_norm,
        )
        scale, softcap = hf["query_pre_attn_scalar"] ** -0.5, hf["attn_logit_softcapping"]
        return replace(config, scale=scale, softcap=softcap, rope=rope_of(slides))

    norm = RMSNormConfig(hf["rms_norm_eps"], offset=True)
    return decoder_config(hf, attention, norm_order="pre_and_post", norm=norm, scale_embedding=True)
