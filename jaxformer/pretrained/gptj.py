"""GPT-Neo, GPT-J and CodeGen: GPT-2's names for windows, for rotary positions and for sub-layers side by side."""

from typing import Any

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LayerNormConfig,
    LearnedPositions,
    Rope,
    StackConfig,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.gpt2 import ALIASES, TIES
from jaxformer.pretrained.settings import activation, activation_name, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Field, Schema, choice, count, flag, is_integer, layers, list_of, number, probability

KINDS = list_of(choice(None, ("global", "local")), None, most=4096)


def is_pattern(value: Any) -> bool:
    """Return whether a value lists kinds of layers and how often they come: [[["global", "local"], 12]]."""
    pairs = value if isinstance(value, list) and 0 < len(value) <= 4096 else [None]
    return all(
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], list)
        and KINDS.accepts(pair[0])
        and is_integer(pair[1])
        and 0 <= pair[1] <= 4096
        for pair in pairs
    )


GPT_NEO: Schema = {
    "vocab_size": count(50257),
    "max_position_embeddings": count(2048),
    "hidden_size": count(2048),
    "num_layers": layers(24),
    "num_heads": count(16),
    "intermediate_size": count(None),
    "attention_types": Field(
        [[["global", "local"], 12]],
        'pairs of a list of "global" and "local" and of how often it comes, such as [[["global", "local"], 12]]',
        is_pattern,
    ),
    "attention_layers": KINDS,
    "window_size": count(256),
    "activation_function": activation_name("gelu_new"),
    "resid_dropout": probability(0.0),
    "embed_dropout": probability(0.0),
    "attention_dropout": probability(0.0),
    "classifier_dropout": probability(0.1),
    "layer_norm_epsilon": number(1e-5, 0.0, 1.0),
    "tie_word_embeddings": flag(True),
}
GPT_NEO_ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
GPTJ: Schema = {
    "vocab_size": count(50400),
    "n_positions": count(2048),
    "n_embd": count(4096),
    "n_layer": layers(28),
    "n_head": count(16),
    "n_inner": count(None),
    "rotary_dim": count(64),
    "activation_function": activation_name("gelu_new"),
    "resid_pdrop": probability(0.0),
    "embd_pdrop": probability(0.0),
    "attn_pdrop": probability(0.0),
    "layer_norm_epsilon": number(1e-5, 0.0, 1.0),
    "tie_word_embeddings": flag(False),
}
GROUPS = 4  # of heads, whose projections lie side by side in CodeGen: it was trained on so many devices
PROJECTIONS = (Row("query", "q_proj"), Row("key", "k_proj"), Row("value", "v_proj"), Row("output", "out_proj"))
STACK = (
    Row("embedding.embedding", "transformer.wte.weight"),
    Row("decoder.positions.embedding", "transformer.wpe.weight"),
    Row("decoder.final_norm", "transformer.ln_f"),
    Row("head.output", "lm_head"),
    Row("head.bias", "lm_head.bias"),
)
# Old files hold the causal mask too.
UNUSED = r"transformer\.h\.\d+\.attn\.(attention\.)?((masked_)?bias|causal_mask)"


def gpt_neo_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a GPT-Neo `config.json`: scores without a factor, windows in some layers."""
    hf = read_settings(hf, GPT_NEO, GPT_NEO_ALIASES)
    head_width(hf, "hidden_size", "num_heads")
    norm = LayerNormConfig(hf["layer_norm_epsilon"])
    pattern = hf["attention_types"] if hf["attention_layers"] is None else [(hf["attention_layers"], 1)]
    named = sum(len(some) * times for some, times in pattern)
    if named != hf["num_layers"]:
        raise InputError(f"attention_types names {named} layers, but num_layers={hf['num_layers']}")
    kinds = [kind for some, times in pattern for kind in some * times]

    def block(kind: str) -> BlockConfig:
        window = hf["window_size"] if kind == "local" else None
        return BlockConfig(
            AttentionConfig(
                hf["num_heads"],
                scale=1.0,
                window=window,
                bias=False,
                output_bias=True,
                dropout=hf["attention_dropout"],
            ),
            FeedForwardConfig(hf["intermediate_size"], activation(hf, "activation_function")),
            norm=norm,
            norm_order="pre",
            dropout=hf["resid_dropout"],
        )

    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        tuple(map(block, kinds)),
        LearnedPositions(hf["max_position_embeddings"]),
        final_norm=norm,
        position_ids_from="slot",
        dropout=hf["embed_dropout"],
    )
    return TransformerConfig(hf["hidden_size"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))


def gptj_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a GPT-J `config.json`: sub-layers side by side behind one norm."""
    hf = read_settings(hf, GPTJ, ALIASES)
    width, rotated = head_width(hf, "n_embd", "n_head"), hf["rotary_dim"]
    if rotated % 2 or rotated > width:
        raise InputError(f"rotary_dim={rotated} must be even and at most n_embd / n_head = {width}")
    norm = LayerNormConfig(hf["layer_norm_epsilon"])
    positions = Rope(width=None if rotated == width else rotated, layout="interleaved")
    block = BlockConfig(
        AttentionConfig(hf["n_head"], bias=False, rope=positions, dropout=hf["attn_pdrop"]),
        FeedForwardConfig(hf["n_inner"], activation(hf, "activation_function")),
        norm=norm,
        norm_order="pre",
        parallel=True,
        shared_norm=True,
        dropout=hf["resid_pdrop"],
    )
    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        (block,) * hf["n_layer"],
        None,
        final_norm=norm,
        position_ids_from="slot",
        dropout=hf["embd_pdrop"],
    )
    return TransformerConfig(hf["n_embd"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"], bias=True))


def codegen_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a CodeGen `config.json`: GPT-J with a fused projection in groups of heads."""
    config = gptj_config(hf)
    heads = config.main.blocks[0].attention.heads
    if heads % GROUPS:
        raise InputError(f"n_head={heads} must be a multiple of {GROUPS}, the groups of heads in a CodeGen checkpoint")
    return config


def gpt_neo_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of GPT-Neo: GPT-2's names, linear maps [outputs, inputs]."""
    block = (
        Row("attention_norm", "ln_1"),
        Row("feed_forward_norm", "ln_2"),
        *nested("attention", "attn.attention", *PROJECTIONS),
        Row("feed_forward.up", "mlp.c_fc"),
        Row("feed_forward.down", "mlp.c_proj"),
    )
    return table(*block)


def gptj_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of GPT-J."""
    return table(*nested("attention", "attn", *PROJECTIONS), *SIDE_BY_SIDE)


def codegen_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of CodeGen: one tensor has the queries, values and keys of each group of heads."""
    fused = Row(("attention.query", "attention.value", "attention.key"), "attn.qkv_proj", f"({GROUPS}N + N H) D")
    return table(fused, Row("attention.output", "attn.out_proj"), *SIDE_BY_SIDE)


SIDE_BY_SIDE = (
    Row("attention_norm", "ln_1"),
    Row("feed_forward.up", "mlp.fc_in"),
    Row("feed_forward.down", "mlp.fc_out"),
)


def table(*block: Row) -> WeightTable:
    """Describe checkpoints with GPT-2's names outside of blocks, by the rows of a block."""
    return WeightTable(
        (*STACK, *nested("decoder.blocks.#", "transformer.h.#", *block)), UNUSED, TIES, prefix="transformer."
    )
