"""ModernBERT and EuroBERT: encoders with rotary positions and gated networks, and with the heads of encoders."""

from dataclasses import replace
from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    ClassifierConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LayerNormConfig,
    SpanConfig,
    StackConfig,
    TokenClassifierConfig,
    TransformConfig,
    TransformerConfig,
)
from jaxformer.config.heads import AnyHeadConfig, Pooled
from jaxformer.errors import InputError
from jaxformer.pretrained.heads import SEQUENCES, SPANS, TOKENS, classes_of
from jaxformer.pretrained.llama import (
    ATTENTION,
    DECODER,
    FEED_FORWARD,
    NORMS,
    attention_config,
    decoder_config,
    decoder_table,
)
from jaxformer.pretrained.rope import ROPE, ropes_by_layer_type
from jaxformer.pretrained.settings import (
    LAYER_TYPES,
    activation,
    activation_name,
    check_layer_types,
    head_width,
    read_settings,
)
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, choice, count, flag, layers, list_of, mapping, number, only, probability, text

LABELS: Schema = {"architectures": list_of(text(None)), "id2label": mapping(), "num_labels": count(2)}
MODERNBERT: Schema = {
    **{key: field for key, field in ROPE.items() if key != "rope_theta"},
    "rope_scaling": only(None),
    "vocab_size": count(50368),
    "hidden_size": count(768),
    "intermediate_size": count(1152),
    "num_hidden_layers": layers(22),
    "num_attention_heads": count(12),
    "hidden_activation": activation_name("gelu"),
    "max_position_embeddings": count(8192),
    "norm_eps": number(1e-5, 0.0, 1.0),
    "norm_bias": flag(False),
    "attention_bias": flag(False),
    "attention_dropout": only(0.0),  # which transformers uses on the output of attention, too
    "layer_types": LAYER_TYPES,
    "global_attn_every_n_layers": count(3),
    "global_rope_theta": number(160000.0, 1.0, above=True),
    "local_rope_theta": number(10000.0, 1.0, above=True),
    "local_attention": count(128),
    "embedding_dropout": probability(0.0),
    "mlp_bias": flag(False),
    "mlp_dropout": probability(0.0),
    "decoder_bias": flag(True),
    "classifier_bias": flag(False),
    "classifier_activation": activation_name("gelu"),
    "classifier_dropout": probability(0.0),
    "classifier_pooling": choice("cls", ("cls", "mean")),
    "tie_word_embeddings": flag(True),
    **LABELS,
}
# How far a window reaches to each side, which counts more than local_attention where a file says it.
REACH: Schema = {"sliding_window": count(None)}
EUROBERT: Schema = {
    **DECODER,
    "vocab_size": count(128256),
    "hidden_size": count(768),
    "intermediate_size": count(3072),
    "num_hidden_layers": layers(12),
    "num_attention_heads": count(12),
    "max_position_embeddings": count(8192),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "attention_bias": flag(False),
    "mlp_bias": flag(False),
    "classifier_pooling": choice("late", ("bos", "mean", "late")),
    **LABELS,
}
POOLED: dict[str, Pooled] = {"cls": "first", "bos": "first", "mean": "mean", "late": "mean_logits"}


