"""BERT, RoBERTa and DistilBERT: bare, or with a head for masked tokens, for classes or for answers."""

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
    SpanConfig,
    StackConfig,
    TokenClassifierConfig,
    TransformConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.ops import Activation
from jaxformer.pretrained.heads import SEQUENCES, SPANS, TOKENS, classes_of
from jaxformer.pretrained.settings import activation, activation_name, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
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
CAMEMBERT: Schema = {**BERT, "pad_token_id": integer(1)}
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
    "qa_dropout": probability(0.1),
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
    Row("embedding.embedding", "embeddings.word_embeddings.weight"),
    Row("embedding.token_type_embedding", "embeddings.token_type_embeddings.weight"),
    Row("encoder.positions.embedding", "embeddings.position_embeddings.weight"),
    Row("encoder.embedding_norm", "embeddings.LayerNorm"),
)
BLOCKS = nested(
    "encoder.blocks.#",
    "encoder.layer.#",
    Row("attention.query", "attention.self.query"),
    Row("attention.key", "attention.self.key"),
    Row("attention.value", "attention.self.value"),
    Row("attention.output", "attention.output.dense"),
    Row("attention_norm", "attention.output.LayerNorm"),
    Row("feed_forward.up", "intermediate.dense"),
    Row("feed_forward.down", "output.dense"),
    Row("feed_forward_norm", "output.LayerNorm"),
)
DISTILBERT_BLOCKS = nested(
    "encoder.blocks.#",
    "transformer.layer.#",
    Row("attention.query", "attention.q_lin"),
    Row("attention.key", "attention.k_lin"),
    Row("attention.value", "attention.v_lin"),
    Row("attention.output", "attention.out_lin"),
    Row("attention_norm", "sa_layer_norm"),
    Row("feed_forward.up", "ffn.lin1"),
    Row("feed_forward.down", "ffn.lin2"),
    Row("feed_forward_norm", "output_layer_norm"),
)
BERT_HEADS = (
    Row("head.transform.linear", "cls.predictions.transform.dense"),
    Row("head.transform.norm", "cls.predictions.transform.LayerNorm"),
    Row("head.bias", "cls.predictions.bias"),
    Row("head.hidden", "bert.pooler.dense"),
    Row("head.output", "classifier"),
)
ROBERTA_HEADS = (
    Row("head.transform.linear", "lm_head.dense"),
    Row("head.transform.norm", "lm_head.layer_norm"),
    Row("head.bias", "lm_head.bias"),
    Row("head.hidden", "classifier.dense"),
    Row("head.output", "classifier.out_proj"),
)
DISTILBERT_HEADS = (
    Row("head.transform.linear", "vocab_transform"),
    Row("head.transform.norm", "vocab_layer_norm"),
    Row("head.bias", "vocab_projector.bias"),
    Row("head.hidden", "pre_classifier"),
    Row("head.output", "classifier"),
)
OLD_NAMES = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))


def bert_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a BERT `config.json`."""
    hf = read_settings(hf, BERT)
    head_width(hf, "hidden_size", "num_attention_heads")
    positions = LearnedPositions(hf["max_position_embeddings"])
    return encoder_config(hf, positions, "slot", transformed=activation(hf, "hidden_act"), classified="tanh")


def roberta_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a RoBERTa `config.json`.

    Positions count what is not padding, behind reserved rows.
    """
    hf = read_settings(hf, ROBERTA)
    head_width(hf, "hidden_size", "num_attention_heads")
    pad = hf["pad_token_id"]
    if pad >= hf["vocab_size"]:
        raise InputError(f"pad_token_id={pad} must be below vocab_size={hf['vocab_size']}")
    if hf["max_position_embeddings"] <= pad + 1:
        raise InputError(
            f"max_position_embeddings={hf['max_position_embeddings']} leaves no position behind pad_token_id={pad}"
        )
    positions = LearnedPositions(hf["max_position_embeddings"] - pad - 1, offset=pad + 1)
    return encoder_config(hf, positions, NonPadPositions(pad), transformed="gelu", classified="tanh")


