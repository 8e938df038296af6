"""GPT-NeoX and Pythia: attention and feed-forward network side by side, a part of each head turned."""

from typing import Any

from jaxformer.config import (
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
from jaxformer.schema import Schema, count, flag, layers, number, probability

NEOX: Schema = {
    **ROPE,
    "vocab_size": count(50432),
    "hidden_size": count(6144),
    "intermediate_size": count(24576),
    "num_hidden_layers": layers(44),
    "num_attention_heads": count(64),
    "hidden_act": activation_name("gelu"),
    "layer_norm_eps": number(1e-5, 0.0, 1.0),
    "attention_bias": flag(True),
    "attention_dropout": probability(0.0),
    "hidden_dropout": probability(0.0),
    "classifier_dropout": probability(0.1),
    "use_parallel_residual": flag(True),
    "tie_word_embeddings": flag(False),
    "head_dim": count(None),  # which transformers heeds in the rotary positions alone
    "rotary_pct": number(0.25, 0.0, 1.0, above=True),
    "rotary_emb_base": number(10000.0, 1.0, above=True),
}
ROWS = (
    Row("embedding.embedding", "gpt_neox.embed_in.weight"),
    Row("decoder.final_norm", "gpt_neox.final_layer_norm"),
    Row("head.output", "embed_out"),
    *nested(
        "decoder.blocks.#",
        "gpt_neox.layers.#",
        Row("attention_norm", "input_layernorm"),
        Row("feed_forward_norm", "post_attention_layernorm"),
        Row(("attention.query", "attention.key", "attention.value"), "attention.query_key_value", "(N + H) D"),
        Row("attention.output", "attention.dense"),
        Row("feed_forward.up", "mlp.dense_h_to_4h"),
        Row("feed_forward.down", "mlp.dense_4h_to_h"),
    ),
)
# In memory, and so in what transformers says of gradients, the head has its usual name.
ALIASES = ((r"^lm_head\.", "embed_out."),)
# Old files hold the causal mask and the rotary frequencies too.
UNUSED = r"gpt_neox\.layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)"
TIES = ((r"embed_out\.weight", "gpt_neox.embed_in.weight"),)


def neox_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a GPT-NeoX `config.json`."""
    hf = read_settings(hf, NEOX)
    # The keys of other families do not count here, as in transformers.
    hf |= {"rope_theta": hf["rotary_emb_base"], "partial_rotary_factor": hf["rotary_pct"]}
    norm, heads = LayerNormConfig(hf["layer_norm_eps"]), hf["num_attention_heads"]
    width = head_width(hf, "hidden_size", "num_attention_heads")
    if hf["head_dim"] not in (None, width):
        raise InputError(f"head_dim={hf['head_dim']} must be hidden_size / num_attention_heads = {width}")
    positions = rope(hf, width, partial=True)
    block = BlockConfig(
        AttentionConfig(heads, bias=hf["attention_bias"], rope=positions, dropout=hf["attention_dropout"]),
        FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act")),
        norm=norm,
        norm_order="pre",
        parallel=hf["use_parallel_residual"],
        dropout=hf["hidden_dropout"],
    )
    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        (block,) * hf["num_hidden_layers"],
        None,
        final_norm=norm,
        position_ids_from="slot",
        dropout=hf["hidden_dropout"],
    )
    return TransformerConfig(hf["hidden_size"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))


def neox_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of GPT-NeoX: one tensor has the query, key and value of each head in turn."""
    return WeightTable(ROWS, UNUSED, TIES, prefix="gpt_neox.", aliases=ALIASES)
