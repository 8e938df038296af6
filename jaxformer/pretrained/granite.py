"""Llama in all but small numbers: Granite, Arcee, Seed-OSS, Ministral, ERNIE 4.5, HunYuan, GLM and GLM-4."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxformer.config import AttentionConfig, FeedForwardConfig, MoEConfig, RMSNormConfig, TransformerConfig
from jaxformer.errors import InputError
from jaxformer.pretrained.llama import (
    ATTENTION,
    DECODER,
    FEED_FORWARD,
    MISTRAL,
    NORMS,
    attention_config,
    changed,
    decoder_config,
    decoder_table,
)
from jaxformer.pretrained.rope import first_given, rope_kind, rope_parameters
from jaxformer.pretrained.settings import (
    LAYER_TYPES,
    activation,
    activation_name,
    check_layer_types,
    head_width,
    read_settings,
)
from jaxformer.pretrained.weights import Row, WeightTable
from jaxformer.schema import Schema, count, flag, layers, nullable, number, probability

GRANITE: Schema = {
    **DECODER,
    "attention_bias": flag(False),
    "mlp_bias": flag(False),
    "embedding_multiplier": number(1.0),
    "residual_multiplier": number(1.0),
    "attention_multiplier": number(1.0),
    "logits_scaling": number(1.0, 0.0, above=True),
}
ARCEE: Schema = {
    **DECODER,
    "hidden_size": count(2560),
    "intermediate_size": count(18432),
    "hidden_act": activation_name("relu2"),
    "max_position_embeddings": count(4096),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "attention_bias": flag(False),
    "mlp_bias": flag(False),
}
SEED_OSS: Schema = {
    **DECODER,
    "vocab_size": count(155136),
    "intermediate_size": count(27648),
    "num_hidden_layers": layers(64),
    "num_attention_heads": count(80),
    "num_key_value_heads": nullable(count(8)),
    "head_dim": nullable(count(128)),
    "max_position_embeddings": count(524288),
    "attention_bias": flag(True),
    "attention_out_bias": flag(False),
    "attention_dropout": probability(0.1),
    "residual_dropout": probability(0.1),
    "mlp_bias": flag(False),
}
MINISTRAL: Schema = {**MISTRAL, "layer_types": LAYER_TYPES}
ERNIE4_5: Schema = {
    **{key: field for key, field in DECODER.items() if key != "attention_dropout"},
    "vocab_size": count(103424),
    "hidden_size": count(1024),
    "intermediate_size": count(3072),
    "num_hidden_layers": layers(18),
    "num_attention_heads": count(16),
    "num_key_value_heads": nullable(count(2)),
    "head_dim": nullable(count(128)),
    "max_position_embeddings": count(131072),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "use_bias": flag(False),
    "tie_word_embeddings": flag(True),
}
HUNYUAN: Schema = {
    **DECODER,
    "vocab_size": count(290943),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "attention_bias": flag(False),
}
GLM: Schema = {
    **DECODER,
    "vocab_size": count(151552),
    "intermediate_size": count(13696),
    "num_hidden_layers": layers(40),
    "num_key_value_heads": nullable(count(2)),
    "head_dim": nullable(count(128)),
    "max_position_embeddings": count(131072),
    "rms_norm_eps": number(1.5625e-07, 0.0, 1.0),
    "attention_bias": flag(True),
    "partial_rotary_factor": number(0.5, 0.0, 1.0, above=True),
}


def granite_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Granite `config.json`: factors on embeddings, sub-layers, scores and logits."""
    return granite_decoder(read_settings(hf, GRANITE))


def granite_decoder(
    hf: dict[str, Any], feed_forward: Callable[[int], FeedForwardConfig | MoEConfig] | None = None
) -> TransformerConfig:
    """Return Granite of these settings, with a gated feed-forward network in layers where no other is given."""
    attention = attention_config(hf, bias=hf["attention_bias"], output_bias=hf["attention_bias"])
    attention = replace(attention, scale=hf["attention_multiplier"])
    return changed(
        decoder_config(hf, lambda _: attention, feed_forward=feed_forward),
        block={"residual_multiplier": hf["residual_multiplier"]},
        embedding={"multiplier": hf["embedding_multiplier"]},
        head={"scale": 1 / hf["logits_scaling"]},
    )


