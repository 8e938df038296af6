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
    PositionIndex,
    StackConfig,
    TokensExcept,
    TransformConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.ops import Activation
from jaxformer.pretrained.settings import activation, require
from jaxformer.pretrained.weights import WeightTable

DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}
ROBERTA: dict[str, Any] = {"vocab_size": 50265, "pad_token_id": 1}
DISTILBERT: dict[str, Any] = {
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "activation": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "seq_classif_dropout": 0.2,
}
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
    (r"^embedding\.table$", "embeddings.word_embeddings.weight"),
    (r"^embedding\.types$", "embeddings.token_type_embeddings.weight"),
    (r"^encoder\.positions\.table$", "embeddings.position_embeddings.weight"),
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
LEAVES = ((r"\.scale$", ".weight"), (r"\.shift$", ".bias"))
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
    hf = DEFAULTS | hf
    positions = LearnedPositions(hf["max_position_embeddings"])
    return encoder_config(hf, positions, "slot", transformed=activation(hf, "hidden_act"), classified="tanh")


def roberta_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a RoBERTa `config.json`: positions count what is not padding, behind reserved rows."""
    hf = DEFAULTS | ROBERTA | hf
    pad = hf["pad_token_id"]
    positions = LearnedPositions(hf["max_position_embeddings"] - pad - 1, offset=pad + 1)
    return encoder_config(hf, positions, TokensExcept(pad), transformed="gelu", classified="tanh")


def distilbert_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a DistilBERT `config.json`; its sinusoids, where it has them, are stored like others."""
    hf = DISTILBERT | hf
    hf = DEFAULTS | hf | {ours: hf[theirs] for theirs, ours in RENAMED.items()} | {"type_vocab_size": None}
    hf["layer_norm_eps"] = 1e-12
    positions = LearnedPositions(hf["max_position_embeddings"])
    return encoder_config(hf, positions, "slot", transformed=activation(hf, "hidden_act"), classified="relu")


def encoder_config(
    hf: dict[str, Any],
    positions: LearnedPositions,
    position_index: PositionIndex,
    *,
    transformed: Activation,
    classified: Activation,
) -> TransformerConfig:
    """A post-norm encoder, with the head that the model's class has; the activations inside the two kinds of head."""
    require(hf, is_decoder=False, position_embedding_type="absolute")
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
        position_index=position_index,
        dropout=hf["hidden_dropout_prob"],
    )
    name = next(iter(hf.get("architectures") or ()), "Model")
    if name.endswith(("ForMaskedLM", "ForPreTraining")):
        require(hf, tie_word_embeddings=True)
        head = HeadConfig(bias=True, transform=TransformConfig(transformed, norm))
    elif name.endswith("ForSequenceClassification"):
        dropout = hf["classifier_dropout"]
        classes = len(hf["id2label"]) if "id2label" in hf else hf.get("num_labels", 2)
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
    return table("bert.", BLOCKS, heads, r"bert\.pooler\..*|cls\.seq_relationship\..*", "cls.predictions.decoder")


def roberta_table(config: TransformerConfig) -> WeightTable:
    """Where RoBERTa keeps its weights."""
    heads = (*ROBERTA_HEADS, (r"^head\.output\.", "classifier.out_proj."))
    return table("roberta.", BLOCKS, heads, r"roberta\.pooler\..*", "lm_head.decoder")


def distilbert_table(config: TransformerConfig) -> WeightTable:
    """Where DistilBERT keeps its weights."""
    return table("distilbert.", DISTILBERT_BLOCKS, DISTILBERT_HEADS, "", "vocab_projector")


def table(prefix: str, blocks: Any, heads: Any, kept: str, decoder: str) -> WeightTable:
    """Names with the prefix of the bare model everywhere but in the heads."""
    renames = (*EMBEDDINGS, *blocks, (r"^(?=embeddings\.|encoder\.|transformer\.)", prefix), *heads, *LEAVES)
    ignorable = rf"{re.escape(decoder)}\.(weight|bias)|{re.escape(prefix)}embeddings\.position_ids"
    return WeightTable(renames, ignorable, prefix=prefix, kept=kept, aliases=OLD_NAMES)
