"""GLM-4-MoE (GLM-4.5): the experts of DeepSeek-V3 behind attention whose heads are turned by half."""

from typing import Any

from jaxformer.config import (
    FeedForwardConfig,
    MoEConfig,
    RMSNormConfig,
    SigmoidRouter,
    TransformerConfig,
)
from jaxformer.pretrained.deepseek import ROUTER_BIAS, SHARED, check_groups
from jaxformer.pretrained.llama import (
    ATTENTION,
    DECODER,
    FEED_FORWARD,
    NORMS,
    attention_config,
    decoder_config,
    decoder_table,
)
from jaxformer.pretrained.mixture import EXPERTS, ROUTER
from jaxformer.pretrained.settings import activation, read_settings
from jaxformer.pretrained.weights import WeightTable
from jaxformer.schema import Schema, count, experts, flag, integer, layers, number

GLM4_MOE: Schema = {
    **DECODER,
    "vocab_size": count(151552),
    "intermediate_size": count(10944),
    "num_hidden_layers": layers(46),
    "num_attention_heads": count(96),
    "num_key_value_heads": count(8),
    "max_position_embeddings": count(131072),
    "rms_norm_eps": number(1e-5, 0.0, 1.0),
    "attention_bias": flag(False),
    "moe_intermediate_size": count(1408),
    "num_experts_per_tok": count(8),
    "n_shared_experts": count(1),
    "n_routed_experts": experts(128),
    "routed_scaling_factor": number(1.0),
    "n_group": count(1),
    "topk_group": count(1),
    "first_k_dense_replace": integer(1),
    "norm_topk_prob": flag(True),
    "use_qk_norm": flag(False),
    "partial_rotary_factor": number(0.5, 0.0, 1.0, above=True),
}


def glm4_moe_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a GLM-4-MoE `config.json`."""
    hf = read_settings(hf, GLM4_MOE, {"num_local_experts": "n_routed_experts"})
    check_groups(hf)
    norm = RMSNormConfig(hf["rms_norm_eps"]) if hf["use_qk_norm"] else None
    attention = attention_config(hf, bias=hf["attention_bias"], query_key_norm=norm, partial=True)
    width, name = hf["moe_intermediate_size"], activation(hf, "hidden_act")
    plain = FeedForwardConfig(hf["intermediate_size"], name, gated=True, bias=False)
    mixture = MoEConfig(
        hf["n_routed_experts"],
        hf["num_experts_per_tok"],
        FeedForwardConfig(width, name, gated=True, bias=False),
        SigmoidRouter(hf["norm_topk_prob"], hf["n_group"], hf["topk_group"], hf["routed_scaling_factor"]),
        shared=FeedForwardConfig(width * hf["n_shared_experts"], name, gated=True, bias=False),
    )
    first = hf["first_k_dense_replace"]
    return decoder_config(hf, lambda _: attention, feed_forward=lambda layer: plain if layer < first else mixture)


def glm4_moe_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of GLM-4-MoE. The layer that predicts a further token is kept and not used."""
    further = rf"model\.layers\.{len(config.main.blocks)}\..*"
    mixture = (*FEED_FORWARD, ROUTER, ROUTER_BIAS, *EXPERTS, *SHARED)
    return decoder_table(*NORMS, *ATTENTION, *mixture, kept=further)
