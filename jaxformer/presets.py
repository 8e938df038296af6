"""Ready-made configurations: the paper's models, and one function for each shape of Transformer."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from jaxformer.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LatentAttentionConfig,
    LayerNormConfig,
    LearnedPositions,
    MoEConfig,
    NormOrder,
    RelativePositions,
    RMSNormConfig,
    Rope,
    SigmoidRouter,
    SinusoidalPositions,
    StackConfig,
    TransformerConfig,
)


def encoder_decoder(
    vocab_size: int,
    *,
    source_vocab_size: int | None = None,
    dim: int = 512,
    layers: int = 6,
    heads: int = 8,
    d_ff: int | None = None,
    norm_order: NormOrder = "post",
    positions: Literal["sinusoidal", "relative", "rotary"] = "sinusoidal",
    dropout: float = 0.1,
) -> TransformerConfig:
    """Return the encoder-decoder of the paper, with its figure-1 blocks and sinusoidal positions.

    Pre-LN stacks end in a norm, because nothing else would bound the sum that leaves them.

    Args:
        vocab_size: Tokens of the decoder's vocabulary.
        source_vocab_size: Tokens of the encoder's. None: one vocabulary, whose table encoder, decoder and output share
            (section 3.4).
        dim: Width of the model D.
        layers: Blocks of each stack.
        heads: Attention heads N.
        d_ff: Inner width of the feed-forward networks. None: 4 D.
        norm_order: "post" as in the paper, or "pre".
        positions: "sinusoidal" as in the paper; "relative", T5's bias on distances; or "rotary".
        dropout: Rate of dropout, on attention weights too.
    """
    attention = AttentionConfig(heads, dropout=dropout)
    self_attention = replace(attention, rope=Rope()) if positions == "rotary" else attention
    order = {"sinusoidal": SinusoidalPositions(), "relative": RelativePositions(), "rotary": None}[positions]
    final_norm = LayerNormConfig() if norm_order == "pre" else None

    def stack(vocab: int, cross: AttentionConfig | None) -> StackConfig:
        block = BlockConfig(self_attention, FeedForwardConfig(d_ff), cross, norm_order=norm_order, dropout=dropout)
        embedding = EmbeddingConfig(vocab)
        return StackConfig(embedding, (block,) * layers, order, final_norm=final_norm, dropout=dropout)

    return TransformerConfig(
        dim,
        encoder=stack(source_vocab_size or vocab_size, None),
        decoder=stack(vocab_size, attention),
        share_embeddings=source_vocab_size is None,
    )


def paper_base(vocab_size: int = 37000) -> TransformerConfig:
    """Return the base model of table 3: 6 + 6 layers of width 512, 8 heads, inner width 2048; 63 million parameters.

    Args:
        vocab_size: Tokens of the shared vocabulary; the paper has about 37,000.
    """
    return encoder_decoder(vocab_size)


def paper_big(vocab_size: int = 37000) -> TransformerConfig:
    """Return the big model of table 3.

    It has 6 + 6 layers of width 1024, 16 heads, inner width 4096; 214 million parameters.

    Args:
        vocab_size: Tokens of the shared vocabulary; the paper has about 37,000.
    """
    return encoder_decoder(vocab_size, dim=1024, heads=16, dropout=0.3)


def decoder_only(
    vocab_size: int, *, length: int, dim: int, layers: int, heads: int, dropout: float = 0.0
) -> TransformerConfig:
    """Return a language model shaped as GPT-2: pre-LN, GELU, learned positions, tied output.

    Args:
        vocab_size: Tokens of the vocabulary.
        length: Positions that are learned: the longest sequence.
        dim: Width of the model D.
        layers: Number of blocks.
        heads: Attention heads N.
        dropout: Rate of dropout, on attention weights too.
    """
    block = _gelu_block(heads, "pre", dropout)
    return TransformerConfig(dim, decoder=_learned_positions(vocab_size, length, block, layers))


def modern_decoder_only(
    vocab_size: int, *, dim: int, layers: int, heads: int, kv_heads: int, dropout: float = 0.0
) -> TransformerConfig:
    """Return a language model shaped as Llama.

    Rotary positions, RMSNorm, SwiGLU, grouped-query heads, no biases, tied output.

    The gated feed-forward network has three matrices where the plain one has two: an inner width of 8/3 x the model's,
    rounded up to a multiple of 32, makes them as large. Rotary positions have no table, so any length can be read.

    Args:
        vocab_size: Tokens of the vocabulary.
        dim: Width of the model D.
        layers: Number of blocks.
        heads: Attention heads N.
        kv_heads: Heads of keys and values K, a divisor of N.
        dropout: Rate of dropout, on attention weights too.
    """
    attention = AttentionConfig(heads, kv_heads, bias=False, rope=Rope(), dropout=dropout)
    d_ff = -(-8 * dim // (3 * 32)) * 32
    feed_forward = FeedForwardConfig(d_ff, "silu", gated=True, bias=False)
    block = BlockConfig(attention, feed_forward, norm=RMSNormConfig(), norm_order="pre", dropout=dropout)
    embedding = EmbeddingConfig(vocab_size, scale=False)
    stack = StackConfig(embedding, (block,) * layers, None, final_norm=RMSNormConfig(), dropout=dropout)
    return TransformerConfig(dim, decoder=stack)


def encoder_only(
    vocab_size: int,
    *,
    length: int,
    dim: int,
    layers: int,
    heads: int,
    norm_order: NormOrder = "pre",
    dropout: float = 0.0,
) -> TransformerConfig:
    """Return a bidirectional encoder with GELU, learned positions and logits for every token.

    Masked-language models are trained like this.

    Args:
        vocab_size: Tokens of the vocabulary.
        length: Positions that are learned: the longest sequence.
        dim: Width of the model D.
        layers: Number of blocks.
        heads: Attention heads N.
        norm_order: "pre", with a norm at the end of the stack; or "post", as in BERT.
        dropout: Rate of dropout, on attention weights too.
    """
    block = _gelu_block(heads, norm_order, dropout)
    return TransformerConfig(dim, encoder=_learned_positions(vocab_size, length, block, layers))


def _gelu_block(heads: int, norm_order: NormOrder, dropout: float) -> BlockConfig:
    feed_forward = FeedForwardConfig(activation="gelu")
    return BlockConfig(AttentionConfig(heads, dropout=dropout), feed_forward, norm_order=norm_order, dropout=dropout)


def _learned_positions(vocab_size: int, length: int, block: BlockConfig, layers: int) -> StackConfig:
    """Return a stack with learned positions; one of pre-LN blocks ends in a norm, which bounds the sum."""
    return StackConfig(
        EmbeddingConfig(vocab_size, scale=False),
        (block,) * layers,
        LearnedPositions(length),
        final_norm=LayerNormConfig() if block.norm_order == "pre" else None,
        dropout=block.dropout,
    )


def gpt2(vocab_size: int = 50257, length: int = 1024, dropout: float = 0.1) -> TransformerConfig:
    """Return the shape of GPT-2 small: 12 layers of width 768, 12 heads, 1024 positions, 124 million parameters.

    Args:
        vocab_size: Tokens of the vocabulary.
        length: Positions that are learned: the longest sequence.
        dropout: Rate of dropout, on attention weights too.
    """
    return decoder_only(vocab_size, length=length, dim=768, layers=12, heads=12, dropout=dropout)


def tiny(vocab_size: int = 256, length: int = 64, dropout: float = 0.0) -> TransformerConfig:
    """Return a language model that trains in a minute: 2 layers of width 128, 2 heads, 64 positions."""
    return decoder_only(vocab_size, length=length, dim=128, layers=2, heads=2, dropout=dropout)


def small(vocab_size: int = 256, length: int = 256, dropout: float = 0.0) -> TransformerConfig:
    """Return a language model for one CPU: 6 layers of width 384, 6 heads, 256 positions; 10.8 million parameters."""
    return decoder_only(vocab_size, length=length, dim=384, layers=6, heads=6, dropout=dropout)


def small_modern(vocab_size: int = 256, dropout: float = 0.0) -> TransformerConfig:
    """Return `small` with the blocks of Llama: rotary positions, RMSNorm, SwiGLU, 2 key-value heads for its 6 heads."""
    return modern_decoder_only(vocab_size, dim=384, layers=6, heads=6, kv_heads=2, dropout=dropout)


def deepseek_tiny(vocab_size: int = 256, dropout: float = 0.0) -> TransformerConfig:
    """Return a small DeepSeek-V3: 4 layers of width 160, latent attention, 2 of 16 experts and a shared one.

    5.4 million parameters, of which a token goes through 1.6 million. The first layer has no experts, as in V3: what
    tokens have in common is learned there.
    """
    widths = {"kv_lora_rank": 48, "q_lora_rank": 80, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16}
    attention = LatentAttentionConfig(5, **widths, rope=Rope(layout="interleaved"), dropout=dropout)
    expert = FeedForwardConfig(192, "silu", gated=True, bias=False)
    mixture = MoEConfig(16, 2, expert, SigmoidRouter(), shared=expert)
    dense = replace(expert, d_ff=640)
    blocks = tuple(
        BlockConfig(attention, network, norm=RMSNormConfig(), norm_order="pre", dropout=dropout)
        for network in (dense, mixture, mixture, mixture)
    )
    embedding = EmbeddingConfig(vocab_size, scale=False)
    stack = StackConfig(embedding, blocks, None, final_norm=RMSNormConfig(), position_ids_from="slot", dropout=dropout)
    return TransformerConfig(160, decoder=stack, head=HeadConfig(tied=False))


def symbols(vocab_size: int = 35) -> TransformerConfig:
    """Return two and two layers of width 128: for the copy, reverse and sort tasks."""
    return encoder_decoder(vocab_size, dim=128, layers=2, heads=4, norm_order="pre", dropout=0.0)


def rematerialised(config: TransformerConfig) -> TransformerConfig:
    """Return the same model, whose blocks are computed a second time in the backward pass to save memory."""
    encoder, decoder = (stack and replace(stack, rematerialize=True) for stack in (config.encoder, config.decoder))
    return replace(config, encoder=encoder, decoder=decoder)


def with_dropout(config: TransformerConfig, rate: float) -> TransformerConfig:
    """Return the same model with another rate of dropout.

    Args:
        config: The model.
        rate: The rate on embeddings, sub-layers, attention weights and the states of a classifier; on inner units of
            feed-forward networks and on the output of a stack where the model has dropout there.
    """
    return _with_rate(config, rate)


def _with_rate(config: Any, rate: float) -> Any:
    """Return a configuration with the rate in every field of dropout."""
    if isinstance(config, tuple):
        return tuple(_with_rate(each, rate) for each in config)
    if not dataclasses.is_dataclass(config):
        return config
    changes = {field.name: _with_rate(getattr(config, field.name), rate) for field in dataclasses.fields(config)}
    for name in changes.keys() & {"dropout", "final_dropout"}:
        always = name == "dropout" and not isinstance(config, FeedForwardConfig)
        changes[name] = rate if always or getattr(config, name) else 0.0
    return replace(config, **changes)  # pyrefly: ignore


PRESETS: dict[str, Callable[..., TransformerConfig]] = {
    "paper-base": paper_base,
    "paper-big": paper_big,
    "symbols": symbols,
    "tiny": tiny,
    "small": small,
    "small-modern": small_modern,
    "gpt2": gpt2,
    "deepseek-tiny": deepseek_tiny,
}
