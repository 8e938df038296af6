"""Flax modules: they own parameters, make projections and call one operation each; no caches, keys or modes inside."""

from jaxformer.layers.any_attention import LayerCache
from jaxformer.layers.attention import Attention, AttentionOutput
from jaxformer.layers.block import Block, BlockOutput, EncoderKV, Wanted, split_key
from jaxformer.layers.embedding import Embedding, LearnedPositionEmbedding, Sinusoids
from jaxformer.layers.feed_forward import FeedForward
from jaxformer.layers.head import Classifier, Discriminator, Head, last_of, make_head, mean_of
from jaxformer.layers.latent_attention import LatentAttention, MLACache
from jaxformer.layers.linear import AdaptedLinear, Linear, LinearMap, QuantizedLinear, TransposedLinear, replace_linear
from jaxformer.layers.norm import LayerNorm, RMSNorm, make_norm
from jaxformer.layers.stack import Intermediates, ModelOutput, Stack, StackOutput, make_position_ids, shifted_inputs
from jaxformer.layers.variables import Frozen, freeze

__all__ = [
    "AdaptedLinear",
    "Attention",
    "AttentionOutput",
    "Block",
    "BlockOutput",
    "Classifier",
    "Discriminator",
    "Embedding",
    "EncoderKV",
    "FeedForward",
    "Frozen",
    "Head",
    "Intermediates",
    "LatentAttention",
    "LayerCache",
    "LayerNorm",
    "LearnedPositionEmbedding",
    "Linear",
    "LinearMap",
    "MLACache",
    "ModelOutput",
    "QuantizedLinear",
    "RMSNorm",
    "Sinusoids",
    "Stack",
    "StackOutput",
    "TransposedLinear",
    "Wanted",
    "freeze",
    "last_of",
    "make_head",
    "make_norm",
    "make_position_ids",
    "mean_of",
    "replace_linear",
    "shifted_inputs",
    "split_key",
]
