"""Settings of a training run, as frozen dataclasses whose fields are the flags of train.py."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from jaxformer.config import from_dict
from jaxformer.errors import InputError
from jaxformer.schema import check_range, shown
from jaxformer.training import OptimizerConfig

MAX_ROWS = 1 << 20  # of a batch
MAX_WIDTH, MAX_DEPTH = 1 << 20, 256  # of a model; the first also inside of a feed-forward network
MOST_CHECKPOINTS = 100  # that are averaged


@dataclass(frozen=True)
class TrainSettings:
    """Settings that every task has; tasks add their own. Equal settings give equal parameters, bit for bit.

    Attributes:
        optimizer: AdamW with warm-up; weight decay applies to matrices and embeddings, never to biases and norms.
    """

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 1000
    """training steps"""
    batch_size: int = 32
    """examples per step"""
    accumulate: int = 1
    """parts into which a batch is cut, to be computed one after the other in less memory"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type to compute in; weights are kept in float32"""
    seed: int = 0
    """seed of the initial weights, the data and dropout"""
    save_every: int = 200
    """steps between checkpoints"""
    average: int = 1
    """last checkpoints whose parameters are averaged at the end; 1: the last one as it is"""

    def __post_init__(self) -> None:
        """Raise InputError for settings that cannot be trained."""
        for name in ("steps", "save_every"):
            check_range(name, getattr(self, name), 1)
        for name in ("batch_size", "accumulate"):
            check_range(name, getattr(self, name), 1, MAX_ROWS)
        if self.batch_size % self.accumulate:
            raise InputError(f"--accumulate {self.accumulate} does not divide --batch-size {self.batch_size}")
        check_range("average", self.average, 1, MOST_CHECKPOINTS)
        start = getattr(self, "start", None)
        if start is not None and start.lora is not None and self.optimizer.layer_decay != 1:
            raise InputError("--layer-decay is for the weights of a model: leave it out with --lora")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be at least 0 and below 2^32, not {shown(self.seed)}")


def check_sizes(model: Any) -> None:
    """Raise InputError for sizes of a model below 1, and beyond all that is built; None is no size."""
    most = {"dim": MAX_WIDTH, "layers": MAX_DEPTH, "heads": MAX_WIDTH, "d_ff": MAX_WIDTH}
    for name, bound in most.items():
        if getattr(model, name, None) is not None:
            check_range(name, getattr(model, name), 1, bound)


def check_dropout(rate: float | None) -> None:
    """Raise InputError for a rate of dropout with which nothing can be learned."""
    if rate is not None and not 0 <= rate < 1:
        raise InputError(f"--dropout must be at least 0 and below 1, not {shown(rate)}")


def settings_from_dict(data: Any, kind: type[TrainSettings]) -> TrainSettings:
    """Return the settings that `to_dict` turned into `data`. Raises InputError if they are of another type."""
    settings = from_dict(data, nested_dataclasses(kind))
    if not isinstance(settings, kind):
        raise InputError('"settings" holds something else')
    return settings


def nested_dataclasses(kind: type) -> tuple[type, ...]:
    """Return a dataclass and those of its fields, at every depth, each once."""
    found: dict[type, None] = {kind: None}
    for hint in get_type_hints(kind).values():
        for each in (hint, *get_args(hint)):
            if isinstance(each, type) and dataclasses.is_dataclass(each):
                found |= dict.fromkeys(nested_dataclasses(each))
    return tuple(found)


def command_flags(settings: Any) -> list[str]:
    """Return the settings as arguments of a command line, without those that are None."""
    found: list[str] = []
    for flag, value in flag_values(settings).items():
        if isinstance(value, tuple):
            found += [part for each in value for part in (flag, str(each))]
        elif value is True:
            found.append(flag)
        elif value is not None and value is not False:  # a flag that is not given is off
            found += [flag, str(value)]
    return found


def flag_values(settings: Any) -> dict[str, Any]:
    """Return the value of every flag, by its name on the command line; those of nested dataclasses first."""
    nested: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if dataclasses.is_dataclass(value):
            nested |= flag_values(value)
        else:
            own[f"--{each.name.replace('_', '-')}"] = value
    return nested | own