def arcee_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an Arcee `config.json`: plain networks with squared ReLU."""
    hf = read_settings(hf, ARCEE)
    head_width(hf, "hidden_size", "num_attention_heads")  # asked by transformers, even where head_dim is given
    attention = attention_config(hf, bias=hf["attention_bias"], output_bias=hf["attention_bias"])
    network = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), bias=hf["mlp_bias"])
    return decoder_config(hf, lambda _: attention, feed_forward=lambda _: network)


def seed_oss_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Seed-OSS `config.json`: the output projection has a bias of its own or none."""
    hf = read_settings(hf, SEED_OSS)
    attention = attention_config(hf, bias=hf["attention_bias"], output_bias=hf["attention_out_bias"])
    return decoder_config(hf, lambda _: attention, dropout=hf["residual_dropout"])


def ministral_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Ministral `config.json`: Mistral with windows in some layers."""
    hf = read_settings(hf, MINISTRAL)
    check_layer_types(hf)
    types = hf["layer_types"]

    def attention(layer: int) -> AttentionConfig:
        slides = types is None or types[layer] == "sliding_attention"
        return attention_config(hf, window=hf["sliding_window"] if slides else None)

    return decoder_config(hf, attention)


def ernie4_5_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an ERNIE 4.5 `config.json`: rotary pairs of neighbours."""
    hf = read_settings(hf, ERNIE4_5)
    bias = hf["use_bias"]
    attention = attention_config(hf, bias=bias, output_bias=bias, theta=500000.0, layout="interleaved")
    return decoder_config(hf | {"mlp_bias": bias}, lambda _: attention)


def hunyuan_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a dense HunYuan `config.json`: queries and keys are normed after their rotation."""
    hf = read_settings(hf, HUNYUAN)
    width = hf["head_dim"] or head_width(hf, "hidden_size", "num_attention_heads")
    given, alpha = rope_parameters(hf), rope_parameters(hf)["alpha"]
    if rope_kind(hf) == "dynamic" and alpha is not None:  # a longer base at every length
        if width == 2:
            raise InputError("rotary positions with alpha need heads wider than 2: change head_dim")
        base = first_given(given["rope_theta"], hf["rope_theta"], 10000.0) * alpha ** (width / (width - 2))
        hf = hf | {"rope_parameters": {"rope_theta": base}, "rope_scaling": None}
    bias, norm = hf["attention_bias"], RMSNormConfig(hf["rms_norm_eps"])
    attention = attention_config(hf, bias=bias, output_bias=bias, query_key_norm=norm)
    return decoder_config(hf, lambda _: replace(attention, rotate_first=True))


def glm_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a GLM `config.json`: half of each head is turned, in pairs of neighbours."""
    hf = read_settings(hf, GLM)
    attention = attention_config(hf, bias=hf["attention_bias"], layout="interleaved", partial=True)
    return decoder_config(hf, lambda _: attention)


def glm4_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a GLM-4 `config.json`: GLM with norms after the sub-layers too."""
    return changed(glm_config(hf), block={"norm_order": "pre_and_post"})


def hunyuan_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of HunYuan."""
    norms = (
        Row("attention.query_norm", "self_attn.query_layernorm"),
        Row("attention.key_norm", "self_attn.key_layernorm"),
    )
    attention = tuple(row for row in ATTENTION if "norm" not in row.theirs)
    return decoder_table(*NORMS, *attention, *norms, *FEED_FORWARD)


def glm_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of GLM and GLM-4: gate and inner map of a network share a tensor."""
    return decoder_table(
        *NORMS,
        Row("attention_output_norm", "post_self_attn_layernorm"),
        Row("feed_forward_output_norm", "post_mlp_layernorm"),
        *ATTENTION,
        Row(("feed_forward.gate", "feed_forward.up"), "mlp.gate_up_proj"),
        Row("feed_forward.down", "mlp.down_proj"),
    )
