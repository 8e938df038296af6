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
from jaxformer.pretrained.rope import rope
from jaxformer.pretrained.settings import activation
from jaxformer.pretrained.weights import WeightTable

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "attention_bias": True,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
}
RENAMES = (
    (r"^embedding\.table$", "gpt_neox.embed_in.weight"),
    (r"^decoder\.final_norm\.", "gpt_neox.final_layer_norm."),
    (r"^decoder\.blocks\.", "gpt_neox.layers."),
    (r"^head\.output\.", "embed_out."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.feed_forward_norm\.", ".post_attention_layernorm."),
    (r"\.attention\.(query|key|value)\.", ".attention.query_key_value."),
    (r"\.attention\.output\.", ".attention.dense."),
    (r"\.feed_forward\.up\.", ".mlp.dense_h_to_4h."),
    (r"\.feed_forward\.down\.", ".mlp.dense_4h_to_h."),
    (r"\.scale$", ".weight"),
    (r"\.shift$", ".bias"),
)
# In memory, and so in what transformers says of gradients, the head has its usual name.
ALIASES = ((r"^lm_head\.", "embed_out."),)
# Old files hold the causal mask and the rotary frequencies too.
IGNORABLE = r"embed_out\.weight|gpt_neox\.layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)"


def neox_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a GPT-NeoX `config.json`."""
    hf = DEFAULTS | hf
    hf.setdefault("partial_rotary_factor", hf.get("rotary_pct", 0.25))
    norm, heads = LayerNormConfig(hf["layer_norm_eps"]), hf["num_attention_heads"]
    positions = rope(hf, hf["hidden_size"] // heads, theta=hf.get("rotary_emb_base", 10000.0))
    block = BlockConfig(
        AttentionConfig(heads, bias=hf["attention_bias"], rope=positions, dropout=hf["attention_dropout"]),
        FeedForwardConfig(hf["intermediate_size"], activation(hf, "hidden_act")),
        norm=norm,
        placement="pre",
        parallel=hf["use_parallel_residual"],
        dropout=hf["hidden_dropout"],
    )
    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        (block,) * hf["num_hidden_layers"],
        None,
        final_norm=norm,
        position_index="slot",
        dropout=hf["hidden_dropout"],
    )
    return TransformerConfig(hf["hidden_size"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))


def neox_table(config: TransformerConfig) -> WeightTable:
    """Where GPT-NeoX keeps its weights: head by head its query, key and value, in one tensor."""
    return WeightTable(RENAMES, IGNORABLE, prefix="gpt_neox.", by_head=r".*\.query_key_value\..*", aliases=ALIASES)