def camembert_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a CamemBERT `config.json`: RoBERTa with other defaults."""
    return roberta_config(read_settings(hf, CAMEMBERT))


def distilbert_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a DistilBERT `config.json`.

    Its sinusoids, where it has them, are stored like others.
    """
    hf = read_settings(hf, DISTILBERT, ALIASES)
    head_width(hf, "dim", "n_heads")
    hf |= {ours: hf[theirs] for theirs, ours in RENAMED.items()} | {"type_vocab_size": None, "layer_norm_eps": 1e-12}
    hf |= {"token_dropout": hf["dropout"]}
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
    """Return a post-norm encoder, with the head that the model's class has.

    Args:
        hf: Settings by BERT's names.
        positions: Table of positions.
        position_ids_from: What numbers the positions.
        transformed: Activation inside the head for masked tokens.
        classified: Activation inside the head for classes.
    """
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
    rate = hf["hidden_dropout_prob"] if hf["classifier_dropout"] is None else hf["classifier_dropout"]
    if name.endswith(("ForMaskedLM", "ForPreTraining")):
        if not hf["tie_word_embeddings"]:
            raise InputError("tie_word_embeddings=false is not supported in encoders: only true is")
        head = HeadConfig(bias=True, transform=TransformConfig(transformed, norm))
    elif name.endswith(SEQUENCES):
        head = ClassifierConfig(classes_of(hf), classified, rate)
    elif name.endswith(TOKENS):
        head = TokenClassifierConfig(classes_of(hf), dropout=hf.get("token_dropout", rate))
    elif name.endswith(SPANS):
        head = SpanConfig(dropout=hf.get("qa_dropout", 0.0))
    elif name.endswith("Model"):
        head = None
    else:
        heads = f"ForMaskedLM, ForPreTraining, {SEQUENCES}, {TOKENS}, {SPANS} and bare Model"
        raise InputError(f"architectures={name!r} is not supported: of encoders, {heads} are")
    return TransformerConfig(hf["hidden_size"], encoder=stack, head=head)


def bert_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of BERT, whose pooler is a classifier's inner layer, or for pre-training alone."""
    kept = r"bert\.pooler\..*|cls\.seq_relationship\..*"
    return table("bert", BLOCKS, BERT_HEADS, kept, "cls.predictions.decoder.", "cls.predictions.bias")


def roberta_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of RoBERTa."""
    return table("roberta", BLOCKS, ROBERTA_HEADS, r"roberta\.pooler\..*", "lm_head.decoder.", "lm_head.bias")


def distilbert_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of DistilBERT."""
    return table("distilbert", DISTILBERT_BLOCKS, DISTILBERT_HEADS, "", "vocab_projector.", None)


def table(
    name: str, blocks: tuple[Row, ...], heads: tuple[Row, ...], kept: str, decoder: str, bias: str | None
) -> WeightTable:
    """Return the table of an encoder.

    Args:
        name: The module of the bare model, in front of all names but those of heads.
        blocks: Rows of the blocks.
        heads: Rows of all heads.
        kept: As in `WeightTable`.
        decoder: The start of names under which files repeat the embedding as the map to the vocabulary.
        bias: The bias of that map, where files repeat it.
    """
    body = tuple(Row(row.ours, f"{name}.{row.theirs}", row.layout) for row in (*EMBEDDINGS, *blocks))
    ties = [(re.escape(f"{decoder}weight"), f"{name}.embeddings.word_embeddings.weight")]
    ties += [(re.escape(f"{decoder}bias"), bias)] if bias else []
    unused = rf"{name}\.embeddings\.position_ids"
    return WeightTable((*body, *heads), unused, tuple(ties), prefix=f"{name}.", kept=kept, aliases=OLD_NAMES)
