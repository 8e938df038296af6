"""Whole models: embedding, stacks, and what connects them."""

from dataclasses import dataclass
from typing import Literal

from jaxformer.config.attention import NormConfig, check_attention, check_rate
from jaxformer.config.heads import AnyHeadConfig, ClassifierConfig, EndOfText, HeadConfig
from jaxformer.config.layers import BlockConfig
from jaxformer.config.positions import (
    AlibiPositions,
    LearnedPositions,
    NonPadPositions,
    PositionIdsFrom,
    Positions,
    RelativePositions,
)
from jaxformer.errors import InputError
from jaxformer.schema import check_range


@dataclass(frozen=True)
class EmbeddingConfig:
    """Token embedding, section 3.4.

    Attributes:
        vocab_size: Number of tokens V.
        dim: Width of the vectors, which are projected to the model width where it is another. None: the model width.
        scale: Whether vectors are multiplied by sqrt(model width), as in the paper, so that vectors drawn with variance
            1/width (which suit an output projection that shares the table) are not drowned by the positions, whose
            entries are of order one. Modern models start their tables at the size that they want, or learn positions of
            the same small size, and leave the factor out.
        types: Number of kinds of token, each with a vector that is added, as for BERT's first and second sentence.
            None: one kind, nothing added.
        multiplier: A further factor on the vectors, as in Granite.
        project: Where narrower vectors are projected: "tokens", at once and without a bias, as in OPT; "sum", behind
            positions and norm and with a bias, as in ELECTRA, even where the width is that of the model.
    """

    vocab_size: int
    dim: int | None = None
    scale: bool = True
    types: int | None = None
    multiplier: float = 1.0
    project: Literal["tokens", "sum"] = "tokens"

    def __post_init__(self) -> None:
        """Refuse an empty vocabulary."""
        if self.vocab_size < 1:
            raise InputError(f"a vocabulary needs at least one token, not vocab_size={self.vocab_size}")


@dataclass(frozen=True)
class StackConfig:
    """An encoder or a decoder: embedding, positions, blocks, final norm.

    Attributes:
        embedding: Token embedding.
        blocks: The layers.
        positions: Positions that are added to embeddings or scores. None: none, for blocks with rotary positions.
        embedding_norm: Norm of embedding + positions. None: none.
        final_norm: Norm of the output. None: none.
        position_ids_from: What numbers the positions when no `position_ids` are given: "mask" counts real tokens, so
            that padding on either side changes nothing; "slot" counts every slot, as most Hugging Face models do;
            `NonPadPositions` counts tokens that are not padding.
        dropout: Rate after embedding + positions (section 5.4).
        final_dropout: Rate on the output of the stack, as in T5.
        rematerialize: Whether the backward pass computes the inside of a block again instead of storing it: memory then
            grows with one vector per token and block.
        score_positions: Positions that are added to scores beside those that are added to embeddings, as in MPNet.
        order: Numbers of the blocks in the order in which they are applied, as in ALBERT, which applies one block many
            times. None: each once.
    """

    embedding: EmbeddingConfig
    blocks: tuple[BlockConfig, ...]
    positions: Positions | None
    embedding_norm: NormConfig | None = None
    final_norm: NormConfig | None = None
    position_ids_from: PositionIdsFrom = "mask"
    dropout: float = 0.0
    final_dropout: float = 0.0
    rematerialize: bool = False
    score_positions: RelativePositions | None = None
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse an empty stack and an impossible rate."""
        if not self.blocks:
            raise InputError("a stack needs at least one block: give `blocks` at least one BlockConfig")
        check_rate(self.dropout)
        check_rate(self.final_dropout)
        if self.order is not None and set(self.order) != set(range(len(self.blocks))):
            raise InputError(f"order must have each of the {len(self.blocks)} blocks, and no others")
        if self.score_positions and isinstance(self.positions, RelativePositions | AlibiPositions):
            raise InputError("scores have one kind of positions: leave score_positions out")

    @property
    def applied(self) -> tuple[BlockConfig, ...]:
        """The blocks in the order in which they are applied."""
        return self.blocks if self.order is None else tuple(self.blocks[number] for number in self.order)

    @property
    def max_length(self) -> int | None:
        """Longest sequence that the positions allow; None: any."""
        return self.positions.length if isinstance(self.positions, LearnedPositions) else None


@dataclass(frozen=True)
class ShiftedInputs:
    """The decoder of an encoder-decoder reads the encoder's tokens as well, shifted right, as BART does for classes.

    Attributes:
        start: Token that the decoder reads first. None: the last token of the row that is not padding, as in mBART.
        pad_id: Token that is padding wherever it stands. None: only the mask tells what is padding.
    """

    start: int | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        """Refuse impossible tokens."""
        for name, token in (("start", self.start), ("pad_id", self.pad_id)):
            if token is not None:
                check_range(name, token, 0)


@dataclass(frozen=True)
class TransformerConfig:
    """Whole Transformer: encoder-decoder, or decoder-only or encoder-only where the other stack is None.

    Attributes:
        dim: Model width D.
        encoder: The encoder. None: none.
        decoder: The decoder. None: none.
        head: Map to logits of the vocabulary, of classes, or scores of tokens. None: hidden states are returned.
        share_embeddings: Whether encoder and decoder read one embedding table.
        targets_from: What the decoder of an encoder-decoder reads where no targets are given. None: they must be given.
    """

    dim: int
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    head: AnyHeadConfig | None = HeadConfig()
    share_embeddings: bool = False
    targets_from: ShiftedInputs | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        check_range("dim", self.dim, 1)
        if self.encoder is None and self.decoder is None:
            raise InputError("a Transformer needs an encoder, a decoder, or both")
        if self.targets_from and not (self.encoder and self.decoder):
            raise InputError("targets_from needs an encoder and a decoder")
        if (
            isinstance(self.head, ClassifierConfig)
            and isinstance(self.head.pooled, EndOfText)
            and not self.targets_from
        ):
            raise InputError("a classifier that reads the end of the text needs targets_from")
        if self.encoder and any(block.cross for block in self.encoder.blocks):
            raise InputError("encoder blocks have nothing to attend to but themselves: set cross=None")
        if self.decoder and any((block.cross is None) == (self.encoder is not None) for block in self.decoder.blocks):
            raise InputError("each decoder block needs `cross` attention if there is an encoder, and none otherwise")
        if self.share_embeddings and not (
            self.encoder and self.decoder and self.encoder.embedding == self.decoder.embedding
        ):
            raise InputError("share_embeddings needs an encoder and a decoder with equal embedding configurations")
        if self.decoder and isinstance(self.decoder.position_ids_from, NonPadPositions):
            raise InputError("a decoder sees a few tokens at a time: its positions cannot depend on all of them")
        for stack in filter(None, (self.encoder, self.decoder)):
            for block in stack.blocks:
                for attention in filter(None, (block.attention, block.cross)):
                    check_attention(attention, self.dim)
                if (
                    stack.score_positions or isinstance(stack.positions, RelativePositions | AlibiPositions)
                ) and block.attention.heads != stack.blocks[0].attention.heads:
                    raise InputError("one bias of distances serves all blocks: give them equally many heads")
                if block.cross and block.cross.rope:
                    raise InputError("two sequences share no positions: cross-attention needs rope=None")

    @property
    def main(self) -> StackConfig:
        """The stack that the logits come from: the decoder, or the encoder where there is no other."""
        stack = self.decoder or self.encoder
        assert stack is not None, "checked when made"
        return stack
