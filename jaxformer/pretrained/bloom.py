"""BLOOM and MPT, whose scores fall with the distance of a key (ALiBi), and Falcon, which has BLOOM's names."""

from typing import Any

from jaxformer.config import (
    AlibiPositions,
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LayerNormConfig,
    StackConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.rope import ROPE, rope
from jaxformer.pretrained.settings import activation, activation_name, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import (
    Schema,
    choice,
    count,
    flag,
    layers,
    located,
    mapping,
    number,
    only,
    probability,
    read,
)

BLOOM: Schema = {
    "vocab_size": count(250880),
    "hidden_size": count(64),
    "n_layer": layers(2),
    "n_head": count(8),
    "layer_norm_epsilon": number(1e-5, 0.0, 1.0),
    "apply_residual_connection_post_layernorm": only(False),
    "hidden_dropout": probability(0.0),
    "attention_dropout": probability(0.0),
    "tie_word_embeddings": flag(True),
}
BLOOM_ALIASES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
MPT: Schema = {
    "vocab_size": count(50368),
    "d_model": count(2048),
    "n_layers": layers(24),
    "n_heads": count(16),
    "expansion_ratio": only(4),
    "layer_norm_epsilon": number(1e-5, 0.0, 1.0),
    "attn_config": mapping(),
    "logit_scale": only(None),
    "no_bias": only(True),
    "tie_word_embeddings": flag(True),
}
MPT_ALIASES = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
# What the object under attn_config may say.
MPT_ATTENTION: Schema = {
    "attn_type": choice("multihead_attention", ("multihead_attention",)),
    "attn_pdrop": probability(0.0),
    "clip_qkv": number(None, 0.0),
    "softmax_scale": number(None, 0.0),
    "prefix_lm": only(False),
    "qk_ln": only(False),
    "alibi": only(True),
    "alibi_bias_max": only(8),
}
FALCON: Schema = {
    **ROPE,
    "vocab_size": count(65024),
    "hidden_size": count(4544),
    "num_hidden_layers": layers(32),
    "num_attention_heads": count(71),
    "num_kv_heads": count(None),
    "num_ln_in_parallel_attn": count(None, 2),
    "layer_norm_epsilon": number(1e-5, 0.0, 1.0),
    "hidden_dropout": probability(0.0),
    "alibi": only(False),  # which transformers rounds to bfloat16
    "new_decoder_architecture": flag(False),
    "multi_query": flag(True),
    "parallel_attn": flag(True),
    "bias": flag(False),
    "ffn_hidden_size": count(None),
    "activation": activation_name("gelu"),
    "tie_word_embeddings": flag(True),
}
NETWORK = nested("feed_forward", "mlp", Row("up", "dense_h_to_4h"), Row("down", "dense_4h_to_h"))
NORMS = (Row("attention_norm", "input_layernorm"), Row("feed_forward_norm", "post_attention_layernorm"))
SIDE_BY_SIDE = (Row("attention_norm", "ln_attn"), Row("feed_forward_norm", "ln_mlp"))


def bloom_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a BLOOM `config.json`: ALiBi over real tokens, and a norm after the embedding."""
    hf = read_settings(hf, BLOOM, BLOOM_ALIASES)
    head_width(hf, "hidden_size", "n_head")
    norm = LayerNormConfig(hf["layer_norm_epsilon"])
    block = BlockConfig(
        AttentionConfig(hf["n_head"], dropout=hf["attention_dropout"]),
        FeedForwardConfig(None, "gelu_tanh"),
        norm=norm,
        norm_order="pre",
        dropout=hf["hidden_dropout"],
    )
    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        (block,) * hf["n_layer"],
        AlibiPositions(),
        embedding_norm=norm,
        final_norm=norm,
    )
    return TransformerConfig(hf["hidden_size"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))


def mpt_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an MPT `config.json`: ALiBi over slots, and no bias anywhere.

    What a file says that transformers does not heed, such as alibi=false, is refused.
    """
    hf = read_settings(hf, MPT, MPT_ALIASES)
    with located("attn_config"):
        inner = read(hf["attn_config"] or {}, MPT_ATTENTION)
    head_width(hf, "d_model", "n_heads")
    norm = LayerNormConfig(hf["layer_norm_epsilon"], bias=False)
    block = BlockConfig(
        AttentionConfig(
            hf["n_heads"],
            scale=inner["softmax_scale"],
            bias=False,
            dropout=inner["attn_pdrop"],
            clip_qkv=inner["clip_qkv"] or None,
        ),
        FeedForwardConfig(None, "gelu", bias=False),
        norm=norm,
        norm_order="pre",
        dropout=inner["attn_pdrop"],
    )
    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        (block,) * hf["n_layers"],
        AlibiPositions(),
        final_norm=norm,
        position_ids_from="slot",
    )
    return TransformerConfig(hf["d_model"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))


