"""Configurations that together use every class and every field of jaxformer.config."""

import dataclasses

from jaxformer import TransformerConfig
from jaxformer.config import (
    AlibiPositions,
    AttentionConfig,
    BlockConfig,
    ClassifierConfig,
    DiscriminatorConfig,
    DynamicScaling,
    EmbeddingConfig,
    EndOfText,
    FeedForwardConfig,
    HeadConfig,
    LastToken,
    LatentAttentionConfig,
    LayerNormConfig,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MoEConfig,
    NonPadPositions,
    RelativePositions,
    RMSNormConfig,
    Rope,
    ShiftedInputs,
    SigmoidRouter,
    SinusoidalPositions,
    SoftmaxRouter,
    SpanConfig,
    StackConfig,
    TokenClassifierConfig,
    TransformConfig,
    YarnScaling,
)

CROSS = AttentionConfig(4, kv_heads=2, head_dim=6, scale=0.3, window=3, softcap=0.5, bias=True, dropout=0.1)
ATTENTION = dataclasses.replace(
    CROSS, output_bias=True, query_key_norm=RMSNormConfig(1e-2), rope=Rope(1000.0, width=4, layout="halves")
)


def stack(cross: AttentionConfig | None, positions: LearnedPositions | SinusoidalPositions) -> StackConfig:
    block = BlockConfig(
        ATTENTION,
        FeedForwardConfig(13, "gelu", gated=True, dropout=0.1),
        cross,
        LayerNormConfig(1e-3),
        "pre",
        dropout=0.2,
    )
    embedding = EmbeddingConfig(29, dim=10, scale=True)
    return StackConfig(embedding, (block,), positions, LayerNormConfig(1e-2), RMSNormConfig(1e-2), dropout=0.1)


