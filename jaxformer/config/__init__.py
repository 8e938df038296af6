"""What a model is made of: one small frozen dataclass per choice, composed.

The Python type selects the code and a parameter that makes sense for one choice only lives inside that choice. All are
hashable (static under `jax.jit`) and round-trip through JSON with `to_dict` and `from_dict`.
"""

from jaxformer.config.attention import (
    AnyAttentionConfig,
    AttentionConfig,
    LatentAttentionConfig,
    LayerNormConfig,
    NormConfig,
    RMSNormConfig,
    head_width,
)
from jaxformer.config.json import CONFIGS, from_dict, to_dict
from jaxformer.config.layers import (
    BlockConfig,
    FeedForwardConfig,
    MoEConfig,
    NormOrder,
    Router,
    SigmoidRouter,
    SoftmaxRouter,
    TransformConfig,
)
from jaxformer.config.model import (
    ClassifierConfig,
    DiscriminatorConfig,
    EmbeddingConfig,
    HeadConfig,
    LastToken,
    StackConfig,
    TransformerConfig,
)
from jaxformer.config.positions import (
    AlibiPositions,
    DynamicScaling,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NonPadPositions,
    PositionIdsFrom,
    Positions,
    RelativePositions,
    Rope,
    RopeScaling,
    SinusoidalPositions,
    YarnScaling,
)

__all__ = [
    "CONFIGS",
    "AlibiPositions",
    "AnyAttentionConfig",
    "AttentionConfig",
    "BlockConfig",
    "ClassifierConfig",
    "DiscriminatorConfig",
    "DynamicScaling",
    "EmbeddingConfig",
    "FeedForwardConfig",
    "HeadConfig",
    "LastToken",
    "LatentAttentionConfig",
    "LayerNormConfig",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "MoEConfig",
    "NonPadPositions",
    "NormConfig",
    "NormOrder",
    "PositionIdsFrom",
    "Positions",
    "RMSNormConfig",
    "RelativePositions",
    "Rope",
    "RopeScaling",
    "Router",
    "SigmoidRouter",
    "SinusoidalPositions",
    "SoftmaxRouter",
    "StackConfig",
    "TransformConfig",
    "TransformerConfig",
    "YarnScaling",
    "from_dict",
    "head_width",
    "to_dict",
]
