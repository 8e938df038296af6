"""MPNet, RoBERTa with distances in the scores as well, and XLM-RoBERTa-XL, with norms before the sub-layers."""

from dataclasses import replace
from typing import Any

from jaxformer.config import LayerNormConfig, LearnedPositions, NonPadPositions, RelativePositions, TransformerConfig
from jaxformer.errors import InputError
from jaxformer.pretrained.bert import BERT, ROBERTA_HEADS, encoder_config, roberta_config, table
from jaxformer.pretrained.settings import head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, count, integer, layers, number, only

MPNET: Schema = {
    **{key: field for key, field in BERT.items() if key not in ("type_vocab_size", "classifier_dropout")},
    "vocab_size": count(30527),
    "relative_attention_num_buckets": only(32),  # transformers uses 32, whatever a file says
}
XLM_ROBERTA_XL: Schema = {
    **BERT,
    "vocab_size": count(250880),
    "hidden_size": count(2560),
    "num_hidden_layers": layers(36),
    "num_attention_heads": count(32),
    "intermediate_size": count(10240),
    "max_position_embeddings": count(514),
    "type_vocab_size": count(1),
    "layer_norm_eps": number(1e-5, 0.0, 1.0),
    "pad_token_id": integer(1),
}
PAD = 1  # which MPNet's positions skip, whatever pad_token_id says
MPNET_BLOCKS = (
    Row("encoder.score_positions.bias", "encoder.relative_attention_bias.weight"),
    *nested(
        "encoder.blocks.#",
        "encoder.layer.#",
        Row("attention.query", "attention.attn.q"),
        Row("attention.key", "attention.attn.k"),
        Row("attention.value", "attention.attn.v"),
        Row("attention.output", "attention.attn.o"),
        Row("attention_norm", "attention.LayerNorm"),
        Row("feed_forward.up", "intermediate.dense"),
        Row("feed_forward.down", "output.dense"),
        Row("feed_forward_norm", "output.LayerNorm"),
    ),
)
XL_BLOCKS = (
    Row("encoder.final_norm", "encoder.LayerNorm"),
    *nested(
        "encoder.blocks.#",
        "encoder.layer.#",
        Row("attention.query", "attention.self.query"),
        Row("attention.key", "attention.self.key"),
        Row("attention.value", "attention.self.value"),
        Row("attention.output", "attention.output.dense"),
        Row("attention_norm", "attention.self_attn_layer_norm"),
        Row("feed_forward.up", "intermediate.dense"),
        Row("feed_forward.down", "output.dense"),
        Row("feed_forward_norm", "LayerNorm"),
    ),
)


def mpnet_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an MPNet `config.json`: positions in the embedding and distances in the scores."""
    hf = read_settings(hf, MPNET)
    head_width(hf, "hidden_size", "num_attention_heads")
    length = hf["max_position_embeddings"] - PAD - 1
    if length < 1:
        raise InputError(f"max_position_embeddings={length + PAD + 1} leaves no position behind the reserved ones")
    config = encoder_config(
        hf | {"type_vocab_size": None, "classifier_dropout": None},
        LearnedPositions(length, offset=PAD + 1),
        NonPadPositions(PAD),
        transformed="gelu",
        classified="tanh",
    )
    return replace(config, encoder=replace(config.main, score_positions=RelativePositions(32, 128)))


def xlm_roberta_xl_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an XLM-RoBERTa-XL `config.json`: RoBERTa with norms before the sub-layers.

    In training, dropout is on the output of every sub-layer; transformers leaves out that of feed-forward networks.
    """
    hf = read_settings(hf, XLM_ROBERTA_XL)
    config, norm = roberta_config(hf), LayerNormConfig(hf["layer_norm_eps"])
    blocks = tuple(replace(block, norm_order="pre") for block in config.main.blocks)
    return replace(config, encoder=replace(config.main, blocks=blocks, embedding_norm=None, final_norm=norm))


def mpnet_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of MPNet."""
    return table("mpnet", MPNET_BLOCKS, ROBERTA_HEADS, r"mpnet\.pooler\..*", "lm_head.decoder.", "lm_head.bias")


def xlm_roberta_xl_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of XLM-RoBERTa-XL."""
    return table("roberta", XL_BLOCKS, ROBERTA_HEADS, r"roberta\.pooler\..*", "lm_head.decoder.", "lm_head.bias")
