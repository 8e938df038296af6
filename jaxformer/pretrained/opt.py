"""OPT: GPT with positions behind two reserved rows, and in one size with embeddings narrower than the model."""

from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LayerNormConfig,
    LearnedPositions,
    StackConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.settings import activation, activation_name, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, count, flag, layers, only, probability

OPT: Schema = {
    "vocab_size": count(50272),
    "hidden_size": count(768),
    "num_hidden_layers": layers(12),
    "num_attention_heads": count(12),
    "ffn_dim": count(3072),
    "max_position_embeddings": count(2048),
    "activation_function": activation_name("relu"),
    "do_layer_norm_before": flag(True),
    "_remove_final_layer_norm": flag(False),
    "word_embed_proj_dim": count(None),
    "enable_bias": flag(True),
    "attention_dropout": probability(0.0),
    "dropout": probability(0.1),
    "tie_word_embeddings": flag(True),
    "layer_norm_elementwise_affine": only(True),
    "layerdrop": only(0.0),
}
ROWS = (
    Row("embedding.embedding", "model.decoder.embed_tokens.weight"),
    Row("embedding.projection", "model.decoder.project_in"),
    Row("decoder.positions.embedding", "model.decoder.embed_positions.weight"),
    Row("decoder.final_norm", "model.decoder.final_layer_norm"),
    Row("head.projection", "model.decoder.project_out"),
    Row("head.output", "lm_head"),
    *nested(
        "decoder.blocks.#",
        "model.decoder.layers.#",
        Row("attention_norm", "self_attn_layer_norm"),
        Row("feed_forward_norm", "final_layer_norm"),
        Row("attention.query", "self_attn.q_proj"),
        Row("attention.key", "self_attn.k_proj"),
        Row("attention.value", "self_attn.v_proj"),
        Row("attention.output", "self_attn.out_proj"),
        Row("feed_forward.up", "fc1"),
        Row("feed_forward.down", "fc2"),
    ),
)
TIES = ((r"lm_head\.weight", "model.decoder.embed_tokens.weight"),)


def opt_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an OPT `config.json`. Its plain forward counts real tokens, too."""
    hf = read_settings(hf, OPT)
    head_width(hf, "hidden_size", "num_attention_heads")
    narrow = hf["word_embed_proj_dim"] not in (None, hf["hidden_size"])
    if narrow and not hf["tie_word_embeddings"]:
        raise InputError(
            f"tie_word_embeddings=false is not supported beside word_embed_proj_dim={hf['word_embed_proj_dim']}, which "
            f"is not hidden_size={hf['hidden_size']}"
        )
    before, bias = hf["do_layer_norm_before"], hf["enable_bias"]
    block = BlockConfig(
        AttentionConfig(hf["num_attention_heads"], bias=bias, dropout=hf["attention_dropout"]),
        FeedForwardConfig(hf["ffn_dim"], activation(hf, "activation_function"), bias=bias),
        norm_order="pre" if before else "post",
        dropout=hf["dropout"],
    )
    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], hf["word_embed_proj_dim"] or hf["hidden_size"], scale=False),
        (block,) * hf["num_hidden_layers"],
        LearnedPositions(hf["max_position_embeddings"], offset=2),
        final_norm=LayerNormConfig() if before and not hf["_remove_final_layer_norm"] else None,
        dropout=hf["dropout"],
    )
    return TransformerConfig(hf["hidden_size"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))


def opt_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of OPT."""
    return WeightTable(ROWS, ties=TIES, prefix="model.")
