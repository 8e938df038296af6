"""How a model knows where a token stands: added to embeddings, to scores, or by turning queries and keys."""

from dataclasses import dataclass
from typing import Literal

from jaxformer.ops.rotary import RotaryLayout


@dataclass(frozen=True)
class LearnedPositions:
    """Trained vector per position.

    Attributes:
        length: Number of positions.
        offset: Number of reserved rows before them in the table.
    """

    length: int
    offset: int = 0


@dataclass(frozen=True)
class SinusoidalPositions:
    """Fixed sinusoids of section 3.5.

    Attributes:
        layout: "interleaved" sines and cosines, as in the paper, or in "halves", as in Marian.
        base: Base of the wavelengths.
    """

    layout: Literal["interleaved", "halves"] = "interleaved"
    base: float = 10000.0


@dataclass(frozen=True)
class RelativePositions:
    """Learned number per head and distance, added to the scores of self-attention (Raffel et al. 2020, section 2.1).

    Near distances have a bucket each, farther ones share buckets that grow logarithmically, see
    `jaxformer.ops.distance_buckets`. One table serves all blocks of a stack.

    Attributes:
        buckets: Number of buckets.
        max_distance: Distance from which all share a bucket.
    """

    buckets: int = 32
    max_distance: int = 128


@dataclass(frozen=True)
class AlibiPositions:
    """Scores fall in proportion to the distance of a key, faster in some heads than in others (Press et al. 2022).

    Nothing is learned: see `jaxformer.ops.alibi_slopes`.
    """


Positions = LearnedPositions | SinusoidalPositions | RelativePositions | AlibiPositions


@dataclass(frozen=True)
class NonPadPositions:
    """Positions count the tokens that are not padding, whatever the mask is, as for RoBERTa.

    Attributes:
        pad_id: Padding token, which has position -1.
    """

    pad_id: int


PositionIdsFrom = Literal["mask", "slot"] | NonPadPositions


@dataclass(frozen=True)
class LinearScaling:
    """Positions are divided, so that more of them fit into the trained range (Chen et al. 2023).

    Attributes:
        factor: The divisor: as many times more positions fit.
    """

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """The base grows with the longest position once that is beyond the trained length ("NTK-aware" scaling).

    Attributes:
        factor: Slope of the growth, see `jaxformer.ops.dynamic_ntk_frequencies`.
        length: Number of positions in training.
    """

    factor: float
    length: int


@dataclass(frozen=True)
class Llama3Scaling:
    """Scaling that divides slow pairs by a factor, leaves fast ones, and mixes those between (Llama 3.1).

    Attributes:
        factor: The factor.
        low: A pair is slow that turns less often than this in `length`.
        high: A pair is fast that turns more often than this in `length`.
        length: Number of positions in training.
    """

    factor: float
    low: float
    high: float
    length: int


@dataclass(frozen=True)
class YarnScaling:
    """Scaling that slows down slow pairs, leaves fast ones, with a ramp between them (YaRN, Peng et al. 2023).

    Attributes:
        factor: How many times longer texts are than in training.
        length: Number of positions in training.
        beta_fast: A pair is fast that turns more often than this in `length`.
        beta_slow: A pair is slow that turns less often than this in `length`.
        truncate: Whether the ramp begins and ends at whole dimensions.
        attention_factor: Factor on cosines and sines, that is its square on the scores.
    """

    factor: float
    length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True)
class LongRopeScaling:
    """Scaling that slows down each pair by a factor of its own (LongRoPE, Ding et al. 2024).

    Attributes:
        short: The factors up to the trained length.
        long: The factors once the longest position is beyond the trained length.
        length: Number of positions in training.
        attention_factor: Factor on cosines and sines.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    length: int
    attention_factor: float = 1.0


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class Rope:
    """Rotary positions: queries and keys are rotated by angles in proportion to their position (Su et al. 2021).

    Attributes:
        base: The slowest pair of dimensions turns once in 2 pi x base positions.
        width: Number of dimensions of a head that are rotated. None: all.
        layout: Which dimensions make a pair, see `jaxformer.ops.apply_rope`.
        scaling: How a model that was trained on shorter sequences reaches farther. None: it does not.
    """

    base: float = 10000.0
    width: int | None = None
    layout: RotaryLayout = "halves"
    scaling: RopeScaling | None = None
