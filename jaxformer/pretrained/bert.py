"""BERT, RoBERTa and DistilBERT: bare, or with a head for masked tokens or for classes of sequences."""

import re
from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    ClassifierConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LayerNormConfig,
    LearnedPositions,
    NonPadPositions,
    PositionIdsFrom,
    StackConfig,
    TransformConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.ops import Activation
from jaxformer.pretrained.settings import activation, activation_name, head_width, read_settings
from jaxformer.pretrained.weights import WeightTable
from jaxformer.schema import (
    Schema,
    count,
    flag,
    integer,
    layers,
    list_of,
    mapping,
    number,
    only,
    probability,
    text,
)

# What all of them may say.
COMMON: Schema = {
    "vocab_size": count(30522),
    "max_position_embeddings": count(512),
    "tie_word_embeddings": flag(True),
    "architectures": list_of(text(None)),
    "id2label": mapping(),
    "num_labels": count(2),
    "position_embedding_type": only("absolute"),
}
BERT: Schema = {
    **COMMON,
    "hidden_size": count(768),
    "num_hidden_layers": layers(12),
    "num_attention_heads": count(12),
    "intermediate_size": count(3072),
    "hidden_act": activation_name("gelu"),
    "hidden_dropout_prob": probability(0.1),
    "attention_probs_dropout_prob": probability(0.1),
    "classifier_dropout": probability(None),
    "type_vocab_size": count(2),
    "layer_norm_eps": number(1e-12, 0.0, 1.0),
    "is_decoder": only(False),
    "add_cross_attention": only(False),
}
ROBERTA: Schema = {**BERT, "vocab_size": count(50265), "pad_token_id": integer(1)}
DISTILBERT: Schema = {
    **COMMON,
    "dim": count(768),
    "n_layers": layers(6),
    "n_heads": count(12),
    "hidden_dim": count(3072),
    "activation": activation_name("gelu"),
    "dropout": probability(0.1),
    "attention_dropout": probability(0.1),
    "seq_classif_dropout": probability(0.2),
}
ALIASES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
# DistilBERT's names of BERT's settings.
RENAMED = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "seq_classif_dropout": "classifier_dropout",
}
EMBEDDINGS = (
    (r"^embedding\.embedding$", "embeddings.word_embeddings.weight"),
    (r"^embedding\.token_type_embedding$", "embeddings.token_type_embeddings.weight"),
    (r"^encoder\.positions\.embedding$", "embeddings.position_embeddings.weight"),
    (r"^encoder\.embedding_norm\.", "embeddings.LayerNorm."),
)
BLOCKS = (
    (r"^encoder\.blocks\.", "encoder.layer."),
    (r"\.attention\.(query|key|value)\.", r".attention.self.\1."),
    (r"\.attention\.output\.", ".attention.output.dense."),
    (r"\.attention_norm\.", ".attention.output.LayerNorm."),
    (r"\.feed_forward\.up\.", ".intermediate.dense."),
    (r"\.feed_forward\.down\.", ".output.dense."),
    (r"\.feed_forward_norm\.", ".output.LayerNorm."),
)
DISTILBERT_BLOCKS = (
    (r"^encoder\.blocks\.", "transformer.layer."),
    (r"\.attention\.query\.", ".attention.q_lin."),
    (r"\.attention\.key\.", ".attention.k_lin."),
    (r"\.attention\.value\.", ".attention.v_lin."),
    (r"\.attention\.output\.", ".attention.out_lin."),
    (r"\.attention_norm\.", ".sa_layer_norm."),
    (r"\.feed_forward\.up\.", ".ffn.lin1."),
    (r"\.feed_forward\.down\.", ".ffn.lin2."),
    (r"\.feed_forward_norm\.", ".output_layer_norm."),
)
LEAVES = ((r"\.scale$", ".weight"),)
BERT_HEADS = (
    (r"^head\.transform\.linear\.", "cls.predictions.transform.dense."),
    (r"^head\.transform\.norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^head\.bias$", "cls.predictions.bias"),
)
ROBERTA_HEADS = (
    (r"^head\.transform\.linear\.", "lm_head.dense."),
    (r"^head\.transform\.norm\.", "lm_head.layer_norm."),
    (r"^head\.bias$", "lm_head.bias"),
    (r"^head\.hidden\.", "classifier.dense."),
)
DISTILBERT_HEADS = (
    (r"^head\.transform\.linear\.", "vocab_transform."),
    (r"^head\.transform\.norm\.", "vocab_layer_norm."),
    (r"^head\.bias$", "vocab_projector.bias"),
    (r"^head\.hidden\.", "pre_classifier."),
    (r"^head\.output\.", "classifier."),
)
OLD_NAMES = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))


