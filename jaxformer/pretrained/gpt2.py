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
from jaxformer.pretrained.settings import activation, require
from jaxformer.pretrained.weights import WeightTable

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
RENAMES = (
    (r"^embedding\.table$", "transformer.wte.weight"),
    (r"^decoder\.positions\.table$", "transformer.wpe.weight"),
    (r"^decoder\.final_norm\.", "transformer.ln_f."),
    (r"^decoder\.blocks\.", "transformer.h."),
    (r"^head\.output\.", "lm_head."),
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.feed_forward_norm\.", ".ln_2."),
    (r"\.attention\.(query|key|value)\.", ".attn.c_attn."),
    (r"\.attention\.output\.", ".attn.c_proj."),
    (r"\.feed_forward\.up\.", ".mlp.c_fc."),
    (r"\.feed_forward\.down\.", ".mlp.c_proj."),
    (r"\.scale$", ".weight"),
    (r"\.shift$", ".bias"),
)
# Old files hold the causal mask too.
IGNORABLE = r"lm_head\.weight|transformer\.h\.\d+\.attn\.(masked_)?bias"


def gpt2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a GPT-2 `config.json`."""
    hf = DEFAULTS | hf
    require(hf, add_cross_attention=False, reorder_and_upcast_attn=False)
    norm = LayerNormConfig(hf["layer_norm_epsilon"])
    width = hf["n_embd"] // hf["n_head"]

    def block(index: int) -> BlockConfig:
        scale = width**-0.5 if hf["scale_attn_weights"] else 1.0
        scale /= index + 1 if hf["scale_attn_by_inverse_layer_idx"] else 1
        return BlockConfig(
            AttentionConfig(hf["n_head"], scale=scale, dropout=hf["attn_pdrop"]),
            FeedForwardConfig(hf["n_inner"], activation(hf, "activation_function")),
            norm=norm,
            placement="pre",
            dropout=hf["resid_pdrop"],
        )

    stack = StackConfig(
        EmbeddingConfig(hf["vocab_size"], scale=False),
        tuple(block(index) for index in range(hf["n_layer"])),
        LearnedPositions(hf["n_positions"]),
        final_norm=norm,
        position_index="slot",
        dropout=hf["embd_pdrop"],
    )
    return TransformerConfig(hf["n_embd"], decoder=stack, head=HeadConfig(tied=hf["tie_word_embeddings"]))


def gpt2_table(config: TransformerConfig) -> WeightTable:
    """Where GPT-2 keeps its weights: its blocks' linear maps as [inputs, outputs], queries, keys and values in one."""
    return WeightTable(RENAMES, IGNORABLE, prefix="transformer.", as_is=r"transformer\.h\..*")
