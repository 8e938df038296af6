"""Settings of tasks on sequences of symbols."""

from dataclasses import dataclass, field
from typing import Annotated

from jaxformer.config import NormOrder
from jaxformer.data import Symbols
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.tasks.settings import TrainSettings, check_sizes


@dataclass(frozen=True)
class ModelSettings:
    """The model's size."""

    dim: int = 128
    """model width"""
    layers: int = 2
    """layers of the encoder, and as many of the decoder"""
    heads: int = 8
    """attention heads; they must divide the width"""
    d_ff: Annotated[int | None, optional("INT")] = None
    """inner width of the feed-forward network (default: 4 x dim)"""
    norm_order: NormOrder = "pre"
    """norm before each sub-layer, or after each residual sum as in the paper"""
    dropout: float = 0.0
    """dropout rate on embeddings, sub-layers and attention weights"""

    def __post_init__(self) -> None:
        """Raise InputError for sizes below 1, and beyond all that is built."""
        check_sizes(self)


@dataclass(frozen=True)
class SequenceSettings(TrainSettings):
    """Settings of a run on sequences of symbols.

    Attributes:
        text: Random sequences of symbols, which people read and write as the numbers 0, 1, 2 ... with spaces between.
        model: The model's size.
    """

    text: Symbols = field(default_factory=Symbols)
    model: ModelSettings = field(default_factory=ModelSettings)
    steps: int = 800
    """training steps"""
    batch_size: int = 64
    """sequences per step"""
    label_smoothing: float = 0.0
    """share of the target probability spread over all tokens (the paper: 0.1)"""

    def __post_init__(self) -> None:
        """Raise InputError for settings that cannot be trained."""
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
