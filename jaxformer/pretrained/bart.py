"""BART and Marian: the paper's encoder-decoder, with learned positions or with sinusoids in halves."""

import re
from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LayerNormConfig,
    LearnedPositions,
    Positions,
    SinusoidalPositions,
    StackConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.ops.activations import Activation

ACTIVATION_NAMES: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}

# Our name -> theirs, applied in this order to "decoder.blocks.0.attention.query.weight" and its like.
RENAMES = (
    (r"^source_embedding\.table$", "model.encoder.embed_tokens.weight"),
    (r"^head\.bias$", "final_logits_bias"),
    (r"^(encoder|decoder)\.", r"model.\1."),
    (r"\.positions\.table$", ".embed_positions.weight"),
    (r"\.embedding_norm\.", ".layernorm_embedding."),
    (r"\.blocks\.", ".layers."),
    (r"\.feed_forward_norm\.", ".final_layer_norm."),
    (r"\.feed_forward\.up\.", ".fc1."),
    (r"\.feed_forward\.down\.", ".fc2."),
    (r"\.attention(?=[._])", ".self_attn"),
    (r"\.cross(?=[._])", ".encoder_attn"),
    (r"_attn_norm\.", "_attn_layer_norm."),
    (r"\.query\.", ".q_proj."),
    (r"\.key\.", ".k_proj."),
    (r"\.value\.", ".v_proj."),
    (r"\.output\.", ".out_proj."),
    (r"\.scale$", ".weight"),
    (r"\.shift$", ".bias"),
)
# Ties are written once or several times, depending on the version; Marian's computed sinusoids were once stored.
IGNORABLE = r"lm_head\.weight|model\.(encoder|decoder)\.embed_(tokens|positions)\.weight|model\.shared\.weight"


def bart_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a BART `config.json`: learned positions behind two reserved rows, a norm after them."""
    positions = LearnedPositions(hf["max_position_embeddings"], offset=2)
    return _configuration(hf, positions, LayerNormConfig(), shared=True)


def marian_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Marian `config.json`: sinusoids in halves; the two vocabularies may differ."""
    shared = hf.get("share_encoder_decoder_embeddings", True)
    return _configuration(hf, SinusoidalPositions(layout="halves"), None, shared=shared)


def rename(shared: bool, name: str) -> str:
    """Their name of the parameter that we call `name`."""
    if name == "embedding.table":
        return "model.shared.weight" if shared else "model.decoder.embed_tokens.weight"
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _configuration(
    hf: dict[str, Any], positions: Positions, embedding_norm: LayerNormConfig | None, *, shared: bool
) -> TransformerConfig:
    for key in ("activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
        if hf.get(key):
            raise InputError(f"{key}={hf[key]} is not supported: set it to 0 in config.json")
    if hf["activation_function"] not in ACTIVATION_NAMES:
        known = ", ".join(ACTIVATION_NAMES)
        raise InputError(f"activation_function={hf['activation_function']!r} is not supported: known are {known}")

    def stack(name: str, vocab_size: int) -> StackConfig:
        attention = AttentionConfig(hf[f"{name}_attention_heads"], dropout=hf["attention_dropout"])
        block = BlockConfig(
            attention,
            FeedForwardConfig(hf[f"{name}_ffn_dim"], ACTIVATION_NAMES[hf["activation_function"]]),
            cross=attention if name == "decoder" else None,
            dropout=hf["dropout"],
        )
        return StackConfig(
            EmbeddingConfig(vocab_size, scale=hf["scale_embedding"]),
            (block,) * hf[f"{name}_layers"],
            positions,
            embedding_norm=embedding_norm,
            position_index="slot",
            dropout=hf["dropout"],
        )

    return TransformerConfig(
        hf["d_model"],
        encoder=stack("encoder", hf["vocab_size"]),
        decoder=stack("decoder", hf.get("decoder_vocab_size") or hf["vocab_size"]),
        head=HeadConfig(tied=True, bias=True),
        share_embeddings=shared,
    )
