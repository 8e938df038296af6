"""OLMo 1 and 3: norms without a scale and bounded heads; windows in three of four layers. OLMo 2 is in `llama`."""

from dataclasses import replace
from typing import Any

from jaxformer.config import AttentionConfig, LayerNormConfig, RMSNormConfig, TransformerConfig
from jaxformer.pretrained.llama import DECODER, OLMO2, attention_config, decoder_config
from jaxformer.pretrained.rope import ropes_by_layer_type
from jaxformer.pretrained.settings import LAYER_TYPES, check_layer_types, head_width, read_settings
from jaxformer.schema import Schema, count, flag, nullable, number

OLMO: Schema = {
    **{key: field for key, field in DECODER.items() if key != "rms_norm_eps"},
    "vocab_size": count(50304),
    "attention_bias": flag(False),
    "clip_qkv": number(None, 0.0, above=True),
}
OLMO3: Schema = {**OLMO2, "sliding_window": nullable(count(4096)), "layer_types": LAYER_TYPES}
BASE = 500000.0  # of OLMo 3's rotary positions


def olmo_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an OLMo `config.json`: LayerNorm that learns nothing."""
    hf = read_settings(hf, OLMO)
    bias, norm = hf["attention_bias"], LayerNormConfig(1e-5, scale=False, bias=False)
    attention = replace(attention_config(hf, bias=bias, output_bias=bias), clip_qkv=hf["clip_qkv"])
    return decoder_config(hf, lambda _: attention, norm=norm)


def olmo3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of an OLMo 3 `config.json`.

    OLMo 2 with windows, and with scaled positions in the layers that see everything.
    """
    hf = read_settings(hf, OLMO3)
    check_layer_types(hf)
    types, bias, norm = hf["layer_types"], hf["attention_bias"], RMSNormConfig(hf["rms_norm_eps"])
    width = hf["head_dim"] or head_width(hf, "hidden_size", "num_attention_heads")
    rope_of = ropes_by_layer_type(hf, width, theta=BASE, near=BASE)
    plain = attention_config(
        hf | {"rope_parameters": None, "rope_scaling": None}, bias=bias, output_bias=bias, query_key_norm=norm
    )

    def attention(layer: int) -> AttentionConfig:
        slides = (layer + 1) % 4 != 0 if types is None else types[layer] == "sliding_attention"
        window = hf["sliding_window"] if slides else None
        return replace(plain, normed="all heads", window=window, rope=rope_of(slides))

    return decoder_config(hf, attention, norm_order="post_sublayer")
