"""What a model is made of: one small frozen dataclass per choice, composed.

The Python type selects the code and a parameter that makes sense for one choice only lives inside that choice. All are
hashable (static under `jax.jit`) and round-trip through JSON with `to_dict` and `from_dict`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from jaxformer.errors import InputError
from jaxformer.ops.activations import Activation
from jaxformer.ops.rotary import RotaryLayout

Placement = Literal["pre", "post"]


def check_rate(rate: float) -> None:
    """Raise InputError unless `rate` is a probability of dropping below one."""
    if not 0 <= rate < 1:
        raise InputError(f"dropout must be at least 0 and below 1, not {rate}")


@dataclass(frozen=True)
class LayerNormConfig:
    """Layer normalisation over the model width, with a learned scale and shift."""

    epsilon: float = 1e-5


@dataclass(frozen=True)
class RMSNormConfig:
    """Root-mean-square normalisation over the model width (Zhang and Sennrich 2019): a learned scale, no mean."""

    epsilon: float = 1e-6


NormConfig = LayerNormConfig | RMSNormConfig


@dataclass(frozen=True)
class LearnedPositions:
    """A trained vector per position, for positions below `length`; the table has `offset` reserved rows before them."""

    length: int
    offset: int = 0


@dataclass(frozen=True)
class SinusoidalPositions:
    """The fixed sinusoids of section 3.5, sine and cosine interleaved as in the paper, or in halves as in Marian."""

    layout: Literal["interleaved", "halves"] = "interleaved"
    base: float = 10000.0


Positions = LearnedPositions | SinusoidalPositions


@dataclass(frozen=True)
class Rope:
    """Rotary positions: queries and keys are turned by angles in proportion to their position (Su et al. 2021).

    base: the slowest pair of dimensions turns once in 2 pi x base positions. width: how many dimensions of a head are
    turned (None: all). layout: which dimensions make a pair, see `jaxformer.ops.rotate`.
    """

    base: float = 10000.0
    width: int | None = None
    layout: RotaryLayout = "halves"


@dataclass(frozen=True)
class AttentionConfig:
    """Multi-head attention, section 3.2.2.

    heads: query heads N. kv_heads: key-value heads K, each serving N/K query heads (None: N). head_dim: width H of
    a head (None: model width / N). scale: factor on the scores (None: 1/sqrt(H)). window: how many keys a query sees,
    itself included (None: all). softcap: scores are squashed into (-softcap, softcap) by tanh (None: not). bias: of
    the projections to queries, keys and values. output_bias: of the output projection (None: as bias). query_key_norm:
    queries and keys are normalised, each head by itself, before they are turned (Henry et al. 2020). rope: rotary
    positions (None: the stack's positions are all there is). dropout: rate on the attention weights.
    """

    heads: int = 8
    kv_heads: int | None = None
    head_dim: int | None = None
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    bias: bool = True
    output_bias: bool | None = None
    query_key_norm: NormConfig | None = None
    rope: Rope | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse heads that cannot be formed."""
        if self.heads < 1 or (self.kv_heads is not None and self.kv_heads < 1):
            raise InputError(f"attention needs at least one head, not heads={self.heads}, kv_heads={self.kv_heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise InputError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        check_rate(self.dropout)


@dataclass(frozen=True)
class FeedForwardConfig:
    """Position-wise feed-forward network, section 3.3, equation 2: two linear maps with an activation between them.

    hidden: inner width F (None: 4 x the model width, as in the paper). gated: the inner units are multiplied by a
    second linear map of the input, activation(x W_gate) * (x W_up) (Shazeer 2020; SwiGLU with the activation "silu").
    """

    hidden: int | None = None
    activation: Activation = "relu"
    gated: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        """Refuse a network without inner units."""
        if self.hidden is not None and self.hidden < 1:
            raise InputError(f"a feed-forward network needs at least one inner unit, not hidden={self.hidden}")


@dataclass(frozen=True)
class BlockConfig:
    """One layer of a stack: self-attention, cross-attention if `cross` is given, feed-forward; section 3.1.

    placement: "post" normalises after each residual sum, LayerNorm(x + Sublayer(x)), as in the paper; "pre" normalises
    the sub-layer's input, x + Sublayer(LayerNorm(x)). Post-LN gradients grow towards the output layers, so deep models
    need a slow warm-up; pre-LN leaves the residual path untouched and trains stably when deep (Xiong et al. 2020).
    dropout: rate on the output of each sub-layer, before it is added to its input (section 5.4).
    """

    attention: AttentionConfig = AttentionConfig()
    feed_forward: FeedForwardConfig = FeedForwardConfig()
    cross: AttentionConfig | None = None
    norm: NormConfig = LayerNormConfig()
    placement: Placement = "post"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an impossible rate."""
        check_rate(self.dropout)


@dataclass(frozen=True)
class EmbeddingConfig:
    """Token embedding, section 3.4: a vector of width `dim` (None: the model width) per token of the vocabulary.

    A width unlike the model's is projected to it. scale: multiply by sqrt(model width), as the paper does, so that
    vectors drawn with variance 1/width (which suit an output projection that shares the table) are not drowned by the
    positions, whose entries are of order one. Modern models start their tables at the size that they want, or learn
    positions of the same small size, and leave the factor out.
    """

    vocab_size: int
    dim: int | None = None
    scale: bool = True

    def __post_init__(self) -> None:
        """Refuse an empty vocabulary."""
        if self.vocab_size < 1:
            raise InputError(f"a vocabulary needs at least one token, not vocab_size={self.vocab_size}")


@dataclass(frozen=True)
class StackConfig:
    """An encoder or a decoder: embedding, positions, blocks, final norm.

    embedding_norm: normalise embedding + positions. position_index: what numbers the positions when no `position_ids`
    are given: "valid" counts the real tokens, so that padding on either side changes nothing; "slot" counts every
    slot, as most Hugging Face models do. dropout: rate after embedding + positions (section 5.4). positions: None adds
    nothing, for blocks whose attention has rotary positions. rematerialise: compute what is inside a block a second
    time in the backward pass instead of storing it; memory then grows with one vector per token and block.
    """

    embedding: EmbeddingConfig
    blocks: tuple[BlockConfig, ...]
    positions: Positions | None
    embedding_norm: NormConfig | None = None
    final_norm: NormConfig | None = None
    position_index: Literal["valid", "slot"] = "valid"
    dropout: float = 0.0
    rematerialise: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty stack and an impossible rate."""
        if not self.blocks:
            raise InputError("a stack needs at least one block: give `blocks` at least one BlockConfig")
        check_rate(self.dropout)


@dataclass(frozen=True)
class HeadConfig:
    """The map from hidden states to logits. tied: the token embedding's table (section 3.4); bias: one per token."""

    tied: bool = True
    bias: bool = False


@dataclass(frozen=True)
class TransformerConfig:
    """A whole Transformer: encoder-decoder, or decoder-only or encoder-only where the other stack is None.

    dim: model width D. head: None returns hidden states instead of logits. share_embeddings: encoder and decoder read
    one embedding table.
    """

    dim: int
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    head: HeadConfig | None = HeadConfig()
    share_embeddings: bool = False

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        if self.encoder is None and self.decoder is None:
            raise InputError("a Transformer needs an encoder, a decoder, or both")
        if self.encoder and any(block.cross for block in self.encoder.blocks):
            raise InputError("encoder blocks have nothing to attend to but themselves: set cross=None")
        if self.decoder and any((block.cross is None) == (self.encoder is not None) for block in self.decoder.blocks):
            raise InputError("each decoder block needs `cross` attention if there is an encoder, and none otherwise")
        if self.share_embeddings and not (
            self.encoder and self.decoder and self.encoder.embedding == self.decoder.embedding
        ):
            raise InputError("share_embeddings needs an encoder and a decoder with equal embedding configurations")
        for stack in filter(None, (self.encoder, self.decoder)):
            for block in stack.blocks:
                for attention in filter(None, (block.attention, block.cross)):
                    check_rope(attention, head_width(attention, self.dim))
                if block.cross and block.cross.rope:
                    raise InputError("two sequences share no positions: cross-attention needs rope=None")

    @property
    def main(self) -> StackConfig:
        """The stack that the logits come from: the decoder, or the encoder where there is no other."""
        stack = self.decoder or self.encoder
        assert stack is not None, "checked when made"
        return stack


def head_width(attention: AttentionConfig, dim: int) -> int:
    """Width H of an attention head: the one given, else the model width `dim` divided by the number of heads.

    Raises InputError when the heads do not divide the width.
    """
    if attention.head_dim is not None:
        return attention.head_dim
    if dim % attention.heads:
        raise InputError(f"{attention.heads} heads do not divide the model width {dim}: change one, or give head_dim")
    return dim // attention.heads


def check_rope(attention: AttentionConfig, width: int) -> None:
    """Raise InputError unless a head of this width has as many pairs of dimensions as are to be turned."""
    if attention.rope is not None:
        turned = width if attention.rope.width is None else attention.rope.width
        if turned < 2 or turned % 2 or turned > width:
            raise InputError(f"rotary positions turn pairs of a head's {width} dimensions, not {turned}: change one")


CONFIGS = (
    LayerNormConfig,
    RMSNormConfig,
    LearnedPositions,
    SinusoidalPositions,
    Rope,
    AttentionConfig,
    FeedForwardConfig,
    BlockConfig,
    EmbeddingConfig,
    StackConfig,
    HeadConfig,
    TransformerConfig,
)


def to_dict(config: Any) -> Any:
    """`config` as plain dictionaries, lists and numbers for JSON; each dictionary names its class under "type"."""
    if dataclasses.is_dataclass(config):
        fields = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
        return {"type": type(config).__name__, **fields}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return config


def from_dict(data: Any, classes: tuple[type, ...] = CONFIGS) -> Any:
    """The configuration that `to_dict` turned into `data`. Raises InputError for an unknown class or field."""
    if isinstance(data, list):
        return tuple(from_dict(item, classes) for item in data)
    if not isinstance(data, dict):
        return data
    values = {key: from_dict(value, classes) for key, value in data.items() if key != "type"}
    known = {config.__name__: config for config in classes}
    if data.get("type") not in known:
        raise InputError(f"unknown configuration type {data.get('type')!r}: known are {', '.join(known)}")
    try:
        return known[data["type"]](**values)
    except TypeError as error:
        raise InputError(f"cannot build {data['type']}: {error}") from error
