"""Attention, of each head by itself or through a latent, and the norms inside of it."""

from dataclasses import dataclass
from typing import Literal

from jaxformer.config.positions import LongRopeScaling, Rope
from jaxformer.errors import InputError


def check_rate(rate: float) -> None:
    """Raise InputError unless `rate` is a probability of dropping below one."""
    if not 0 <= rate < 1:
        raise InputError(f"dropout must be at least 0 and below 1, not {rate}")


@dataclass(frozen=True)
class LayerNormConfig:
    """Layer normalisation over the model width, with a learned scale and shift.

    Attributes:
        epsilon: A small number that is added to the variance, below the root.
        scale: Whether there is a learned scale. False: vectors of variance one, as in OLMo 1.
        bias: Whether there is a learned shift.
    """

    epsilon: float = 1e-5
    scale: bool = True
    bias: bool = True


@dataclass(frozen=True)
class RMSNormConfig:
    """Root-mean-square normalisation over the model width (Zhang and Sennrich 2019): a learned scale, no mean.

    Attributes:
        epsilon: A small number below the root.
        offset: Whether the learned numbers are how far the scale is from one, as in Gemma: weight decay pulls it there.
    """

    epsilon: float = 1e-6
    offset: bool = False


NormConfig = LayerNormConfig | RMSNormConfig


@dataclass(frozen=True)
class AttentionConfig:
    """Multi-head attention, section 3.2.2.

    Attributes:
        heads: Number of query heads N.
        kv_heads: Number of key-value heads K, each serving N/K query heads. None: N.
        head_dim: Width H of a head. None: model width / N.
        scale: Factor on the scores. None: 1/sqrt(H).
        window: Number of keys that a query sees, itself included. None: all.
        softcap: Scores are squashed into (-softcap, softcap) by tanh. None: they are not.
        bias: Whether the projections to queries, keys and values have biases.
        output_bias: Whether the output projection has one. None: as bias.
        query_key_norm: Norm of queries and keys before they are rotated (Henry et al. 2020). None: none.
        normed: Whether that norm is over each head by itself, or over all heads of a token as one vector. "separate
            heads": over each by itself, and each has its own scale.
        rope: Rotary positions. None: the stack's positions are all there is.
        sinks: Whether each head has a learned score for looking at nothing.
        dropout: Rate on the attention weights.
        rotate_first: Whether that norm comes after the rotation, as in HunYuan.
        clip_qkv: Bound on the size of every number in queries, keys and values, before they are rotated. None: none.
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
    normed: Literal["each head", "all heads", "separate heads"] = "each head"
    rope: Rope | None = None
    sinks: bool = False
    dropout: float = 0.0
    rotate_first: bool = False
    clip_qkv: float | None = None

    def __post_init__(self) -> None:
        """Refuse heads that cannot be formed."""
        if self.heads < 1 or (self.kv_heads is not None and self.kv_heads < 1):
            raise InputError(f"attention needs at least one head, not heads={self.heads}, kv_heads={self.kv_heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise InputError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.clip_qkv is not None and not self.clip_qkv > 0:
            raise InputError(f"clip_qkv must be positive, not {self.clip_qkv}")
        check_rate(self.dropout)


@dataclass(frozen=True)
class LatentAttentionConfig:
    """Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1): one short vector per token is cached.

    Keys and values of all heads are linear maps of it.

    Attributes:
        heads: Number of heads N.
        kv_lora_rank: Width R of the cached latent.
        q_lora_rank: Width of the latent that queries are made from. None: from the states at once.
        qk_nope_head_dim: Width H of the part of queries and keys without positions, which each head has for itself.
        qk_rope_head_dim: Width P of the rest, whose keys are the same for all heads; rope rotates it. 0: none.
        v_head_dim: Width of values. None: H.
        scale: Factor on the scores. None: 1/sqrt(H + P).
        norm: Norm of both latents. None: none.
        bias: Whether the maps to the latents and the output projection have biases.
        rope: Rotary positions. None: none.
        dropout: Rate on the attention weights.
    """

    heads: int = 8
    kv_lora_rank: int = 256
    q_lora_rank: int | None = None
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 32
    v_head_dim: int | None = None
    scale: float | None = None
    norm: NormConfig | None = RMSNormConfig()
    bias: bool = False
    rope: Rope | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no width, and positions that nothing would be turned by."""
        widths = {
            name: getattr(self, name)
            for name in ("heads", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim")
        }
        if small := [f"{name}={width}" for name, width in widths.items() if width is not None and width < 1]:
            raise InputError(f"latent attention needs widths of at least one, not {', '.join(small)}")
        if self.qk_rope_head_dim < 0:
            raise InputError(f"the part of a key that heads share cannot have a width of {self.qk_rope_head_dim}")
        check_rate(self.dropout)


AnyAttentionConfig = AttentionConfig | LatentAttentionConfig


def head_width(attention: AttentionConfig, dim: int) -> int:
    """Return the width H of an attention head.

    The one given, else the model width `dim` divided by the number of heads.

    Raises InputError when the heads do not divide the width.
    """
    if attention.head_dim is not None:
        return attention.head_dim
    if dim % attention.heads:
        raise InputError(f"{attention.heads} heads do not divide the model width {dim}: change one, or give head_dim")
    return dim // attention.heads


def check_attention(attention: AnyAttentionConfig, dim: int) -> None:
    """Raise InputError unless heads can be formed in a model this wide, and have the pairs that are to be turned."""
    width = head_width(attention, dim) if isinstance(attention, AttentionConfig) else attention.qk_rope_head_dim
    if attention.rope is not None:
        rotated = width if attention.rope.width is None else attention.rope.width
        if rotated < 2 or rotated % 2 or rotated > width:
            raise InputError(f"rotary positions turn pairs of a head's {width} dimensions, not {rotated}: change one")
        scaling = attention.rope.scaling
        if isinstance(scaling, LongRopeScaling) and not len(scaling.short) == len(scaling.long) == rotated // 2:
            counts = f"{len(scaling.short)} short and {len(scaling.long)} long"
            raise InputError(f"LongRoPE needs a factor for each of {rotated // 2} pairs, not {counts}")
