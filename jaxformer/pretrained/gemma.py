"""Gemma 1, 2 and 3 (text): scaled embeddings, norms whose scale is stored as its distance from one, soft caps."""

from dataclasses import replace
from typing import Any

from jaxformer.config import AttentionConfig, RMSNormConfig, Rope, TransformerConfig
from jaxformer.pretrained.llama import IGNORABLE, RENAMES, attention_config, decoder_config
from jaxformer.pretrained.rope import rope
from jaxformer.pretrained.settings import require
from jaxformer.pretrained.weights import WeightTable

DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}
GEMMA2: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3: dict[str, Any] = {
    **GEMMA2,
    "vocab_size": 262208,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
}


def gemma_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Gemma `config.json`. Old files say "gelu" and mean its tanh form, as all of them do."""
    hf = DEFAULTS | hf
    require(hf, use_bidirectional_attention=False)
    if hf["hidden_act"] == "gelu":
        hf["hidden_act"] = "gelu_pytorch_tanh"
    norm = RMSNormConfig(hf["rms_norm_eps"], offset=True)
    attention = attention_config(hf, bias=hf["attention_bias"], output_bias=hf["attention_bias"])
    return decoder_config(hf, lambda _: attention, norm=norm, scale_embedding=True)


def gemma2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Gemma 2 `config.json`: every other layer sees a window; scores and logits are capped."""
    hf = DEFAULTS | GEMMA2 | hf
    return sandwich_config(hf, lambda layer: layer % 2 == 0, lambda _: rope(hf, hf["head_dim"]))


def gemma3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a Gemma 3 text `config.json`: most layers see a window and have faster rotary positions.

    Its soft cap of the scores is a setting that the model never applied.
    """
    hf = DEFAULTS | GEMMA3 | hf
    pattern, width = hf["sliding_window_pattern"], hf["head_dim"]
    said = hf.get("rope_parameters") or {}
    if "full_attention" not in said:  # as files said it once, of the full layers alone
        said = {"full_attention": said or hf.get("rope_scaling") or {}}
    near = (said.get("sliding_attention") or {}) | {}
    near.setdefault("rope_theta", hf.get("rope_local_base_freq", 10000.0))

    def turned(slides: bool) -> Rope:
        return rope(hf, width, said=near if slides else said["full_attention"], theta=1e6)

    norm = RMSNormConfig(hf["rms_norm_eps"], offset=True)
    hf = hf | {"attn_logit_softcapping": None}
    return sandwich_config(hf, lambda layer: (layer + 1) % pattern != 0, turned, query_key_norm=norm)


def gemma2_table(config: TransformerConfig) -> WeightTable:
    """Where Gemma 2 and 3 keep their weights: four norms in a block."""
    norms = (
        (r"\.attention_norm\.", ".input_layernorm."),
        (r"\.attention_output_norm\.", ".post_attention_layernorm."),
        (r"\.feed_forward_norm\.", ".pre_feedforward_layernorm."),
        (r"\.feed_forward_output_norm\.", ".post_feedforward_layernorm."),
    )
    return WeightTable((*norms, *RENAMES), IGNORABLE, prefix="model.")


def sandwich_config(
    hf: dict[str, Any], slides_by_default: Any, turned: Any, query_key_norm: RMSNormConfig | None = None
) -> TransformerConfig:
    """What Gemma 2 and 3 share: norms before and after each sub-layer, windows in some layers, a scale of their own.

    slides_by_default: whether a layer has a window where the file does not say. turned: the rotary positions of layers
    with and without one.
    """
    require(hf, use_bidirectional_attention=False)
    hf = hf | {"hidden_act": hf["hidden_activation"]}
    bias, types = hf["attention_bias"], hf.get("layer_types")

    def attention(layer: int) -> AttentionConfig:
        slides = slides_by_default(layer) if types is None else types[layer] == "sliding_attention"
        config = attention_config(
            hf | {"rope_parameters": None, "rope_scaling": None},
            bias=bias,
            output_bias=bias,
            window=hf["sliding_window"] if slides else None,
            query_key_norm=query_key_norm,
        )
        scale, softcap = hf["query_pre_attn_scalar"] ** -0.5, hf["attn_logit_softcapping"]
        return replace(config, scale=scale, softcap=softcap, rope=turned(slides))

    norm = RMSNormConfig(hf["rms_norm_eps"], offset=True)
    return decoder_config(hf, attention, placement="sandwich", norm=norm, scale_embedding=True)
