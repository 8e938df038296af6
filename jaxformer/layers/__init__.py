"""Flax modules: they own parameters, make projections and call one operation each; no caches, keys or modes inside."""

from jaxformer.layers.any_attention import Memory
from jaxformer.layers.attention import Attention, KeyValue, Visibility
from jaxformer.layers.block import Block, Source, split_key
from jaxformer.layers.embedding import Embedding, LearnedPositionEmbedding, Sinusoids
from jaxformer.layers.feed_forward import FeedForward
from jaxformer.layers.head import Classifier, Head
from jaxformer.layers.latent_attention import Latent, LatentAttention
from jaxformer.layers.linear import Linear, LinearMap, QuantizedLinear, TransposedLinear, replace_linear
from jaxformer.layers.norm import LayerNorm, RMSNorm, make_norm
from jaxformer.layers.stack import Stack, Trace, count_positions

__all__ = [
    "Attention",
    "Block",
    "Classifier",
    "Embedding",
    "FeedForward",
    "Head",
    "KeyValue",
    "Latent",
    "LatentAttention",
    "LayerNorm",
    "LearnedPositionEmbedding",
    "Linear",
    "LinearMap",
    "Memory",
    "QuantizedLinear",
    "RMSNorm",
    "Sinusoids",
    "Source",
    "Stack",
    "Trace",
    "TransposedLinear",
    "Visibility",
    "count_positions",
    "make_norm",
    "replace_linear",
    "split_key",
]
