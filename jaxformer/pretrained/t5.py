"""T5 and mT5: relative positions shared by all blocks, RMSNorm, no biases, scores that are not scaled."""

from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    RelativeBias,
    RMSNormConfig,
    StackConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.settings import ACTIVATIONS
from jaxformer.pretrained.weights import WeightTable

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
MT5: dict[str, Any] = {
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}
RENAMES = (
    (r"^embedding\.table$", "shared.weight"),
    (r"^head\.output\.", "lm_head."),
    (r"\.positions\.table$", ".block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    (r"\.final_norm\.", ".final_layer_norm."),
    (r"\.blocks\.", ".block."),
    (r"\.attention_norm\.", ".layer.0.layer_norm."),
    (r"\.cross_norm\.", ".layer.1.layer_norm."),
    (r"^(encoder.*)\.feed_forward_norm\.", r"\1.layer.1.layer_norm."),
    (r"^(decoder.*)\.feed_forward_norm\.", r"\1.layer.2.layer_norm."),
    (r"\.attention\.", ".layer.0.SelfAttention."),
    (r"\.cross\.", ".layer.1.EncDecAttention."),
    (r"^(encoder.*)\.feed_forward\.", r"\1.layer.1.DenseReluDense."),
    (r"^(decoder.*)\.feed_forward\.", r"\1.layer.2.DenseReluDense."),
    (r"\.query\.", ".q."),
    (r"\.key\.", ".k."),
    (r"\.value\.", ".v."),
    (r"\.output\.", ".o."),
    (r"\.down\.", ".wo."),
    (r"\.scale$", ".weight"),
)
IGNORABLE = (
    r"lm_head\.weight|(encoder|decoder)\.embed_tokens\.weight"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)


def t5_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a T5 `config.json`, version 1.0 or 1.1.

    Files say `tie_word_embeddings` of the factor on the hidden states: a head of its own is used where there is one.
    """
    hf = DEFAULTS | hf
    scaled = hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings", True) is not False)
    return configuration(hf, head_scale=hf["d_model"] ** -0.5 if scaled else 1.0)


def mt5_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of an mT5 `config.json`."""
    return configuration(DEFAULTS | MT5 | hf, head_scale=1.0)


def t5_table(config: TransformerConfig) -> WeightTable:
    """Where T5 keeps its weights. A gated network has its gate first."""
    feed_forward = config.main.blocks[0].feed_forward
    gated = isinstance(feed_forward, FeedForwardConfig) and feed_forward.gated
    inner = ((r"\.gate\.", ".wi_0."), (r"\.up\.", ".wi_1.")) if gated else ((r"\.up\.", ".wi."),)
    return WeightTable((*RENAMES, *inner), IGNORABLE, prefix="")


def configuration(hf: dict[str, Any], head_scale: float) -> TransformerConfig:
    """Both stacks share their embedding and their shape."""
    gated, _, name = hf["feed_forward_proj"].rpartition("-")
    if name not in ACTIVATIONS or gated not in ("", "gated"):
        raise InputError(f"feed_forward_proj={hf['feed_forward_proj']!r} is not supported")
    if hf["feed_forward_proj"] == "gated-gelu":
        name = "gelu_new"
    norm, dropout = RMSNormConfig(hf["layer_norm_epsilon"]), hf["dropout_rate"]
    attention = AttentionConfig(hf["num_heads"], head_dim=hf["d_kv"], scale=1.0, bias=False, dropout=dropout)
    feed_forward = FeedForwardConfig(hf["d_ff"], ACTIVATIONS[name], gated=bool(gated), bias=False, dropout=dropout)

    def stack(cross: AttentionConfig | None, layers: int) -> StackConfig:
        block = BlockConfig(attention, feed_forward, cross, norm, "pre", dropout=dropout)
        return StackConfig(
            EmbeddingConfig(hf["vocab_size"], scale=False),
            (block,) * layers,
            RelativeBias(hf["relative_attention_num_buckets"], hf["relative_attention_max_distance"]),
            final_norm=norm,
            position_index="slot",
            dropout=dropout,
            final_dropout=dropout,
        )

    encoder, width = stack(None, hf["num_layers"]), hf["d_model"]
    if (hf.get("architectures") or [""])[0].endswith("EncoderModel"):
        return TransformerConfig(width, encoder=encoder, head=None)
    decoder = stack(attention, hf["num_decoder_layers"] or hf["num_layers"])
    head = HeadConfig(scale=head_scale)
    return TransformerConfig(width, encoder=encoder, decoder=decoder, head=head, share_embeddings=True)
