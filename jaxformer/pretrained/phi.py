"""Phi-1 to 2, StableLM and StarCoder2: Llama's names with LayerNorm, heads that are turned in part, plain networks."""

from dataclasses import replace
from typing import Any

from jaxformer.config import FeedForwardConfig, LayerNormConfig, TransformerConfig
from jaxformer.errors import InputError
from jaxformer.pretrained.llama import (
    ATTENTION,
    DECODER,
    FEED_FORWARD,
    NORMS,
    TIES,
    UNUSED,
    attention_config,
    changed,
    decoder_config,
    decoder_table,
)
from jaxformer.pretrained.settings import activation, activation_name, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, count, flag, layers, nullable, number, only, probability

# What decoders with LayerNorm and Llama's names may say.
COMMON: Schema = {
    key: field for key, field in DECODER.items() if key not in ("rms_norm_eps", "pretraining_tp", "head_dim")
}
PHI: Schema = {
    **COMMON,
    "vocab_size": count(51200),
    "hidden_size": count(2048),
    "intermediate_size": count(8192),
    "num_hidden_layers": layers(24),
    "head_dim": count(None),
    "hidden_act": activation_name("gelu_new"),
    "layer_norm_eps": number(1e-5, 0.0, 1.0),
    "qk_layernorm": flag(False),
    "resid_pdrop": probability(0.0),
    "embd_pdrop": probability(0.0),
    "partial_rotary_factor": number(0.5, 0.0, 1.0, above=True),
}
STABLELM: Schema = {
    **COMMON,
    "vocab_size": count(50304),
    "hidden_size": count(2560),
    "intermediate_size": count(6912),
    "num_key_value_heads": count(32),
    "max_position_embeddings": count(4096),
    "layer_norm_eps": number(1e-5, 0.0, 1.0),
    "use_qkv_bias": flag(False),
    "qk_layernorm": flag(False),
    "use_parallel_residual": flag(False),
    "hidden_dropout": only(0.0),  # of the feed-forward network alone
    "partial_rotary_factor": number(0.25, 0.0, 1.0, above=True),
}
STARCODER2: Schema = {
    **COMMON,
    "vocab_size": count(49152),
    "hidden_size": count(3072),
    "intermediate_size": count(12288),
    "num_hidden_layers": layers(30),
    "num_attention_heads": count(24),
    "num_key_value_heads": count(2),
    "head_dim": count(None),
    "hidden_act": activation_name("gelu_pytorch_tanh"),
    "max_position_embeddings": count(4096),
    "norm_epsilon": number(1e-5, 0.0, 1.0),
    "sliding_window": nullable(count(None)),
    "residual_dropout": probability(0.0),
    "embedding_dropout": probability(0.0),
    "use_bias": flag(True),
    "tie_word_embeddings": flag(True),
}


def phi_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Phi `config.json`: sub-layers side by side behind one norm, biases everywhere."""
    hf = read_settings(hf, PHI)
    width = head_width(hf, "hidden_size", "num_attention_heads")
    if hf["qk_layernorm"] and hf["head_dim"] not in (None, width):
        raise InputError(f"head_dim={hf['head_dim']} must be {width} with qk_layernorm=true, as for transformers")
    norm = LayerNormConfig(hf["layer_norm_eps"])
    attention = attention_config(
        hf, bias=True, output_bias=True, query_key_norm=norm if hf["qk_layernorm"] else None, partial=True
    )
    network = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"))
    config = decoder_config(
        hf, lambda _: attention, norm=norm, dropout=hf["resid_pdrop"], feed_forward=lambda _: network
    )
    return changed(
        config,
        block={"parallel": True, "shared_norm": True},
        stack={"dropout": hf["embd_pdrop"]},
        head={"bias": True},
    )


def stablelm_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a StableLM `config.json`: sub-layers in turn or side by side, heads normed apart."""
    hf = read_settings(hf, STABLELM)
    norm, parallel = LayerNormConfig(hf["layer_norm_eps"]), hf["use_parallel_residual"]
    heads_norm = replace(norm, bias=False) if hf["qk_layernorm"] else None
    attention = attention_config(hf, bias=hf["use_qkv_bias"], query_key_norm=heads_norm, partial=True)
    attention = replace(attention, normed="separate heads")
    config = decoder_config(hf, lambda _: attention, norm=norm)
    return changed(config, block={"parallel": parallel, "shared_norm": parallel})


def starcoder2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a StarCoder2 `config.json`: LayerNorm, biases, plain networks."""
    hf = read_settings(hf, STARCODER2)
    bias = hf["use_bias"]
    attention = attention_config(hf, bias=bias, output_bias=bias, window=hf["sliding_window"])
    network = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), bias=bias)
    config = decoder_config(
        hf,
        lambda _: attention,
        norm=LayerNormConfig(hf["norm_epsilon"]),
        dropout=hf["residual_dropout"],
        feed_forward=lambda _: network,
    )
    return changed(config, stack={"dropout": hf["embedding_dropout"]})


def phi_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of Phi."""
    attention = nested(
        "attention",
        "self_attn",
        Row("query", "q_proj"),
        Row("key", "k_proj"),
        Row("value", "v_proj"),
        Row("output", "dense"),
        Row("query_norm", "q_layernorm"),
        Row("key_norm", "k_layernorm"),
    )
    network = nested("feed_forward", "mlp", Row("up", "fc1"), Row("down", "fc2"))
    rows = (
        Row("embedding.embedding", "model.embed_tokens.weight"),
        Row("decoder.final_norm", "model.final_layernorm"),
        Row("head.output", "lm_head"),
        Row("head.bias", "lm_head.bias"),
        *nested("decoder.blocks.#", "model.layers.#", NORMS[0], *attention, *network),
    )
    return WeightTable(rows, UNUSED, TIES, prefix="model.")


def stablelm_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of StableLM: the norm of each head has a tensor."""
    norms = (
        Row("attention.query_norm", "self_attn.q_layernorm.norms.*"),
        Row("attention.key_norm", "self_attn.k_layernorm.norms.*"),
    )
    attention = tuple(row for row in ATTENTION if "norm" not in row.theirs)
    return decoder_table(*NORMS, *attention, *norms, *FEED_FORWARD)


def starcoder2_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of StarCoder2."""
    return decoder_table(*NORMS, *ATTENTION, *nested("feed_forward", "mlp", Row("up", "c_fc"), Row("down", "c_proj")))
