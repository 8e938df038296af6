"""Pure functions on arrays: attention, masks, positions, normalisation, experts, losses, dropout and activations."""

from jaxformer.ops.activations import ACTIVATIONS, Activation
from jaxformer.ops.attention import attention_scores, attention_weights, dot_product_attention, weighted_values
from jaxformer.ops.balance import (
    balance_loss,
    communication_loss,
    device_balance_loss,
    expert_load,
    router_z_loss,
    update_router_bias,
)
from jaxformer.ops.dropout import dropout
from jaxformer.ops.experts import mix_experts, mix_grouped, mix_over_devices
from jaxformer.ops.int8 import Quantized, int8_matmul, quantize
from jaxformer.ops.losses import chunked_cross_entropy, cross_entropy, token_cross_entropy
from jaxformer.ops.masks import (
    AttentionMask,
    as_mask,
    causal_mask,
    count_positions,
    padding_mask,
    segment_positions,
    token_mask,
)
from jaxformer.ops.matmul import matmul
from jaxformer.ops.norms import layer_norm, rms_norm
from jaxformer.ops.positions import alibi_slopes, distance_buckets, sinusoidal_positions
from jaxformer.ops.rotary import CosSin, apply_rope, rope_cos_sin, rotary_frequencies
from jaxformer.ops.rotary_scaling import (
    dynamic_ntk_frequencies,
    linear_frequencies,
    llama3_frequencies,
    longrope_frequencies,
    yarn_frequencies,
)
from jaxformer.ops.routing import Routing, TopK, sigmoid_router, softmax_router

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "AttentionMask",
    "CosSin",
    "Quantized",
    "Routing",
    "TopK",
    "alibi_slopes",
    "apply_rope",
    "as_mask",
    "attention_scores",
    "attention_weights",
    "balance_loss",
    "causal_mask",
    "chunked_cross_entropy",
    "communication_loss",
    "count_positions",
    "cross_entropy",
    "device_balance_loss",
    "distance_buckets",
    "dot_product_attention",
    "dropout",
    "dynamic_ntk_frequencies",
    "expert_load",
    "int8_matmul",
    "layer_norm",
    "linear_frequencies",
    "llama3_frequencies",
    "longrope_frequencies",
    "matmul",
    "mix_experts",
    "mix_grouped",
    "mix_over_devices",
    "padding_mask",
    "quantize",
    "rms_norm",
    "rope_cos_sin",
    "rotary_frequencies",
    "router_z_loss",
    "segment_positions",
    "sigmoid_router",
    "sinusoidal_positions",
    "softmax_router",
    "token_cross_entropy",
    "token_mask",
    "update_router_bias",
    "weighted_values",
    "yarn_frequencies",
]