def bert_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a BERT `config.json`."""
    hf = read_settings(hf, BERT)
    head_width(hf, "hidden_size", "num_attention_heads")
    positions = LearnedPositions(hf["max_position_embeddings"])
    return encoder_config(hf, positions, "slot", transformed=activation(hf, "hidden_act"), classified="tanh")


def roberta_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a RoBERTa `config.json`: positions count what is not padding, behind reserved rows."""
    hf = read_settings(hf, ROBERTA)
    head_width(hf, "hidden_size", "num_attention_heads")
    pad = hf["pad_token_id"]
    if hf["max_position_embeddings"] <= pad + 1:
        raise InputError(
            f"max_position_embeddings={hf['max_position_embeddings']} leaves no position behind pad_token_id={pad}"
        )
    positions = LearnedPositions(hf["max_position_embeddings"] - pad - 1, offset=pad + 1)
    return encoder_config(hf, positions, NonPadPositions(pad), transformed="gelu", classified="tanh")


def distilbert_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a DistilBERT `config.json`; its sinusoids, where it has them, are stored like others."""
    hf = read_settings(hf, DISTILBERT, ALIASES)
    head_width(hf, "dim", "n_heads")
    hf |= {ours: hf[theirs] for theirs, ours in RENAMED.items()} | {"type_vocab_size": None, "layer_norm_eps": 1e-12}
    positions = LearnedPositions(hf["max_position_embeddings"])
    return encoder_config(hf, positions, "slot", transformed=activation(hf, "hidden_act"), classified="relu")


def encoder_config(
    hf: dict[str, Any],
    positions: LearnedPositions,
    position_ids_from: PositionIdsFrom,
    *,
    transformed: Activation,
    classified: Activation,
) -> TransformerConfig:
    """A post-norm encoder, with the head that the model's class has; the activations inside the two kinds of head."""
    norm = LayerNormConfig(hf["layer_norm_eps"])
    block = BlockConfig(
        AttentionConfig(hf["num_attention_heads"], dropout=hf["attention_probs_dropout_prob"]),
        FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act")),
        norm=norm,
        dropout=hf["hidden_dropout_prob"],
    )
    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False, types=hf["type_vocab_size"]),
        (block,) * hf["num_hidden_layers"],
        positions,
        embedding_norm=norm,
        position_ids_from=position_ids_from,
        dropout=hf["hidden_dropout_prob"],
    )
    name = next(iter(hf["architectures"] or ()), "Model")
    if name.endswith(("ForMaskedLM", "ForPreTraining")):
        if not hf["tie_word_embeddings"]:
            raise InputError("tie_word_embeddings=false is not supported in encoders: only true is")
        head = HeadConfig(bias=True, transform=TransformConfig(transformed, norm))
    elif name.endswith("ForSequenceClassification"):
        dropout = hf["classifier_dropout"]
        classes = hf["num_labels"] if hf["id2label"] is None else len(hf["id2label"])
        head = ClassifierConfig(classes, classified, hf["hidden_dropout_prob"] if dropout is None else dropout)
    elif name.endswith("Model"):
        head = None
    else:
        heads = "ForMaskedLM, ForPreTraining, ForSequenceClassification and bare Model"
        raise InputError(f"architectures={name!r} is not supported: of encoders, {heads} are")
    return TransformerConfig(hf["hidden_size"], encoder=stack, head=head)


def bert_table(config: TransformerConfig) -> WeightTable:
    """Where BERT keeps its weights. Its pooler is a classifier's inner layer, or has to do with pre-training alone."""
    heads = (*BERT_HEADS, (r"^head\.hidden\.", "bert.pooler.dense."), (r"^head\.output\.", "classifier."))
    kept = r"bert\.pooler\..*|cls\.seq_relationship\..*"
    return table("bert.", BLOCKS, heads, kept, "cls.predictions.decoder.", "cls.predictions.bias")


def roberta_table(config: TransformerConfig) -> WeightTable:
    """Where RoBERTa keeps its weights."""
    heads = (*ROBERTA_HEADS, (r"^head\.output\.", "classifier.out_proj."))
    return table("roberta.", BLOCKS, heads, r"roberta\.pooler\..*", "lm_head.decoder.", "lm_head.bias")


def distilbert_table(config: TransformerConfig) -> WeightTable:
    """Where DistilBERT keeps its weights."""
    return table("distilbert.", DISTILBERT_BLOCKS, DISTILBERT_HEADS, "", "vocab_projector.", None)


def table(prefix: str, blocks: Any, heads: Any, kept: str, decoder: str, bias: str | None) -> WeightTable:
    """Return names with the prefix of the bare model everywhere but in the heads.

    decoder: the prefix under which files repeat the embedding as the map to the vocabulary. bias: what they repeat its
    bias of, under the same prefix.
    """
    renames = (*EMBEDDINGS, *blocks, (r"^(?=embeddings\.|encoder\.|transformer\.)", prefix), *heads, *LEAVES)
    ties = [(re.escape(f"{decoder}weight"), f"{prefix}embeddings.word_embeddings.weight")]
    ties += [(re.escape(f"{decoder}bias"), bias)] if bias else []
    unused = rf"{re.escape(prefix)}embeddings\.position_ids"
    return WeightTable(renames, unused, tuple(ties), prefix=prefix, kept=kept, aliases=OLD_NAMES)
