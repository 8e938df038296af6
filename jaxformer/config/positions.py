"""How a model knows where a token stands: added to embeddings, to scores, or by turning queries and keys."""

from dataclasses import dataclass
from typing import Literal

from jaxformer.ops.rotary import RotaryLayout


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


@dataclass(frozen=True)
class RelativePositions:
    """A learned number per head and distance, added to the scores of self-attention (Raffel et al. 2020, section 2.1).

    Near distances have a bucket each, farther ones share buckets that grow logarithmically up to `max_distance`, see
    `jaxformer.ops.distance_buckets`. One table serves all blocks of a stack.
    """

    buckets: int = 32
    max_distance: int = 128


Positions = LearnedPositions | SinusoidalPositions | RelativePositions


@dataclass(frozen=True)
class NonPadPositions:
    """Positions count the tokens that are not `pad_id`, which has position -1, whatever the mask is, as for RoBERTa."""

    pad_id: int


PositionIdsFrom = Literal["mask", "slot"] | NonPadPositions


@dataclass(frozen=True)
class LinearScaling:
    """Positions are divided by `factor`, so that so many times more fit into the trained range (Chen et al. 2023)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """The base grows with the longest position once that is beyond the trained `length` ("NTK-aware" scaling)."""

    factor: float
    length: int


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow pairs are slowed down by `factor`, fast ones stay, those between are mixed (Llama 3.1).

    A pair is slow that turns less than `low` times in the trained `length`, and fast that turns more than `high` times.
    """

    factor: float
    low: float
    high: float
    length: int


@dataclass(frozen=True)
class YarnScaling:
    """Slow pairs are slowed down by `factor`, fast ones stay, with a ramp between them (YaRN, Peng et al. 2023).

    A pair is fast that turns more than `beta_fast` times in the trained `length`, slow below `beta_slow` times.
    truncate: the ramp begins and ends at whole dimensions. attention_factor: factor on cosines and
    sines, that is its square on the scores.
    """

    factor: float
    length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True)
class LongRopeScaling:
    """Each pair is slowed down by a factor of its own (LongRoPE, Ding et al. 2024).

    The factors are `short`, or `long` once the longest position is beyond the trained `length`. attention_factor:
    factor on cosines and sines.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    length: int
    attention_factor: float = 1.0


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class Rope:
    """Rotary positions: queries and keys are turned by angles in proportion to their position (Su et al. 2021).

    base: the slowest pair of dimensions turns once in 2 pi x base positions. width: how many dimensions of a head are
    turned (None: all). layout: which dimensions make a pair, see `jaxformer.ops.apply_rope`. scaling: how a model that
    was trained on shorter sequences reaches farther (None: it does not).
    """

    base: float = 10000.0
    width: int | None = None
    layout: RotaryLayout = "halves"
    scaling: RopeScaling | None = None
