"""Settings of the task `classify`."""

from dataclasses import dataclass, field
from typing import Annotated

from jaxformer import schema
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.tasks.row_settings import RowSettings
from jaxformer.tasks.settings import TrainSettings, check_dropout, check_sizes
from jaxformer.tasks.start import StartSettings
from jaxformer.training import OptimizerConfig


@dataclass(frozen=True)
class LabelledSettings(RowSettings):
    """The texts with labels, and how they are cut into tokens."""

    data: Annotated[str | None, optional("FILE")] = None
    """texts with labels to train on: .tsv (text TAB label), or .jsonl (text, or sentence, and label)"""
    max_length: int = 128
    """the most tokens of a text; what is beyond is cut off, and counted"""


@dataclass(frozen=True)
class ClassifierSettings:
    """The model; sizes are for a new one."""

    layers: Annotated[int | None, optional("INT")] = None
    """layers of a new encoder (default: 4)"""
    dim: Annotated[int | None, optional("INT")] = None
    """its width (default: 128)"""
    heads: Annotated[int | None, optional("INT")] = None
    """its attention heads (default: 4)"""
    dropout: Annotated[float | None, optional("FLOAT")] = None
    """dropout rate (default: 0.1, or that of --model)"""

    def __post_init__(self) -> None:
        """Raise InputError for impossible sizes and rates."""
        check_sizes(self)
        check_dropout(self.dropout)


@dataclass(frozen=True)
class ClassificationSettings(TrainSettings):
    """Settings of a run on texts with labels."""

    text: LabelledSettings = field(default_factory=LabelledSettings)
    start: StartSettings = field(default_factory=StartSettings)
    model: ClassifierSettings = field(default_factory=ClassifierSettings)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))
    evaluate_every: int = 200
    """steps between evaluations on the validation texts"""

    def __post_init__(self) -> None:
        """Raise InputError for settings that cannot be trained."""
        super().__post_init__()
        schema.check_range("evaluate_every", self.evaluate_every, 1)
        sizes = {f"--{name}": getattr(self.model, name) for name in ("layers", "dim", "heads")}
        own = next((flag for flag, value in {**sizes, "--tokenizer": self.text.tokenizer}.items() if value), None)
        if self.start.model is not None and own is not None:
            raise InputError(f"{own} is for new models, and --model has its own: leave one of them out")