BOTH = TransformerConfig(
    20,
    encoder=stack(None, SinusoidalPositions("interleaved", 1000.0)),
    decoder=stack(CROSS, LearnedPositions(19, offset=2)),
    head=HeadConfig(
        tied=True,
        bias=True,
        scale=0.5,
        transform=TransformConfig("silu", LayerNormConfig(1e-2), bias=False),
        softcap=5.0,
    ),
    share_embeddings=True,
)
SHORT, LONG = (1.1, 1.2, 1.3, 1.4, 1.5), (2.0, 2.1, 2.2, 2.3, 2.4)
# Rotary scalings, side by side with what only one stack can have.
SCALED = tuple(
    BlockConfig(
        AttentionConfig(
            2,
            head_dim=10,
            query_key_norm=RMSNormConfig(1e-2),
            normed="all heads",
            rope=Rope(100.0, 10, scaling=scaling),
        ),
        FeedForwardConfig(13, bias=False),
        norm=RMSNormConfig(1e-2, offset=True),
        norm_order=norm_order,
        parallel=parallel,
    )
    for scaling, norm_order, parallel in (
        (LinearScaling(2.0), "pre_and_post", True),
        (DynamicScaling(2.0, 3), "post_sublayer", False),
        (Llama3Scaling(2.0, 0.5, 1.5, 8), "pre", True),
        (YarnScaling(3.0, 60, 2.0, 0.1, truncate=False, attention_factor=1.1), "pre_and_post", False),
        (LongRopeScaling(SHORT, LONG, 9, attention_factor=1.2), "post_sublayer", False),
        (LongRopeScaling(SHORT, LONG, 3), "pre", False),
    )
)
DECODER = TransformerConfig(
    20, decoder=StackConfig(EmbeddingConfig(29), SCALED, None, final_norm=RMSNormConfig()), head=HeadConfig(tied=False)
)
ENCODER = TransformerConfig(
    20,
    encoder=StackConfig(
        EmbeddingConfig(29, scale=False, types=2),
        (BlockConfig(AttentionConfig(2, head_dim=10)),),
        RelativePositions(8, 5),
        position_ids_from="slot",
    ),
    head=ClassifierConfig(3, "relu", dropout=0.2),
)
# An encoder of one block that is applied twice, with two kinds of positions and a narrow embedding.
COUNTED = TransformerConfig(
    20,
    encoder=StackConfig(
        EmbeddingConfig(29, dim=10, project="sum"),
        (BlockConfig(AttentionConfig(2, head_dim=10), norm_order="pre", attention_norm=False),),
        LearnedPositions(19, offset=1),
        embedding_norm=LayerNormConfig(),
        position_ids_from=NonPadPositions(3),
        score_positions=RelativePositions(8, 5),
        order=(0, 0),
    ),
    head=DiscriminatorConfig("relu"),
)
MIXTURE = TransformerConfig(
    20,
    decoder=StackConfig(
        EmbeddingConfig(29),
        (
            BlockConfig(
                AttentionConfig(2, head_dim=10, sinks=True),
                MoEConfig(
                    12,
                    2,
                    FeedForwardConfig(13, "silu", gated=True, limit=0.5),
                    SoftmaxRouter(renormalize=False, bias=True, groups=2, top_k_groups=1, scale=1.5),
                    shared=FeedForwardConfig(7, dropout=0.3),
                ),
                norm_order="pre",
            ),
            BlockConfig(
                AttentionConfig(2, head_dim=10),
                MoEConfig(12, 2, FeedForwardConfig(13), SigmoidRouter(False, groups=2, top_k_groups=1, scale=1.5)),
                norm_order="pre",
            ),
        ),
        None,
    ),
)
LATENT = TransformerConfig(
    20,
    decoder=StackConfig(
        EmbeddingConfig(29),
        (
            BlockConfig(
                LatentAttentionConfig(
                    3, 9, 7, 5, 6, 4, scale=0.7, norm=RMSNormConfig(1e-2), bias=True, rope=Rope(9.0, 4), dropout=0.1
                ),
                norm_order="pre",
            ),
        ),
        AlibiPositions(),
    ),
)
# Small numbers of GPT-J, OLMo, Cohere, HunYuan and Granite.
NUMBERS = TransformerConfig(
    20,
    decoder=StackConfig(
        EmbeddingConfig(29, multiplier=0.7),
        (
            BlockConfig(
                AttentionConfig(
                    2,
                    head_dim=10,
                    query_key_norm=LayerNormConfig(1e-2, scale=True, bias=False),
                    normed="separate heads",
                    clip_qkv=3.0,
                    rope=Rope(9.0, 4),
                ),
                FeedForwardConfig(13, "relu2"),
                norm=LayerNormConfig(1e-2, scale=True, bias=False),
                norm_order="pre",
                parallel=True,
                shared_norm=True,
                residual_multiplier=0.6,
            ),
            BlockConfig(
                AttentionConfig(2, head_dim=10, query_key_norm=RMSNormConfig(), rotate_first=True, rope=Rope(9.0, 4)),
                FeedForwardConfig(13),
                norm_order="pre",
            ),
        ),
        None,
    ),
    head=ClassifierConfig(3, None, dropout=0.2, pooled=LastToken(5)),
)
# Heads of classes of tokens, and of an encoder-decoder that reads a text twice.
TAGGER = dataclasses.replace(ENCODER, head=TokenClassifierConfig(3, "relu", 0.2, False, LayerNormConfig(1e-2), True))
ANSWERER = dataclasses.replace(ENCODER, head=SpanConfig("relu", 0.2, LayerNormConfig(1e-2), False))
MEANS = dataclasses.replace(ENCODER, head=ClassifierConfig(3, "relu", 0.2, "mean", False, LayerNormConfig(1e-2), True))
HEADS_OF = AttentionConfig(2, head_dim=10)
SMALL = TransformerConfig(
    20,
    encoder=StackConfig(EmbeddingConfig(29), (BlockConfig(HEADS_OF),), None),
    decoder=StackConfig(EmbeddingConfig(29), (BlockConfig(HEADS_OF, cross=HEADS_OF),), None),
)
TWICE = dataclasses.replace(SMALL, head=ClassifierConfig(3, pooled=EndOfText(3)), targets_from=ShiftedInputs(7, 2))
WRAPPED = dataclasses.replace(SMALL, head=SpanConfig(), targets_from=ShiftedInputs(None, 20))
# Of which the heads alone are not in other configurations.
HEADS = {"tagger": TAGGER, "answerer": ANSWERER, "means": MEANS, "twice": TWICE, "wrapped": WRAPPED}
BASES = {
    **HEADS,
    "mixture": MIXTURE,
    "latent": LATENT,
    "both": BOTH,
    "decoder": DECODER,
    "encoder": ENCODER,
    "counted": COUNTED,
    "numbers": NUMBERS,
}
