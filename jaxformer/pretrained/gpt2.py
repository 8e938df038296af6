"""GPT-2: the decoder-only model with learned positions that `presets.gpt2` has the shape of."""

from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LayerNormConfig,
    LearnedPositions,
    StackConfig,
    TransformerConfig,
)
from jaxformer.pretrained.settings import activation, activation_name, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, count, flag, layers, number, only, probability

GPT2: Schema = {
    "vocab_size": count(50257),
    "n_positions": count(1024),
    "n_embd": count(768),
    "n_layer": layers(12),
    "n_head": count(12),
    "n_inner": count(None),
    "activation_function": activation_name("gelu_new"),
    "resid_pdrop": probability(0.1),
    "embd_pdrop": probability(0.1),
    "attn_pdrop": probability(0.1),
    "layer_norm_epsilon": number(1e-5, 0.0, 1.0),
    "scale_attn_weights": flag(True),
    "scale_attn_by_inverse_layer_idx": flag(False),
    "tie_word_embeddings": flag(True),
    "add_cross_attention": only(False),
    "reorder_and_upcast_attn": only(False),
}
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
ROWS = (
    Row("embedding.embedding", "transformer.wte.weight"),
    Row("decoder.positions.embedding", "transformer.wpe.weight"),
    Row("decoder.final_norm", "transformer.ln_f"),
    Row("head.output", "lm_head"),
    *nested(
        "decoder.blocks.#",
        "transformer.h.#",
        Row("attention_norm", "ln_1"),
        Row("feed_forward_norm", "ln_2"),
        Row(("attention.query", "attention.key", "attention.value"), "attn.c_attn", "D (+ N H)"),
        Row("attention.output", "attn.c_proj", "(N H) D"),
        Row("feed_forward.up", "mlp.c_fc", "D F"),
        Row("feed_forward.down", "mlp.c_proj", "F D"),
    ),
)
TIES = ((r"lm_head\.weight", "transformer.wte.weight"),)
UNUSED = r"transformer\.h\.\d+\.attn\.(masked_)?bias"  # old files hold the causal mask too


def gpt2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a GPT-2 `config.json`."""
    hf = read_settings(hf, GPT2, ALIASES)
    norm = LayerNormConfig(hf["layer_norm_epsilon"])
    width = head_width(hf, "n_embd", "n_head")

    def block(index: int) -> BlockConfig:
        scale = width**-0.5 if hf["scale_attn_weights"] else 1.0
        scale /= index + 1 if hf["scale_attn_by_inverse_layer_idx"] else 1
        return BlockConfig(
            AttentionConfig(hf["n_head"], scale=scale, dropout=hf["attn_pdrop"]),
            FeedForwardConfig(hf["n_inner"], activation(hf, "activation_function")),
            norm=norm,
            norm_order="pre",
            dropout=hf["resid_pdrop"],
        )

    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        tuple(block(index) for index in range(hf["n_layer"])),
        LearnedPositions(hf["n_positions"]),
        final_norm=norm,
        position_ids_from="slot",
        dropout=hf["embd_pdrop"],
    )
    return TransformerConfig(hf["n_embd"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))


def gpt2_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of GPT-2: linear maps of blocks are [inputs, outputs], attention's three in one."""
    return WeightTable(ROWS, UNUSED, TIES, prefix="transformer.")
