"""The layers of a stack: feed-forward network, mixture of experts, block."""

from dataclasses import dataclass
from typing import Literal

from jaxformer.config.attention import AnyAttentionConfig, AttentionConfig, LayerNormConfig, NormConfig, check_rate
from jaxformer.errors import InputError
from jaxformer.ops.activations import Activation

NormOrder = Literal["pre", "post", "pre_and_post", "post_sublayer"]


@dataclass(frozen=True)
class FeedForwardConfig:
    """Position-wise feed-forward network, section 3.3, equation 2: two linear maps with an activation between them.

    Attributes:
        d_ff: Inner width F. None: 4 x the model width, as in the paper.
        activation: Name of the activation.
        gated: Whether the inner units are multiplied by a second linear map of the input, activation(x W_gate) * (x
            W_up) (Shazeer 2020; SwiGLU with the activation "silu").
        bias: Whether the linear maps have biases.
        limit: Bound on both factors of a gated network, activation(min(x W_gate, limit)) * (1 + x W_up), the latter
            product between -limit and limit, as in gpt-oss. None: no bound.
        dropout: Rate on the inner units.
    """

    d_ff: int | None = None
    activation: Activation = "relu"
    gated: bool = False
    bias: bool = True
    limit: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a network without inner units, a limit of nothing and an impossible rate."""
        check_rate(self.dropout)
        if self.limit is not None and not (self.gated and self.limit > 0):
            raise InputError(f"limit={self.limit} bounds gated networks, and must be positive")
        if self.d_ff is not None and self.d_ff < 1:
            raise InputError(f"a feed-forward network needs at least one inner unit, not d_ff={self.d_ff}")


@dataclass(frozen=True)
class SoftmaxRouter:
    """Experts with the largest softmax of a linear map of the token, as in Mixtral and DeepSeek-V2.

    Attributes:
        renormalize: Whether the weights of the chosen experts sum to one.
        bias: Whether the linear map has a bias.
        groups: Number of groups of neighbouring experts.
        top_k_groups: Number of groups that a token may go to.
        scale: Factor on the weights.
    """

    renormalize: bool = True
    bias: bool = False
    groups: int = 1
    top_k_groups: int = 1
    scale: float = 1.0


@dataclass(frozen=True)
class SigmoidRouter:
    """Experts with the largest sigmoid of a linear map of the token plus a bias per expert, as in DeepSeek-V3.

    The bias is no part of the weights, and no gradient moves it.

    Attributes:
        renormalize: Whether the weights of the chosen experts sum to one.
        groups: Number of groups of neighbouring experts.
        top_k_groups: Number of groups that a token may go to.
        scale: Factor on the weights.
    """

    renormalize: bool = True
    groups: int = 1
    top_k_groups: int = 1
    scale: float = 1.0


Router = SoftmaxRouter | SigmoidRouter


@dataclass(frozen=True)
class MoEConfig:
    """Mixture of experts: each token goes through a few of many feed-forward networks (Shazeer et al. 2017).

    Attributes:
        experts: Number of experts E.
        top_k: Number of experts that a token goes through.
        expert: Configuration of an expert.
        router: How experts are chosen.
        shared: Network that every token goes through as well (Dai et al. 2024). None: none.
        shared_gate: Whether its output is multiplied by the sigmoid of a linear map of the token, as in Qwen2-MoE.
    """

    experts: int
    top_k: int
    expert: FeedForwardConfig = FeedForwardConfig()
    router: Router = SoftmaxRouter()
    shared: FeedForwardConfig | None = None
    shared_gate: bool = False

    def __post_init__(self) -> None:
        """Refuse a choice of more experts than there are, and dropout inside of them."""
        if not 1 <= self.top_k <= self.experts:
            raise InputError(f"a token can go to 1 to {self.experts} of {self.experts} experts, not {self.top_k}")
        groups, kept = self.router.groups, self.router.top_k_groups
        smallest = 1 if isinstance(self.router, SoftmaxRouter) else 2  # a group is judged by so many experts
        if groups < 1 or self.experts % groups or (groups > 1 and self.experts // groups < smallest):
            raise InputError(f"{self.experts} experts cannot be split into {groups} groups of {smallest} or more")
        if not 1 <= kept <= groups or self.top_k > kept * (self.experts // groups):
            raise InputError(f"{self.top_k} experts cannot be chosen from {kept} of {groups} groups")
        if self.shared_gate and self.shared is None:
            raise InputError("shared_gate needs a shared network: give `shared` a FeedForwardConfig")
        if self.expert.dropout:
            raise InputError("experts have no dropout of inner units: give expert.dropout=0")


@dataclass(frozen=True)
class BlockConfig:
    """One layer of a stack: self-attention, cross-attention if `cross` is given, feed-forward; section 3.1.

    Attributes:
        attention: Self-attention.
        feed_forward: Feed-forward network, or a mixture of experts.
        cross: Cross-attention. None: none.
        norm: Norm of the sub-layers.
        norm_order: Where the norms are. "post", as in the paper: Norm(x + Sublayer(x)); "pre": x + Sublayer(Norm(x));
            "post_sublayer", as in OLMo 2: x + Norm(Sublayer(x)); "pre_and_post", as in Gemma 2:
            x + Norm(Sublayer(Norm(x))). Post-LN gradients grow towards the output layers, so deep models need a slow
            warm-up; pre-LN leaves the residual path untouched and trains stably when deep (Xiong et al. 2020).
        parallel: Whether attention and feed-forward network read the same states, as in GPT-NeoX.
        dropout: Rate on the output of each sub-layer, before it is added to its input (section 5.4).
        attention_norm: Whether the order's norm is before self-attention too; ModernBERT's first block reads what is
            normed already.
        shared_norm: Whether parallel sub-layers share the norm before them, as in GPT-J.
        residual_multiplier: Factor on the output of each sub-layer, before it is added to its input.
    """

    attention: AnyAttentionConfig = AttentionConfig()
    feed_forward: FeedForwardConfig | MoEConfig = FeedForwardConfig()
    cross: AnyAttentionConfig | None = None
    norm: NormConfig = LayerNormConfig()
    norm_order: NormOrder = "post"
    parallel: bool = False
    dropout: float = 0.0
    attention_norm: bool = True
    shared_norm: bool = False
    residual_multiplier: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an impossible rate, and sub-layers side by side where one has to wait for the other."""
        check_rate(self.dropout)
        if self.parallel and (self.norm_order == "post" or self.cross):
            raise InputError("parallel blocks need a norm before the sum, and no cross-attention")
        if not self.attention_norm and (self.norm_order != "pre" or self.shared_norm):
            raise InputError('attention_norm=False needs norm_order="pre" and no shared norm')
        if self.shared_norm and not (self.parallel and self.norm_order == "pre"):
            raise InputError('shared_norm needs parallel sub-layers with norm_order="pre"')


@dataclass(frozen=True)
class TransformConfig:
    """Layer in BERT's head before its map to the vocabulary: Norm(activation(x W + b)), as wide as what the map reads.

    Attributes:
        activation: Name of the activation.
        norm: Norm of the output.
        bias: Whether there is a bias b.
    """

    activation: Activation = "gelu"
    norm: NormConfig = LayerNormConfig()
    bias: bool = True
