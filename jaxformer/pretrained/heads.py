"""Heads of classes, which models of most families may have: of sequences, of their tokens, of answers in a text."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from jaxformer.config import (
    ClassifierConfig,
    EndOfText,
    LastToken,
    ShiftedInputs,
    SpanConfig,
    TokenClassifierConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.settings import read_settings
from jaxformer.pretrained.weights import Row, WeightTable
from jaxformer.schema import Field, Schema, count, flag, integer, list_of, mapping, probability, text

SEQUENCES, TOKENS, SPANS = "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"
CLASSIFIED: Schema = {
    "architectures": list_of(text(None)),
    "id2label": mapping(),
    "num_labels": count(2),
    "pad_token_id": integer(None, -1),
    "classifier_dropout": probability(None),
    "token_classification_bias": flag(True),
}
# Padding where config.json names none.
PADDING = {"gemma": 0, "gemma2": 0, "gemma3_text": 0, "glm": 151329, "glm4": 151329, "hunyuan_v1_dense": 0, "olmo": 1}
PADDING |= {"olmo2": 1, "olmo3": 1, "opt": 1, "phi3": 32000, "seed_oss": 1, "smollm3": 128004}
# Families that have no class with such a head in transformers.
WITHOUT = {
    SEQUENCES: {"codegen", "cohere", "cohere2", "ernie4_5", "glm4_moe", "granite", "granitemoe", "olmoe"},
    TOKENS: {"deepseek_v2", "gemma3_text", "gptj", "hunyuan_v1_dense", "olmo", "olmo2", "olmo3", "opt"},
    SPANS: {"deepseek_v2", "deepseek_v3", "eurobert", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt_oss"},
}
WITHOUT[SEQUENCES] |= {"marian", "pegasus"}
WITHOUT[TOKENS] |= WITHOUT[SEQUENCES] | {"bart", "mbart"}
WITHOUT[SPANS] |= WITHOUT[SEQUENCES] | {"hunyuan_v1_dense", "olmo", "olmo2", "olmo3", "phi", "phi3", "stablelm"}
WITHOUT[SPANS] |= {"starcoder2"}
# Decoders whose map to the classes of tokens has the name that it has in encoders; in others it is "score".
LIKE_ENCODERS = {"bloom", "falcon", "gpt2", "gpt_neo", "gpt_neox", "mpt"}
# Families whose checkpoints have another name in front of the model below this head.
MOVED = {
    (name, SPANS): "transformer."
    for name in ("arcee", "llama", "ministral", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3")
}
MOVED |= {(name, head): "transformer." for name in ("t5", "mt5") for head in (SEQUENCES, TOKENS)}


class Tokens(NamedTuple):
    """Tokens that encoder-decoders with a classifier take from config.json, and what an absent key means.

    Attributes:
        pad: At padding.
        eos: Ends a text.
        start: The decoder reads first. None: config.json must name it.
        wraps: Whether the decoder first reads the last token of the text instead, whatever config.json names.
    """

    pad: int
    eos: int
    start: int | None
    wraps: bool = False


# What they read besides, of which a model that generates may have several.
TWICE: Schema = {key: Field(None, "tokens", lambda value: True) for key in ("eos_token_id", "decoder_start_token_id")}
SHIFTED = {
    "bart": Tokens(1, 2, 2),
    "mbart": Tokens(1, 2, None, wraps=True),
    "mt5": Tokens(0, 1, 0),
    "t5": Tokens(0, 1, None),
}


def head_of(hf: Mapping[str, Any]) -> str | None:
    """Return which head of classes the class of a config.json has; None: another one, or none."""
    name = next(iter(hf.get("architectures") or ()), "")
    return next((head for head in (SEQUENCES, TOKENS, SPANS) if name.endswith(head)), None)


def classes_of(hf: Mapping[str, Any]) -> int:
    """Return the number of classes that a config.json names."""
    return hf["num_labels"] if hf["id2label"] is None else len(hf["id2label"])


def with_heads(
    name: str, config: Callable[[dict[str, Any]], TransformerConfig], schema: Schema, classes: str
) -> Callable[[dict[str, Any]], TransformerConfig]:
    """Return a function from config.json to a configuration, with the heads of classes of a family.

    Args:
        name: The family.
        config: The function for its other heads; for an encoder, for these as well.
        schema: What it reads.
        classes: Start of the names of its classes in transformers.
    """
    shared = {key: schema[key] for key in ("classifier_dropout", "hidden_dropout", "num_labels") if key in schema}

    def found(hf: dict[str, Any]) -> TransformerConfig:
        head = head_of(hf)
        if head is not None and name in WITHOUT[head]:
            raise InputError(f"{classes} has no {head} in transformers: give another model")
        if head is None:
            return config(hf)
        if (name, head) in MOVED and head == TOKENS:
            hf = hf | {"architectures": [f"{classes}EncoderModel", *hf["architectures"]]}
        made = config(hf)
        if made.encoder is not None and made.decoder is None and name not in SHIFTED:
            return made
        read = read_settings({"pad_token_id": PADDING.get(name)} | hf, {**CLASSIFIED, **shared})
        if made.main.embedding.dim not in (None, made.dim):
            raise InputError(f"{classes}{head} with an embedding narrower than the model is not supported")
        if name in SHIFTED and made.decoder is not None:
            return shifted(made, head, hf, SHIFTED[name], read)
        if head == SPANS:
            return replace(made, head=SpanConfig())
        if head == TOKENS:
            named = name in LIKE_ENCODERS or name in SHIFTED
            bias = True if named else read["token_classification_bias"]
            return replace(made, head=TokenClassifierConfig(classes_of(read), dropout=rate(read, name), bias=bias))
        pad_id = read["pad_token_id"]
        pooled = LastToken(None if pad_id is None or pad_id < 0 else pad_id)  # no token is -1
        return replace(made, head=ClassifierConfig(classes_of(read), activation=None, pooled=pooled, bias=False))

    return found


def rate(read: Mapping[str, Any], name: str) -> float:
    """Return the rate of dropout before the map to the classes of tokens."""
    rates = (read["classifier_dropout"], read.get("hidden_dropout"), 0.0 if name in SHIFTED else 0.1)
    return next(each for each in rates if each is not None)


def shifted(
    config: TransformerConfig, head: str, hf: dict[str, Any], defaults: Tokens, read: Mapping[str, Any]
) -> TransformerConfig:
    """Return an encoder-decoder whose decoder reads the text once more, and whose head classifies it."""
    schema: dict[str, Field] = {
        "pad_token_id": integer(defaults.pad),
        "eos_token_id": integer(defaults.eos),
        "decoder_start_token_id": integer(defaults.start),
    }
    tokens = read_settings(hf, schema)
    if tokens["decoder_start_token_id"] is None and not defaults.wraps:
        raise InputError(f"config.json of {head} names no decoder_start_token_id, which the decoder reads first")
    start = None if defaults.wraps else tokens["decoder_start_token_id"]
    reads = ShiftedInputs(start, tokens["pad_token_id"] if defaults.wraps else None)
    made = SpanConfig() if head == SPANS else None
    made = made or ClassifierConfig(
        classes_of(read), dropout=read["classifier_dropout"] or 0.0, pooled=EndOfText(tokens["eos_token_id"])
    )
    return replace(config, head=made, targets_from=reads)


def with_head_rows(
    name: str, table: Callable[[TransformerConfig], WeightTable]
) -> Callable[[TransformerConfig], WeightTable]:
    """Return a function from a configuration to the table of its weights, with the names of heads of classes.

    Args:
        name: The family.
        table: The function for its other heads; for an encoder, for classes of sequences as well.
    """

    def found(config: TransformerConfig) -> WeightTable:
        made, rows = table(config), ()
        match config.head:
            case TokenClassifierConfig():
                encodes = config.encoder is not None or name in LIKE_ENCODERS
                head, rows = TOKENS, (Row("head.output", "classifier" if encodes else "score"),)
            case SpanConfig():
                head, rows = SPANS, (Row("head.output", "classifier" if config.head.activation else "qa_outputs"),)
            case ClassifierConfig() if config.decoder is not None:
                head, rows = SEQUENCES, (Row("head.output", "score"),)
                if config.encoder is not None:
                    rows = (
                        Row("head.hidden", "classification_head.dense"),
                        Row("head.output", "classification_head.out_proj"),
                    )
            case _:
                return made
        ours = {row.ours for row in rows}
        made = replace(made, rows=(*(row for row in made.rows if row.ours not in ours), *rows))
        return moved(made, MOVED[name, head]) if (name, head) in MOVED else made

    return found


def moved(table: WeightTable, prefix: str) -> WeightTable:
    """Return a table with another name in front of the model below the head."""
    old, new = re.escape(table.prefix), re.escape(prefix)

    def pattern(found: str) -> str:
        return new + found.removeprefix(old) if found.startswith(old) else found

    def row(found: Row) -> Row:
        ours = found.ours if isinstance(found.ours, str) else found.ours[0]
        return (
            found
            if ours.startswith("head.")
            else found._replace(theirs=prefix + found.theirs.removeprefix(table.prefix))
        )

    return replace(
        table,
        rows=tuple(map(row, table.rows)),
        unused=pattern(table.unused),
        ties=tuple((pattern(name), prefix + source.removeprefix(table.prefix)) for name, source in table.ties),
        kept=pattern(table.kept),
        buffers=pattern(table.buffers),
        prefix=prefix,
    )
