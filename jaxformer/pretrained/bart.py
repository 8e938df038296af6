"""BART, mBART, Pegasus, Marian: the paper's encoder-decoder, with learned positions or with sinusoids in halves."""

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
    NormOrder,
    Positions,
    SinusoidalPositions,
    StackConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.settings import activation, activation_name, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, count, flag, layers, only, probability

BART: Schema = {
    "vocab_size": count(50265),
    "d_model": count(1024),
    "encoder_layers": layers(12),
    "decoder_layers": layers(12),
    "encoder_attention_heads": count(16),
    "decoder_attention_heads": count(16),
    "encoder_ffn_dim": count(4096),
    "decoder_ffn_dim": count(4096),
    "max_position_embeddings": count(1024),
    "activation_function": activation_name("gelu"),
    "attention_dropout": probability(0.0),
    "activation_dropout": probability(0.0),
    "dropout": probability(0.1),
    "scale_embedding": flag(False),
    "encoder_layerdrop": only(0.0),
    "decoder_layerdrop": only(0.0),
    "is_decoder": only(False),
}
MARIAN: Schema = {
    **BART,
    "decoder_vocab_size": count(None),
    "share_encoder_decoder_embeddings": flag(True),
}
RESERVED = 2  # first rows of a table of learned positions, which no position uses
ALIASES = {
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
}
ATTENTION = (Row("query", "q_proj"), Row("key", "k_proj"), Row("value", "v_proj"), Row("output", "out_proj"))
BLOCK = (
    Row("attention_norm", "self_attn_layer_norm"),
    Row("cross_norm", "encoder_attn_layer_norm"),
    Row("feed_forward_norm", "final_layer_norm"),
    *nested("attention", "self_attn", *ATTENTION),
    *nested("cross", "encoder_attn", *ATTENTION),
    Row("feed_forward.up", "fc1"),
    Row("feed_forward.down", "fc2"),
)
STACK = (
    Row("positions.embedding", "embed_positions.weight"),
    Row("embedding_norm", "layernorm_embedding"),
    Row("final_norm", "layer_norm"),
    *nested("blocks.#", "layers.#", *BLOCK),
)
ROWS = (
    Row("source_embedding.embedding", "model.encoder.embed_tokens.weight"),
    Row("head.output", "lm_head"),
    Row("head.bias", "final_logits_bias", "1 V"),
    *nested("encoder", "model.encoder", *STACK),
    *nested("decoder", "model.decoder", *STACK),
)
# Ties are written once or several times, depending on the version.
SHARED = "model.shared.weight"
TIES = ((r"lm_head\.weight|model\.(encoder|decoder)\.embed_tokens\.weight", SHARED),)
# Sinusoids are computed here, and stored in files of Pegasus and in old ones of Marian.
SINUSOIDS = r"model\.(encoder|decoder)\.embed_positions\.weight"


def bart_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a BART `config.json`.

    Learned positions behind two reserved rows, a norm after them.
    """
    hf = read_settings(hf, BART, ALIASES)
    return _configuration(hf, learned(hf), LayerNormConfig(), shared=True)


def mbart_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an mBART `config.json`.

    BART with norms before the sub-layers, and one more after them.
    """
    hf = read_settings(hf, BART, ALIASES)
    return _configuration(hf, learned(hf), LayerNormConfig(), shared=True, norm_order="pre")


def pegasus_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Pegasus `config.json`: as mBART, with sinusoids and no norm after the embedding."""
    hf = read_settings(hf, BART, ALIASES)
    return _configuration(hf, SinusoidalPositions(layout="halves"), None, shared=True, norm_order="pre")


def marian_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Marian `config.json`: sinusoids in halves; the two vocabularies may differ."""
    hf = read_settings(hf, MARIAN, ALIASES)
    shared, size = hf["share_encoder_decoder_embeddings"], hf["decoder_vocab_size"]
    if shared and size not in (None, hf["vocab_size"]):
        raise InputError(
            f"decoder_vocab_size={size} must be vocab_size={hf['vocab_size']} where embeddings are shared "
            "(share_encoder_decoder_embeddings)"
        )
    return _configuration(hf, SinusoidalPositions(layout="halves"), None, shared=shared)


def bart_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of BART, mBART, Pegasus and Marian."""
    buffers = "final_logits_bias" if has_learned_positions(config) else rf"final_logits_bias|{SINUSOIDS}"
    if config.share_embeddings:
        rows = (Row("embedding.embedding", SHARED), *ROWS)
        return WeightTable(rows, ties=TIES, prefix="model.", kept=SINUSOIDS, buffers=buffers)
    decoder = "model.decoder.embed_tokens.weight"
    rows = (Row("embedding.embedding", decoder), *ROWS)
    # Where each stack has its own, nothing reads the shared one.
    kept = rf"{SINUSOIDS}|{re.escape(SHARED)}"
    return WeightTable(rows, ties=((r"lm_head\.weight", decoder),), prefix="model.", kept=kept, buffers=buffers)


def learned(hf: dict[str, Any]) -> LearnedPositions:
    """Return the positions of BART and mBART: two rows are reserved."""
    return LearnedPositions(hf["max_position_embeddings"], offset=RESERVED)


def has_learned_positions(config: TransformerConfig) -> bool:
    """Return whether positions are learned as in BART: tables of Pegasus and Marian have no reserved rows."""
    positions = config.main.positions
    return isinstance(positions, LearnedPositions) and positions.offset == RESERVED


def _configuration(
    hf: dict[str, Any],
    positions: Positions,
    embedding_norm: LayerNormConfig | None,
    *,
    shared: bool,
    norm_order: NormOrder = "post",
) -> TransformerConfig:
    def stack(name: str, vocab_size: int) -> StackConfig:
        head_width(hf, "d_model", f"{name}_attention_heads")
        attention = AttentionConfig(hf[f"{name}_attention_heads"], dropout=hf["attention_dropout"])
        block = BlockConfig(
            attention,
            FeedForwardConfig(
                hf[f"{name}_ffn_dim"], activation(hf, "activation_function"), dropout=hf["activation_dropout"]
            ),
            cross=attention if name == "decoder" else None,
            norm_order=norm_order,
            dropout=hf["dropout"],
        )
        return StackConfig(
            EmbeddingConfig(vocab_size, scale=hf["scale_embedding"]),
            (block,) * hf[f"{name}_layers"],
            positions,
            embedding_norm=embedding_norm,
            final_norm=LayerNormConfig() if norm_order == "pre" else None,
            position_ids_from="slot",
            dropout=hf["dropout"],
        )

    return TransformerConfig(
        hf["d_model"],
        encoder=stack("encoder", hf["vocab_size"]),
        decoder=stack("decoder", hf.get("decoder_vocab_size") or hf["vocab_size"]),
        head=HeadConfig(tied=True, bias=True),
        share_embeddings=shared,
    )
