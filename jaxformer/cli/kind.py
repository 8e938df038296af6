"""What the programs must know of a kind of task, sequences of symbols or text, to train and evaluate on it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import TransformerConfig
from jaxformer.data.pipeline import IGNORED
from jaxformer.errors import InputError
from jaxformer.generation import GenerationConfig
from jaxformer.model import Transformer
from jaxformer.ops import Routing, cross_entropy, expert_load
from jaxformer.schema import check_range, shown
from jaxformer.training import BalanceConfig, Loss, LossFunction, OptimizerConfig, cast, penalty
from jaxformer.training.loop import Batches

Number = int | float
MAX_ROWS = 1 << 20  # of a batch


class Settings(Protocol):
    """What the settings of every kind of task have, beside their own: equal settings, equal parameters, bit for bit."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """How parameters are updated."""
        ...

    @property
    def steps(self) -> int:
        """Training steps."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        ...

    @property
    def accumulate(self) -> int:
        """Parts into which a batch is cut."""
        ...

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Type to compute in."""
        ...

    @property
    def seed(self) -> int:
        """Seed of all that is random."""
        ...

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""
        ...


@dataclass(frozen=True)
class Run:
    """A trained model with its settings, the task that it was trained on, and how it generates.

    task: a `jaxformer.data.Task` for sequences of symbols, a `jaxformer.data.Tokenizer` for text.
    """

    folder: Path
    task_name: str
    settings: Any
    model: Transformer
    task: Any
    generation: GenerationConfig


@dataclass(frozen=True)
class Prepared:
    """All that a run needs before its first step.

    row_tokens: the length of a row of a batch. tokens: how many real target tokens a batch holds. evaluate: what the
    parameters reach on held-out data, every `evaluate_every` steps. adjust: what a step changes beside what the
    optimiser does. write: puts into a run's folder what its model cannot be used without.
    """

    config: TransformerConfig
    batches: Batches
    loss: Callable[[Any], LossFunction]
    row_tokens: int
    tokens: Callable[[Any], int]
    evaluate: Callable[[Any], dict[str, Any]] | None = None
    evaluate_every: int = 1
    adjust: Callable[[Any, Any], Any] | None = None
    write: Callable[[Path], None] = lambda folder: None


@dataclass(frozen=True)
class Outcome:
    """What a trained model achieves on held-out data: numbers for the results file, lines for people, what to type."""

    results: dict[str, Number]
    lines: list[str]
    next_command: str


@dataclass(frozen=True)
class Kind:
    """A kind of task as functions of its settings, which are made of the dataclasses `classes`, the whole one first.

    prepare: (task, settings, folder of the run if there is one already) -> what training needs.
    open: (task, settings, folder of the run) -> what `Run.task` is, and how the model generates.
    """

    classes: tuple[type, ...]
    default: Callable[[str], Any]
    about: Callable[[str], str]
    prepare: Callable[[str, Any, Path | None], Prepared]
    open: Callable[[str, Any, Path], tuple[Any, GenerationConfig]]
    evaluate: Callable[[Run], Outcome]


def check_settings(settings: Settings) -> None:
    """Raise InputError for what cannot be trained."""
    for name in ("steps", "save_every"):
        check_range(name, getattr(settings, name), 1)
    for name in ("batch_size", "accumulate"):
        check_range(name, getattr(settings, name), 1, MAX_ROWS)
    if settings.batch_size % settings.accumulate:
        raise InputError(f"--accumulate {settings.accumulate} does not divide --batch-size {settings.batch_size}")
    if not 0 <= settings.seed < 2**32:
        raise InputError(f"seed must be at least 0 and below 2^32, not {shown(settings.seed)}")


def predicting(
    forward: Callable[[Transformer, Any, jax.Array | None], tuple[jax.Array, Mapping[int, Routing]]],
    settings: Settings,
    label_smoothing: float = 0.0,
    balance: BalanceConfig | None = None,
) -> Callable[[Any], LossFunction]:
    """The function to minimise, given the structure of the model: every position predicts its label.

    forward: (model, batch, dropout key) -> logits for batch["labels"], and where layers with experts sent the tokens.
    balance: what keeps these experts equally busy.
    """

    def make(graphdef: Any) -> LossFunction:
        def loss(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Loss]:
            model = nnx.merge(graphdef, cast(params, jnp.dtype(settings.dtype)))
            (logits, routing), labels = forward(model, batch, key), batch["labels"]
            plain = cross_entropy(logits, labels)
            smoothed = cross_entropy(logits, labels, label_smoothing=label_smoothing) if label_smoothing else plain
            loads = {}
            for layer, routes in routing.items():
                tokens = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), routes)
                loads[layer] = expert_load(tokens.experts, tokens.logits.shape[-1])
                smoothed += 0.0 if balance is None else penalty(balance, tokens)
            return smoothed, Loss(plain, jnp.sum(labels != IGNORED), loads)

        return loss

    return make
