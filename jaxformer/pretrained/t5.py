"""T5 and mT5: relative positions shared by all blocks, RMSNorm, no biases, scores that are not scaled."""

from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    RelativePositions,
    RMSNormConfig,
    StackConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.settings import ACTIVATIONS, activation_name, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import (
    Schema,
    choice,
    count,
    flag,
    integer,
    layers,
    list_of,
    nullable,
    number,
    only,
    probability,
    text,
)

FEED_FORWARDS = [f"{gated}{name}" for gated in ("", "gated-") for name in ACTIVATIONS]
T5: Schema = {
    "vocab_size": count(32128),
    "d_model": count(512),
    "d_kv": count(64),
    "d_ff": count(2048),
    "num_layers": layers(6),
    "num_decoder_layers": nullable(layers(None)),
    "num_heads": count(8),
    "relative_attention_num_buckets": integer(32, 4, 65_536),
    "relative_attention_max_distance": integer(128, 2),
    "dropout_rate": probability(0.1),
    "layer_norm_epsilon": number(1e-6, 0.0, 1.0),
    "feed_forward_proj": choice("relu", FEED_FORWARDS),
    "dense_act_fn": activation_name(None),
    "is_gated_act": flag(None),
    "scale_decoder_outputs": flag(None),
    "tie_word_embeddings": flag(True),
    "architectures": list_of(text(None)),
    "is_decoder": only(False),
}
MT5: Schema = {
    **T5,
    "vocab_size": count(250112),
    "d_ff": count(1024),
    "num_layers": layers(8),
    "num_heads": count(6),
    "feed_forward_proj": choice("gated-gelu", FEED_FORWARDS),
}
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
ATTENTION = (Row("query", "q"), Row("key", "k"), Row("value", "v"), Row("output", "o"))
TIES = (
    (r"lm_head\.weight", "shared.weight"),
    (r"(encoder|decoder)\.embed_tokens\.weight", "shared.weight"),
)
# Files of the first version hold positions between the stacks, which no version of the model has used.
UNUSED = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"


def t5_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a T5 `config.json`, version 1.0 or 1.1.

    Files say `tie_word_embeddings` of the factor on the hidden states: a head of its own is used where there is one.
    """
    hf = read_settings(hf, T5, ALIASES)
    scaled = hf["tie_word_embeddings"] if hf["scale_decoder_outputs"] is None else hf["scale_decoder_outputs"]
    return configuration(hf, head_scale=hf["d_model"] ** -0.5 if scaled else 1.0)


def mt5_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an mT5 `config.json`."""
    return configuration(read_settings(hf, MT5, ALIASES), head_scale=1.0)


def t5_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of T5: sub-layers are numbered, a gated network has its gate first."""
    feed_forward = config.main.blocks[0].feed_forward
    gated = isinstance(feed_forward, FeedForwardConfig) and feed_forward.gated
    inner = (Row("gate", "wi_0"), Row("up", "wi_1")) if gated else (Row("up", "wi"),)

    def stack(name: str, last: int) -> tuple[Row, ...]:
        block = (
            Row("attention_norm", "layer.0.layer_norm"),
            Row("cross_norm", "layer.1.layer_norm"),
            Row("feed_forward_norm", f"layer.{last}.layer_norm"),
            *nested("attention", "layer.0.SelfAttention", *ATTENTION),
            *nested("cross", "layer.1.EncDecAttention", *ATTENTION),
            *nested("feed_forward", f"layer.{last}.DenseReluDense", *inner, Row("down", "wo")),
        )
        return (
            Row(f"{name}.positions.bias", f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
            Row(f"{name}.final_norm", f"{name}.final_layer_norm"),
            *nested(f"{name}.blocks.#", f"{name}.block.#", *block),
        )

    ends = (Row("embedding.embedding", "shared.weight"), Row("head.output", "lm_head"))
    return WeightTable((*ends, *stack("encoder", 1), *stack("decoder", 2)), UNUSED, TIES)


def configuration(hf: dict[str, Any], head_scale: float) -> TransformerConfig:
    """Return a model whose stacks share their embedding and their shape."""
    gated, name = feed_forward_kind(hf)
    norm, dropout = RMSNormConfig(hf["layer_norm_epsilon"]), hf["dropout_rate"]
    attention = AttentionConfig(hf["num_heads"], head_dim=hf["d_kv"], scale=1.0, bias=False, dropout=dropout)
    feed_forward = FeedForwardConfig(hf["d_ff"], ACTIVATIONS[name], gated=gated, bias=False, dropout=dropout)

    def stack(cross: AttentionConfig | None, layers: int) -> StackConfig:
        block = BlockConfig(attention, feed_forward, cross, norm, "pre", dropout=dropout)
        return StackConfig(
            EmbeddingConfig(hf["vocab_size"], scale=False),
            (block,) * layers,
            RelativePositions(hf["relative_attention_num_buckets"], hf["relative_attention_max_distance"]),
            final_norm=norm,
            position_ids_from="slot",
            dropout=dropout,
            final_dropout=dropout,
        )

    encoder, width = stack(None, hf["num_layers"]), hf["d_model"]
    alone = next(iter(hf["architectures"] or ()), "").endswith("EncoderModel")
    buckets, farthest = hf["relative_attention_num_buckets"], hf["relative_attention_max_distance"]
    if farthest <= buckets // (4 if alone else 2):  # as transformers, which would divide by the logarithm of one
        raise InputError(
            f"relative_attention_max_distance={farthest} must exceed the distances that have one of the "
            f"relative_attention_num_buckets={buckets} each"
        )
    if alone:
        return TransformerConfig(width, encoder=encoder, head=None)
    decoder = stack(attention, hf["num_decoder_layers"] or hf["num_layers"])
    head = HeadConfig(scale=head_scale)
    return TransformerConfig(width, encoder=encoder, decoder=decoder, head=head, share_embeddings=True)


def feed_forward_kind(hf: dict[str, Any]) -> tuple[bool, str]:
    """Return whether the inner units are gated, and their activation.

    `feed_forward_proj` says both; `is_gated_act` and `dense_act_fn`, which files of transformers have beside it, count
    where they differ, as they do there.
    """
    kind, _, name = hf["feed_forward_proj"].rpartition("-")
    gated = bool(kind)
    if hf["feed_forward_proj"] == "gated-gelu":
        name = "gelu_new"
    return gated if hf["is_gated_act"] is None else hf["is_gated_act"], hf["dense_act_fn"] or name
