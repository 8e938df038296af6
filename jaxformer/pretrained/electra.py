"""ELECTRA and ALBERT: BERT with embeddings narrower than the model; ALBERT applies a block many times."""

from dataclasses import replace
from typing import Any

from jaxformer.config import DiscriminatorConfig, LearnedPositions, TransformerConfig
from jaxformer.errors import InputError
from jaxformer.pretrained.bert import BERT, BLOCKS, COMMON, encoder_config, table
from jaxformer.pretrained.settings import activation, activation_name, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, count, integer, layers, number, only, probability

ELECTRA: Schema = {
    **BERT,
    "embedding_size": count(128),
    "hidden_size": count(256),
    "num_attention_heads": count(4),
    "intermediate_size": count(1024),
}
ALBERT: Schema = {
    **COMMON,
    "vocab_size": count(30000),
    "embedding_size": count(128),
    "hidden_size": count(4096),
    "num_hidden_layers": integer(12, 1, 256),  # any number of them has the weights of one
    "num_hidden_groups": layers(1),
    "inner_group_num": only(1),
    "num_attention_heads": count(64),
    "intermediate_size": count(16384),
    "hidden_act": activation_name("gelu_new"),
    "hidden_dropout_prob": probability(0.0),
    "attention_probs_dropout_prob": probability(0.0),
    "classifier_dropout_prob": probability(0.1),
    "type_vocab_size": count(2),
    "layer_norm_eps": number(1e-12, 0.0, 1.0),
}
ELECTRA_HEADS = (
    Row("head.transform.linear", "generator_predictions.dense"),
    Row("head.transform.norm", "generator_predictions.LayerNorm"),
    Row("head.bias", "generator_lm_head.bias"),
    Row("head.hidden", "classifier.dense"),
    Row("head.output", "classifier.out_proj"),
)
DISCRIMINATOR = (
    Row("head.hidden", "discriminator_predictions.dense"),
    Row("head.output", "discriminator_predictions.dense_prediction"),
)
ALBERT_HEADS = (
    Row("head.transform.linear", "predictions.dense"),
    Row("head.transform.norm", "predictions.LayerNorm"),
    Row("head.bias", "predictions.bias"),
    Row("head.hidden", "albert.pooler"),
    Row("head.output", "classifier"),
)
ALBERT_BLOCKS = nested(
    "encoder.blocks.#",
    "encoder.albert_layer_groups.#.albert_layers.0",
    Row("attention.query", "attention.query"),
    Row("attention.key", "attention.key"),
    Row("attention.value", "attention.value"),
    Row("attention.output", "attention.dense"),
    Row("attention_norm", "attention.LayerNorm"),
    Row("feed_forward.up", "ffn"),
    Row("feed_forward.down", "ffn_output"),
    Row("feed_forward_norm", "full_layer_layer_norm"),
)


def electra_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an ELECTRA `config.json`.

    Its generator has a head for masked tokens, its discriminator (ForPreTraining) one that scores each token.
    """
    hf = read_settings(hf, ELECTRA)
    head_width(hf, "hidden_size", "num_attention_heads")
    name = next(iter(hf["architectures"] or ()), "Model")
    discriminates = name.endswith("ForPreTraining")
    positions = LearnedPositions(hf["max_position_embeddings"])
    config = encoder_config(
        hf | ({"architectures": None} if discriminates else {}),
        positions,
        "slot",
        transformed="gelu",
        classified="gelu",
    )
    if discriminates:
        config = replace(config, head=DiscriminatorConfig(activation(hf, "hidden_act")))
    narrow = hf["embedding_size"] != hf["hidden_size"]
    return with_narrow_embedding(config, hf["embedding_size"]) if narrow else config


def albert_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an ALBERT `config.json`: groups of layers share a block, most often all do."""
    hf = read_settings(hf, ALBERT)
    head_width(hf, "hidden_size", "num_attention_heads")
    depth, groups = hf["num_hidden_layers"], hf["num_hidden_groups"]
    if groups > depth:
        raise InputError(f"num_hidden_groups={groups} exceeds num_hidden_layers={depth}")
    hf = hf | {"classifier_dropout": hf["classifier_dropout_prob"]}
    name = activation(hf, "hidden_act")
    positions = LearnedPositions(hf["max_position_embeddings"])
    config = with_narrow_embedding(
        encoder_config(hf, positions, "slot", transformed=name, classified="tanh"), hf["embedding_size"]
    )
    order = tuple(int(layer / (depth / groups)) for layer in range(depth))
    stack = replace(config.main, blocks=config.main.blocks[:groups], order=order)
    return replace(config, encoder=stack)


def with_narrow_embedding(config: TransformerConfig, width: int) -> TransformerConfig:
    """Return an encoder whose embedding has this width until positions and norm are in it."""
    stack = replace(config.main, embedding=replace(config.main.embedding, dim=width, project="sum"))
    return replace(config, encoder=stack)


def electra_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of ELECTRA."""
    blocks = (*BLOCKS, Row("encoder.embedding_projection", "embeddings_project"))
    heads = DISCRIMINATOR if isinstance(config.head, DiscriminatorConfig) else ELECTRA_HEADS
    return table("electra", blocks, heads, "", "generator_lm_head.", None)


def albert_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of ALBERT, whose pooler is a classifier's inner layer."""
    blocks = (*ALBERT_BLOCKS, Row("encoder.embedding_projection", "encoder.embedding_hidden_mapping_in"))
    kept = r"albert\.pooler\..*|sop_classifier\..*"
    return table("albert", blocks, ALBERT_HEADS, kept, "predictions.decoder.", "predictions.bias")