def modernbert_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a ModernBERT `config.json`: every third layer sees everything, others a window."""
    hf = read_settings(hf, {**MODERNBERT, **REACH})
    check_layer_types(hf)
    width, types = head_width(hf, "hidden_size", "num_attention_heads"), hf["layer_types"]
    reach = hf["local_attention"] // 2 if hf["sliding_window"] is None else hf["sliding_window"]
    rope_of = ropes_by_layer_type(
        hf | {"rope_theta": hf["global_rope_theta"]}, width, theta=160000.0, near=hf["local_rope_theta"]
    )
    norm = LayerNormConfig(hf["norm_eps"], bias=hf["norm_bias"])
    network = FeedForwardConfig(
        hf["intermediate_size"],
        activation(hf, "hidden_activation"),
        gated=True,
        bias=hf["mlp_bias"],
        dropout=hf["mlp_dropout"],
    )

    def block(layer: int) -> BlockConfig:
        near = layer % hf["global_attn_every_n_layers"] != 0 if types is None else types[layer] == "sliding_attention"
        attention = AttentionConfig(
            hf["num_attention_heads"], window=reach + 1 if near else None, bias=hf["attention_bias"], rope=rope_of(near)
        )
        return BlockConfig(attention, network, norm=norm, norm_order="pre", attention_norm=layer > 0)

    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        tuple(block(layer) for layer in range(hf["num_hidden_layers"])),
        None,
        embedding_norm=norm,
        final_norm=norm,
        position_ids_from="slot",
        dropout=hf["embedding_dropout"],
    )
    return TransformerConfig(hf["hidden_size"], encoder=stack, head=modernbert_head(hf, norm))


def modernbert_head(hf: dict[str, Any], norm: LayerNormConfig) -> AnyHeadConfig | None:
    """Return the head of a ModernBERT's class: all have the same inner layer."""
    inner, bias = activation(hf, "classifier_activation"), hf["classifier_bias"]
    layer = {"activation": inner, "norm": norm, "hidden_bias": bias, "dropout": hf["classifier_dropout"]}
    match kind_of_head(hf):
        case "ForMaskedLM":
            if not hf["tie_word_embeddings"]:
                raise InputError("tie_word_embeddings=false is not supported in encoders: only true is")
            return HeadConfig(bias=hf["decoder_bias"], transform=TransformConfig(inner, norm, bias=bias))
        case "ForSequenceClassification":
            return ClassifierConfig(classes_of(hf), pooled=POOLED[hf["classifier_pooling"]], **layer)
        case "ForTokenClassification":
            return TokenClassifierConfig(classes_of(hf), **layer)
        case "ForQuestionAnswering":
            return SpanConfig(**layer)
    return None


def eurobert_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a EuroBERT `config.json`: Llama that sees both sides."""
    hf = read_settings(hf, EUROBERT)
    head_width(hf, "hidden_size", "num_attention_heads")  # asked by transformers, even where head_dim is given
    attention = attention_config(hf, bias=hf["attention_bias"], output_bias=hf["attention_bias"])
    config = decoder_config(hf, lambda _: attention)
    head: AnyHeadConfig | None = None
    match kind_of_head(hf):
        case "ForMaskedLM":
            head = HeadConfig(tied=hf["tie_word_embeddings"], bias=hf["mlp_bias"])
        case "ForSequenceClassification":
            head = ClassifierConfig(classes_of(hf), "gelu", pooled=POOLED[hf["classifier_pooling"]])
        case "ForTokenClassification":
            head = TokenClassifierConfig(classes_of(hf))
    return replace(config, encoder=config.decoder, decoder=None, head=head)


def kind_of_head(hf: dict[str, Any]) -> str:
    """Return the end of the name of the class of a config.json. Raises InputError for a class that is not here."""
    name = next(iter(hf["architectures"] or ()), "Model")
    for kind in ("ForMaskedLM", SEQUENCES, TOKENS, SPANS, "Model"):
        if name.endswith(kind):
            return kind
    raise InputError(
        f"architectures={name!r} is not supported: of this family, ForMaskedLM, {SEQUENCES}, {TOKENS}, {SPANS} and "
        "bare Model are"
    )


def modernbert_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of ModernBERT: queries, keys and values share a tensor, as do gate and inner map."""
    rows = (
        Row("embedding.embedding", "model.embeddings.tok_embeddings.weight"),
        Row("encoder.embedding_norm", "model.embeddings.norm"),
        Row("encoder.final_norm", "model.final_norm"),
        Row("head.transform.linear", "head.dense"),
        Row("head.transform.norm", "head.norm"),
        Row("head.bias", "decoder.bias"),
        Row("head.hidden", "head.dense"),
        Row("head.norm", "head.norm"),
        Row("head.output", "classifier"),
        *nested(
            "encoder.blocks.#",
            "model.layers.#",
            Row("attention_norm", "attn_norm"),
            Row(("attention.query", "attention.key", "attention.value"), "attn.Wqkv"),
            Row("attention.output", "attn.Wo"),
            Row("feed_forward_norm", "mlp_norm"),
            Row(("feed_forward.gate", "feed_forward.up"), "mlp.Wi"),
            Row("feed_forward.down", "mlp.Wo"),
        ),
    )
    ties = ((r"decoder\.weight", "model.embeddings.tok_embeddings.weight"),)
    return WeightTable(rows, ties=ties, prefix="model.")


def eurobert_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of EuroBERT."""
    found = decoder_table(*NORMS, *ATTENTION, *FEED_FORWARD, stack="encoder")
    rows = (*found.rows, Row("head.bias", "lm_head.bias"), Row("head.hidden", "dense"))
    if isinstance(config.head, ClassifierConfig):
        rows = (*(row for row in rows if row.ours != "head.output"), Row("head.output", "classifier"))
    return replace(found, rows=rows)
