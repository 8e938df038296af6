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
    NormConfig,
    NormOrder,
    RMSNormConfig,
    StackConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.ops.rotary import RotaryLayout
from jaxformer.pretrained.rope import ROPE, rope, rope_kind
from jaxformer.pretrained.settings import (
    LAYER_TYPES,
    activation,
    activation_name,
    check_divides,
    check_layer_types,
    head_width,
    read_settings,
)
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, count, flag, integer, layers, list_of, nullable, number, only, probability

# What Llama and all of its kin may say.
DECODER: Schema = {
    **ROPE,
    "vocab_size": count(32000),
    "hidden_size": count(4096),
    "intermediate_size": count(11008),
    "num_hidden_layers": layers(32),
    "num_attention_heads": count(32),
    "num_key_value_heads": count(None),
    "head_dim": count(None),
    "hidden_act": activation_name("silu"),
    "rms_norm_eps": number(1e-6, 0.0, 1.0),
    "attention_dropout": probability(0.0),
    "tie_word_embeddings": flag(False),
    "pretraining_tp": only(1),
}
WINDOWS: Schema = {
    "use_sliding_window": flag(False),
    "sliding_window": count(None),
    "layer_types": LAYER_TYPES,
}
LLAMA: Schema = {**DECODER, "attention_bias": flag(False), "mlp_bias": flag(False)}
MISTRAL: Schema = {
    **DECODER,
    "intermediate_size": count(14336),
    "num_key_value_heads": nullable(count(8)),
    "sliding_window": nullable(count(4096)),
    "max_position_embeddings": count(131072),
}
QWEN2: Schema = {
    **DECODER,
    **WINDOWS,
    "vocab_size": count(151936),
    "intermediate_size": count(22016),
    "num_key_value_heads": nullable(count(32)),
    "sliding_window": nullable(count(4096)),
    "max_window_layers": integer(28),
    "max_position_embeddings": count(32768),
}
QWEN3: Schema = {**QWEN2, "head_dim": count(128), "attention_bias": flag(False)}
SMOLLM3: Schema = {
    **DECODER,
    **WINDOWS,
    "vocab_size": count(128256),
    "hidden_size": count(2048),
    "num_hidden_layers": layers(36),
    "num_attention_heads": count(16),
    "num_key_value_heads": nullable(count(4)),
    "no_rope_layer_interval": count(4),
    "no_rope_layers": list_of(integer(1, 0, 1), None, most=4096),
    "attention_bias": flag(False),
    "mlp_bias": flag(False),
    "max_position_embeddings": count(32768),
    "tie_word_embeddings": flag(True),
}
OLMO2: Schema = {
    **DECODER,
    "vocab_size": count(50304),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "attention_bias": flag(False),
}
PHI3: Schema = {
    **DECODER,
    "vocab_size": count(32064),
    "hidden_size": count(3072),
    "intermediate_size": count(8192),
    "max_position_embeddings": count(4096),
    "original_max_position_embeddings": integer(4096, 2),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "sliding_window": count(None),
    "resid_pdrop": probability(0.0),
}
NORMS = (Row("attention_norm", "input_layernorm"), Row("feed_forward_norm", "post_attention_layernorm"))
ATTENTION = nested(
    "attention",
    "self_attn",
    Row("query", "q_proj"),
    Row("key", "k_proj"),
    Row("value", "v_proj"),
    Row("output", "o_proj"),
    Row("query_norm", "q_norm"),
    Row("key_norm", "k_norm"),
)
PROJECTIONS = (Row("gate", "gate_proj"), Row("up", "up_proj"), Row("down", "down_proj"))
FEED_FORWARD = nested("feed_forward", "mlp", *PROJECTIONS)
TIES = ((r"lm_head\.weight", "model.embed_tokens.weight"),)
UNUSED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # old files hold what is computed


def llama_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Llama `config.json`."""
    hf = read_settings(hf, LLAMA)
    head_width(hf, "hidden_size", "num_attention_heads")  # asked by transformers, even where head_dim is given
    attention = attention_config(hf, bias=hf["attention_bias"], output_bias=hf["attention_bias"])
    return decoder_config(hf, lambda _: attention)


def mistral_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Mistral `config.json`: every layer sees a window, where one is set."""
    hf = read_settings(hf, MISTRAL)
    attention = attention_config(hf, window=hf["sliding_window"])
    return decoder_config(hf, lambda _: attention)