def falcon_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Falcon `config.json`.

    Sub-layers side by side behind one norm (7B) or two (40B), or in turn; keys for one head, for groups or for all.
    """
    hf = read_settings(hf, FALCON, {"n_embed": "hidden_size"})
    heads, width = hf["num_attention_heads"], head_width(hf, "hidden_size", "num_attention_heads")
    new, parallel, norms = hf["new_decoder_architecture"], hf["parallel_attn"], hf["num_ln_in_parallel_attn"]
    if new and not parallel:
        raise InputError("new_decoder_architecture=true needs parallel_attn=true")
    if norms == 2 and parallel and not new:
        raise InputError("num_ln_in_parallel_attn=2 needs new_decoder_architecture=true")
    kv_heads = 1 if hf["multi_query"] and not new else hf["num_kv_heads"] or heads
    if heads % kv_heads or (kv_heads != heads and not new and not hf["multi_query"]):
        raise InputError(f"num_kv_heads={kv_heads} does not suit num_attention_heads={heads}")
    norm = LayerNormConfig(hf["layer_norm_epsilon"])
    block = BlockConfig(
        AttentionConfig(heads, kv_heads, bias=hf["bias"], rope=rope(hf, width)),
        FeedForwardConfig(hf["ffn_hidden_size"], activation(hf, "activation"), bias=hf["bias"]),
        norm=norm,
        norm_order="pre",
        parallel=parallel,
        shared_norm=parallel and not (new and norms != 1),
        dropout=hf["hidden_dropout"],
    )
    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        (block,) * hf["num_hidden_layers"],
        None,
        final_norm=norm,
        position_ids_from="slot",
    )
    return TransformerConfig(hf["hidden_size"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))


def bloom_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of BLOOM: one tensor has the query, key and value of each head in turn."""
    return fused_table("(N + H) D", NORMS)


def falcon_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of Falcon: one tensor has the queries of each group of heads, its key and its value."""
    block = config.main.blocks[0]
    attention = block.attention
    groups = attention.heads if not isinstance(attention, AttentionConfig) else attention.kv_heads or attention.heads
    return fused_table(f"({groups}N + N H) D", SIDE_BY_SIDE if block.parallel and not block.shared_norm else NORMS)


def fused_table(layout: str, norms: tuple[Row, ...]) -> WeightTable:
    """Describe checkpoints with BLOOM's names.

    Args:
        layout: How queries, keys and values lie in their tensor.
        norms: Rows of the norms of a block.
    """
    rows = (
        Row("embedding.embedding", "transformer.word_embeddings.weight"),
        Row("decoder.embedding_norm", "transformer.word_embeddings_layernorm"),
        Row("decoder.final_norm", "transformer.ln_f"),
        Row("head.output", "lm_head"),
        *nested(
            "decoder.blocks.#",
            "transformer.h.#",
            *norms,
            Row(("attention.query", "attention.key", "attention.value"), "self_attention.query_key_value", layout),
            Row("attention.output", "self_attention.dense"),
            *NETWORK,
        ),
    )
    ties = ((r"lm_head\.weight", "transformer.word_embeddings.weight"),)
    unused = r"transformer\.h\.\d+\.self_attention\.(rotary|maybe_rotary)\.inv_freq"  # old files hold what is computed
    return WeightTable(rows, unused, ties, prefix="transformer.")


def mpt_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of MPT."""
    rows = (
        Row("embedding.embedding", "transformer.wte.weight"),
        Row("decoder.final_norm", "transformer.norm_f"),
        Row("head.output", "lm_head"),
        *nested(
            "decoder.blocks.#",
            "transformer.blocks.#",
            Row("attention_norm", "norm_1"),
            Row("feed_forward_norm", "norm_2"),
            Row(("attention.query", "attention.key", "attention.value"), "attn.Wqkv"),
            Row("attention.output", "attn.out_proj"),
            Row("feed_forward.up", "ffn.up_proj"),
            Row("feed_forward.down", "ffn.down_proj"),
        ),
    )
    return WeightTable(rows, ties=((r"lm_head\.weight", "transformer.wte.weight"),), prefix="transformer.")
