"""Properties of a model that keys of a config.json ask for."""

from dataclasses import dataclass
from functools import cached_property

from jaxformer.config import (
    AnyAttentionConfig,
    AnyClassifierConfig,
    DynamicScaling,
    FeedForwardConfig,
    HeadConfig,
    LatentAttentionConfig,
    LearnedPositions,
    MoEConfig,
    NonPadPositions,
    Rope,
    StackConfig,
    TransformerConfig,
    head_width,
)


@dataclass(frozen=True)
class Shape:
    """Properties of a model that keys of a config.json ask for; None where a model has no such thing.

    Attributes:
        config: The configuration of the model.
        longest: Number of tokens that the model is meant for, where its positions have no table.
    """

    config: TransformerConfig
    longest: int

    @property
    def stack(self) -> StackConfig:
        """The stack that logits come from."""
        return self.config.main

    @property
    def first(self) -> StackConfig:
        """The encoder, or the only stack."""
        return self.config.encoder or self.stack

    @cached_property
    def attentions(self) -> list[AnyAttentionConfig]:
        """The attention of each block."""
        return [block.attention for block in self.stack.blocks]

    @property
    def attention(self) -> AnyAttentionConfig:
        """The attention of the first block."""
        return self.attentions[0]

    @property
    def head_width(self) -> int | None:
        """The width of a head."""
        if isinstance(self.attention, LatentAttentionConfig):
            return None
        return head_width(self.attention, self.config.dim)

    @cached_property
    def mixture(self) -> MoEConfig | None:
        """The first mixture of experts."""
        networks = (block.feed_forward for block in self.stack.blocks)
        return next((network for network in networks if isinstance(network, MoEConfig)), None)

    @cached_property
    def network(self) -> FeedForwardConfig:
        """The first plain feed-forward network; an expert where there is none."""
        networks = [block.feed_forward for block in self.stack.blocks]
        experts = [network.expert for network in networks if isinstance(network, MoEConfig)]
        return next((network for network in networks if isinstance(network, FeedForwardConfig)), *experts[:1])

    @property
    def d_ff(self) -> int:
        """The inner width of that network."""
        return self.network.d_ff or 4 * self.config.dim

    @cached_property
    def windows(self) -> list[int | None]:
        """The window of each block."""
        return [getattr(attention, "window", None) for attention in self.attentions]

    @property
    def window(self) -> int | None:
        """The first window."""
        return next((window for window in self.windows if window is not None), None)

    @property
    def layer_types(self) -> list[str]:
        """What each block sees, in transformers' words."""
        return ["full_attention" if window is None else "sliding_attention" for window in self.windows]

    @property
    def plain_blocks(self) -> list[int]:
        """The blocks without experts."""
        return [i for i, block in enumerate(self.stack.blocks) if isinstance(block.feed_forward, FeedForwardConfig)]

    @cached_property
    def rope(self) -> Rope | None:
        """The first rotary positions of a block that sees everything, or else of any."""
        everywhere = [block for block, window in enumerate(self.windows) if window is None]
        order = [*everywhere, *range(len(self.windows))]
        return next((rope for block in order if (rope := self.attentions[block].rope)), None)

    @property
    def head(self) -> HeadConfig | None:
        """The map to the vocabulary."""
        return self.config.head if isinstance(self.config.head, HeadConfig) else None

    @property
    def classifier(self) -> AnyClassifierConfig | None:
        """The map to classes, of sequences or of tokens."""
        return self.config.head if isinstance(self.config.head, AnyClassifierConfig) else None

    @property
    def pad_id(self) -> int | None:
        """The token that is padding wherever it stands, where the model knows one."""
        pooled = getattr(self.classifier, "pooled", None)
        found = (
            getattr(part, "pad_id", None) for part in (self.stack.position_ids_from, pooled, self.config.targets_from)
        )
        return next((token for token in found if token is not None), None)

    @property
    def length(self) -> int:
        """The number of positions that a file gives."""
        positions, scaling = self.stack.positions, self.rope.scaling if self.rope else None
        if isinstance(positions, LearnedPositions):
            counted = isinstance(self.stack.position_ids_from, NonPadPositions)
            return positions.length + (positions.offset if counted else 0)
        return scaling.length if isinstance(scaling, DynamicScaling) else self.longest