def qwen2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Qwen2 `config.json`.

    Windows in some layers, biases on all but the output projection.
    """
    hf = read_settings(hf, QWEN2)
    check_layer_types(hf)
    return decoder_config(hf, lambda layer: attention_config(hf, bias=True, window=qwen_window(hf, layer)))


def qwen3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Qwen3 `config.json`: queries and keys are normalised, head by head."""
    hf = read_settings(hf, QWEN3)
    check_layer_types(hf)
    bias, norm = hf["attention_bias"], RMSNormConfig(hf["rms_norm_eps"])
    return decoder_config(
        hf,
        lambda layer: attention_config(
            hf, bias=bias, output_bias=bias, window=qwen_window(hf, layer), query_key_norm=norm
        ),
    )


def smollm3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a SmolLM3 `config.json`.

    Some layers, every fourth by default, have no positions at all.
    """
    hf = read_settings(hf, SMOLLM3)
    check_layer_types(hf)
    interval, number_of_layers = hf["no_rope_layer_interval"], hf["num_hidden_layers"]
    rotated = hf["no_rope_layers"]
    if rotated is None:
        rotated = [(layer + 1) % interval != 0 for layer in range(number_of_layers)]
    if len(rotated) != number_of_layers:
        raise InputError(f"no_rope_layers names {len(rotated)} layers, but num_hidden_layers={number_of_layers}")

    def attention(layer: int) -> AttentionConfig:
        bias, types = hf["attention_bias"], hf["layer_types"]
        # Where the file names the types of layers, use_sliding_window counts no more, as in transformers.
        slides = types[layer] == "sliding_attention" if types else hf["use_sliding_window"] and not rotated[layer]
        window = hf["sliding_window"] if slides else None
        config = attention_config(hf, bias=bias, output_bias=bias, window=window, theta=2e6)
        return config if rotated[layer] else replace(config, rope=None)

    return decoder_config(hf, attention)


def olmo2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an OLMo 2 `config.json`.

    Norms after the sub-layers, and over all queries and all keys.
    """
    hf = read_settings(hf, OLMO2)
    bias, norm = hf["attention_bias"], RMSNormConfig(hf["rms_norm_eps"])
    attention = attention_config(hf, bias=bias, output_bias=bias, query_key_norm=norm)
    return decoder_config(hf, lambda _: replace(attention, normed="all heads"), norm_order="post_sublayer")


def phi3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Phi-3 `config.json`.

    Llama with fused projections, dropout of residuals and LongRoPE.
    """
    hf = read_settings(hf, PHI3)
    if rope_kind(hf) not in ("default", "longrope"):
        raise InputError(f"rope_type={rope_kind(hf)!r} is not supported in Phi-3: known are default, longrope")
    if rope_kind(hf) == "longrope" and hf["head_dim"] is not None:
        width = head_width(hf, "hidden_size", "num_attention_heads")
        if hf["head_dim"] != width:
            raise InputError(
                f"head_dim={hf['head_dim']} must be {width} with rope_type='longrope', as for transformers"
            )
    attention = attention_config(hf, window=hf["sliding_window"], partial=True)
    return decoder_config(hf, lambda _: attention, dropout=hf["resid_pdrop"])


def decoder_table(*block: Row, kept: str = "", stack: str = "decoder") -> WeightTable:
    """Describe the checkpoints of a family whose names are Llama's.

    Args:
        block: The rows of a block.
        kept: As in `WeightTable`.
        stack: Our name of the stack.
    """
    rows = (
        Row("embedding.embedding", "model.embed_tokens.weight"),
        Row(f"{stack}.final_norm", "model.norm"),
        Row("head.output", "lm_head"),
        *nested(f"{stack}.blocks.#", "model.layers.#", *block),
    )
    return WeightTable(rows, UNUSED, TIES, prefix="model.", kept=kept)


def llama_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of Llama and of most of its kin."""
    return decoder_table(*NORMS, *ATTENTION, *FEED_FORWARD)


