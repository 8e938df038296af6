"""The kinds of attention, and of their caches, that a block may have."""

from flax import nnx

from jaxformer.backends import KVCache, PackedKVCache
from jaxformer.config import AnyAttentionConfig, AttentionConfig
from jaxformer.layers.attention import Attention
from jaxformer.layers.latent_attention import LatentAttention, MLACache

AnyAttention = Attention | LatentAttention
LayerCache = KVCache | PackedKVCache | MLACache


def make_attention(config: AnyAttentionConfig, dim: int, *, rngs: nnx.Rngs) -> AnyAttention:
    """Return the attention that `config` describes, over states of width `dim`."""
    if isinstance(config, AttentionConfig):
        return Attention(config, dim, rngs=rngs)
    return LatentAttention(config, dim, rngs=rngs)
