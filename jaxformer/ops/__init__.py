"""Pure functions on arrays: attention, masks, positions, normalisation, losses, dropout and activations."""

from jaxformer.ops.activations import ACTIVATIONS, Activation
from jaxformer.ops.attention import attention_scores, attention_weights, dot_product_attention, weighted_values
from jaxformer.ops.dropout import dropout
from jaxformer.ops.losses import cross_entropy, token_cross_entropy
from jaxformer.ops.masks import causal_mask, padding_mask
from jaxformer.ops.matmul import matmul
from jaxformer.ops.norms import layer_norm, rms_norm
from jaxformer.ops.positions import sinusoidal_positions
from jaxformer.ops.rotary import Rotation, rotary_frequencies, rotate, rotation

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Rotation",
    "attention_scores",
    "attention_weights",
    "causal_mask",
    "cross_entropy",
    "dot_product_attention",
    "dropout",
    "layer_norm",
    "matmul",
    "padding_mask",
    "rms_norm",
    "rotary_frequencies",
    "rotate",
    "rotation",
    "sinusoidal_positions",
    "token_cross_entropy",
    "weighted_values",
]