def olmo2_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of OLMo 2: norms are named for what they follow."""
    norms = (Row("attention_norm", "post_attention_layernorm"), Row("feed_forward_norm", "post_feedforward_layernorm"))
    return decoder_table(*norms, *ATTENTION, *FEED_FORWARD)


def phi3_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of Phi-3: maps that read the same input share a tensor."""
    return decoder_table(
        *NORMS,
        Row(("attention.query", "attention.key", "attention.value"), "self_attn.qkv_proj"),
        Row("attention.output", "self_attn.o_proj"),
        Row(("feed_forward.gate", "feed_forward.up"), "mlp.gate_up_proj"),
        Row("feed_forward.down", "mlp.down_proj"),
    )


def qwen_window(hf: dict[str, Any], layer: int) -> int | None:
    """Return how many keys a layer of Qwen sees; None: all."""
    if not hf["use_sliding_window"] or hf["sliding_window"] is None:
        return None
    types = hf["layer_types"]
    slides = layer >= hf["max_window_layers"] if types is None else types[layer] == "sliding_attention"
    return hf["sliding_window"] if slides else None


def attention_config(
    hf: dict[str, Any],
    *,
    bias: bool = False,
    output_bias: bool = False,
    window: int | None = None,
    query_key_norm: NormConfig | None = None,
    theta: float = 10000.0,
    layout: RotaryLayout = "halves",
    partial: bool = False,
) -> AttentionConfig:
    """Return attention with rotary positions and grouped heads."""
    check_divides(hf, "num_key_value_heads", "num_attention_heads")
    return AttentionConfig(
        hf["num_attention_heads"],
        hf["num_key_value_heads"],
        hf.get("head_dim"),
        window=window,
        bias=bias,
        output_bias=output_bias,
        rope=rope(
            hf,
            hf.get("head_dim") or head_width(hf, "hidden_size", "num_attention_heads"),
            theta=theta,
            layout=layout,
            partial=partial,
        ),
        query_key_norm=query_key_norm,
        dropout=hf.get("attention_dropout", 0.0),
    )


def decoder_config(
    hf: dict[str, Any],
    attention: Callable[[int], AnyAttentionConfig],
    *,
    norm_order: NormOrder = "pre",
    norm: NormConfig | None = None,
    scale_embedding: bool = False,
    dropout: float = 0.0,
    feed_forward: Callable[[int], FeedForwardConfig | MoEConfig] | None = None,
) -> TransformerConfig:
    """Return a decoder with a gated feed-forward network, and with RMSNorm where no norm is given.

    Layers may differ in their attention and in this.
    """
    norm = norm or RMSNormConfig(hf["rms_norm_eps"])
    bias = hf.get("mlp_bias", False)
    plain = FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act"), gated=True, bias=bias)
    blocks = tuple(
        BlockConfig(
            attention(layer),
            feed_forward(layer) if feed_forward else plain,
            norm=norm,
            norm_order=norm_order,
            dropout=dropout,
        )
        for layer in range(hf["num_hidden_layers"])
    )
    embedding = EmbeddingConfig(hf["vocab_size"], scale=scale_embedding)
    stack = StackConfig(embedding, blocks, None, final_norm=norm, position_ids_from="slot")
    head = HeadConfig(tied=hf["tie_word_embeddings"], softcap=hf.get("final_logit_softcapping"))
    return TransformerConfig(hf["hidden_size"], decoder=stack, head=head)


def changed(
    config: TransformerConfig,
    *,
    block: dict[str, Any] | None = None,
    stack: dict[str, Any] | None = None,
    embedding: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
) -> TransformerConfig:
    """Return a decoder with other fields.

    Args:
        config: The decoder.
        block: Fields of all blocks.
        stack: Fields of the stack.
        embedding: Fields of the embedding.
        head: Fields of the head.
    """
    old = config.main
    blocks = tuple(replace(each, **(block or {})) for each in old.blocks)
    decoder = replace(old, blocks=blocks, embedding=replace(old.embedding, **(embedding or {})), **(stack or {}))
    return replace(config, decoder=decoder, head=config.head and replace(config.head, **(head or {})))
