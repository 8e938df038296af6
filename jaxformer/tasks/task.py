"""The Task protocol: all that the programs know about what is trained."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx

from jaxformer import parallel
from jaxformer.config import TransformerConfig
from jaxformer.data.pipeline import ALONE, IGNORED, Process
from jaxformer.errors import InputError
from jaxformer.generation import GenerationConfig
from jaxformer.model import Transformer, abstract_model
from jaxformer.tasks.settings import TrainSettings
from jaxformer.training import Loss, Trainable, all_trainable
from jaxformer.visualize import Observation

Number = int | float
Split = Literal["train", "validation"]
S = TypeVar("S", bound=TrainSettings)
forward = jax.jit(Transformer.__call__, static_argnames="return_intermediates")


@dataclass(frozen=True)
class InputKind:
    """Form of a task's inputs to generate.py.

    Attributes:
        flag: The flag that gives an input: "input" or "prompt".
        content: What an input is, for messages.
        truncate: Whether inputs that are too long can be cut with --truncate.
        piped: Whether the lines of a pipe are read where no flag gives an input.
    """

    flag: Literal["input", "prompt"]
    content: str
    truncate: bool = False
    piped: bool = False


class EvalResult(NamedTuple):
    """Results of a trained model on held-out data.

    Attributes:
        metrics: Numbers for results.json and the report.
        lines: The same for people.
        generate_flags: Flags of `generate` to try next (None: the task generates nothing).
    """

    metrics: dict[str, Number]
    lines: list[str]
    generate_flags: str | None = None


@dataclass(frozen=True)
class Output:
    """A sequence that a model generated for an input. The fields are the keys of generate.py --json; str() shows it."""


class AttentionView(NamedTuple):
    """The attention of a model on one example.

    Attributes:
        answer: What the model read and generated, in one line.
        observations: Maps with the names of their tokens.
    """

    answer: str
    observations: tuple[Observation, ...]


class Task(ABC, Generic[S]):
    """A task: its data, model, loss and evaluation, and how a trained model is used.

    The programs know tasks by this class alone. Derive from it, or from a task that exists, and name the class on the
    command line: `python train.py --task my_file.py:MyTask`. Abstract methods are needed for training; a task that can
    generate defines `encode`, `generate` and `generation`, one that can be drawn `observe`.

    Args:
        settings: The settings of a run (default: `defaults`).
        folder: The folder of a run that has begun; what `save` wrote there is read from it.

    Attributes:
        name: The name of the task in messages and folders (default: that of the class, in lower case).
        defaults: The settings where no flag says otherwise. Its type defines the flags.
        reads: How generate.py gives the task its inputs.
        unit: What the loss is a mean over, in one word or two.
    """

    name: ClassVar[str]
    defaults: ClassVar[TrainSettings] = TrainSettings()
    reads: ClassVar[InputKind] = InputKind("input", "an input to answer")
    unit: ClassVar[str] = "token"

    def __init__(self, settings: S | None = None, folder: Path | None = None) -> None:
        self.settings: S = self.defaults if settings is None else settings  # pyrefly: ignore
        self.folder = folder

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def describe(cls) -> str:
        """Return what the task is, for the help text."""
        return f"Train on the task {cls.name}: {first_line(cls)}"

    @classmethod
    def defaults_for(cls, flags: Sequence[str]) -> TrainSettings:
        """Return the settings where no flag says otherwise, on a command line of these flags and values."""
        return cls.defaults

    # --- training

    @property
    @abstractmethod
    def config(self) -> TransformerConfig:
        """The model to train."""

    def trainable(self, config: TransformerConfig, *, abstract: bool = False) -> Trainable:
        """Return the model before the first step, and which of its parameters are trained.

        Args:
            config: The model, as `config` gives it.
            abstract: Whether trained parameters may be shapes and types, because a checkpoint takes their place.
        """
        return all_trainable(abstract_model(config) if abstract else new_model(config, self.settings.seed))

    @abstractmethod
    def batches(self, split: Split = "train", process: Process = ALONE) -> Iterator[Any]:
        """Return the batches of a part of the data: pytrees of arrays [B, ...].

        Args:
            split: "train": without end, with the methods `get_state` and `set_state`, as `batches_ahead` makes them.
                "validation": held-out data, once.
            process: Which rows of each batch to read, where several processes share them.
        """

    @abstractmethod
    def loss(self, model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Loss]:
        """Return the number to minimize and the loss to report, of a batch; it is compiled.

        Args:
            model: The model, in the type to compute in.
            batch: A batch of "train".
            key: The key of dropout (None: no dropout).
        """

    @abstractmethod
    def evaluate(self, model: Transformer) -> EvalResult:
        """Return what a trained model achieves on held-out data."""

    @property
    def evaluate_every(self) -> int | None:
        """Steps between calls of `validate` during training (None: never)."""
        return None

    def validate(self, model: Transformer) -> dict[str, Any]:
        """Return metrics of held-out data during training, the mean loss under "loss". See `evaluate_every`."""
        raise InputError(f"the task {self.name} has evaluate_every, but no method `validate`: define both")

    @property
    def adjust(self) -> Callable[[Any, Any], Any] | None:
        """A function (parameters, expert loads) -> parameters that follows each update of the optimizer."""
        return None

    @property
    def row_tokens(self) -> int:
        """The fewest tokens in a row of a batch, for the estimate of memory."""
        return 1

    def count_tokens(self, batch: Any) -> int:
        """Return the number of real target tokens in a batch, for the speed."""
        return int((batch["labels"] != IGNORED).sum())

    def changed_data(self) -> list[str]:
        """Return names of the parts of the data that changed since the run in `folder` began."""
        return []

    def save(self, folder: Path) -> None:
        """Write into the folder of a run what its model cannot be used without."""

    def export(self, folder: Path, params: Any, model: Transformer) -> list[str]:
        """Write the trained model into the folder of its run as others open it; return lines that say where it is.

        Args:
            folder: The folder of the run.
            params: The trained parameters.
            model: The model with them.
        """
        return []

    # --- use of a trained model

    @property
    def generation(self) -> GenerationConfig:
        """The settings of generation where no flag says otherwise."""
        return GenerationConfig()

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of an input, int32 [T]. Raises InputError for a text that the model cannot read."""
        raise InputError(f"the task {self.name} generates nothing: it has no method `encode`")

    def example_inputs(self) -> list[str]:
        """Return inputs for generate.py where none are given."""
        return []

    def generate(
        self, model: Transformer, inputs: Sequence[str], *, truncate: bool = False, **settings: Any
    ) -> Iterator[Sequence[Output]]:
        """Check the inputs, then return an iterator over the outputs of each, best first.

        Args:
            model: A trained model.
            inputs: Texts.
            truncate: Cut inputs that are too long.
            **settings: Names and values of `GenerationConfig`, in place of those in `generation`.

        Raises:
            InputError: An input or a setting cannot be used.
        """
        raise InputError(f"the task {self.name} generates nothing: it has no method `generate`")

    def stream(self, model: Transformer, text: str, *, truncate: bool = False, **settings: Any) -> Iterator[str] | None:
        """Return the output for one input as parts of a text, each as soon as it is there; None: see `generate`."""
        return None

    def summarize(self, outputs: Sequence[Sequence[Output]]) -> str | None:
        """Return a line about the outputs of all inputs, or None."""
        return None

    def observe(self, model: Transformer, text: str | None) -> AttentionView:
        """Return the attention of a model on an input (None: on held-out data)."""
        raise InputError(f"attention on the task {self.name} cannot be drawn: it has no method `observe`")


def first_line(thing: type) -> str:
    """Return the first line of a docstring."""
    return (thing.__doc__ or "").strip().partition("\n")[0]


def first_row(maps: Sequence[jax.Array]) -> list[np.ndarray]:
    """Return the attention maps of the first sequence of a batch: L arrays [N, T, S] from arrays [B, N, T, S]."""
    return [np.asarray(layer[0]) for layer in maps]


def new_model(config: TransformerConfig, seed: int) -> Transformer:
    """Return a model of new weights, of which each device of the current mesh makes its part."""

    def make() -> Transformer:
        return Transformer(config, rngs=nnx.Rngs(seed))

    mesh = parallel.current_mesh()
    if mesh is None:
        return make()
    return jax.jit(make, out_shardings=parallel.shardings(abstract_model(config), mesh, parallel.current_rules()))()
