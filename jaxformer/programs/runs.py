"""Runs on disk: a folder with its description, checkpoints, metrics and results."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import tyro
from flax import nnx

from jaxformer.config import Placement, TransformerConfig, from_dict, to_dict
from jaxformer.data import BOS, EOS, PAD, TASKS, Symbols, Task
from jaxformer.decode import GenerationConfig
from jaxformer.errors import InputError
from jaxformer.model import Transformer
from jaxformer.presets import encoder_decoder
from jaxformer.train import Checkpoints, OptimizerConfig, TrainState, init_state, make_optimizer, replace_text

ROOT = Path("runs")
DESCRIPTION, RESULTS, CHECKPOINTS = "run.json", "results.json", "checkpoints"


@dataclass(frozen=True)
class ModelSettings:
    """The model's size."""

    dim: int = 128
    """model width"""
    layers: int = 2
    """layers of the encoder, and as many of the decoder"""
    heads: int = 8
    """attention heads; they must divide the width"""
    hidden: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """inner width of the feed-forward network (default: 4 x dim)"""
    placement: Placement = "pre"
    """norm before each sub-layer, or after each residual sum as in the paper"""
    dropout: float = 0.0
    """dropout rate on embeddings, sub-layers and attention weights"""

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in ("dim", "layers", "heads", "hidden"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Settings:
    """All that decides how a run on a sequence task goes: equal settings, equal parameters, bit for bit."""

    text: Symbols = field(default_factory=Symbols)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 800
    """training steps"""
    batch_size: int = 64
    """sequences per step"""
    label_smoothing: float = 0.0
    """share of the target probability spread over all tokens (the paper: 0.1)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type to compute in; weights are kept in float32"""
    seed: int = 0
    """seed of the initial weights, the data and dropout"""
    save_every: int = 200
    """steps between checkpoints"""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be at least 0 and below 2^32, not {self.seed}")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")

    @property
    def transformer(self) -> TransformerConfig:
        """The model that these settings describe: one vocabulary, one table for encoder, decoder and output."""
        return encoder_decoder(
            self.text.vocab_size,
            dim=self.model.dim,
            layers=self.model.layers,
            heads=self.model.heads,
            hidden=self.model.hidden,
            placement=self.model.placement,
            dropout=self.model.dropout,
        )


# Sorting weighs every symbol against every other, and takes longer to learn than copying and reversing.
DEFAULTS = {"sort": Settings(steps=1000)}
SETTINGS_CLASSES = (Settings, Symbols, ModelSettings, OptimizerConfig)


@dataclass(frozen=True)
class Run:
    """A trained model with the task it was trained on and how it generates."""

    folder: Path
    task_name: str
    task: Task
    settings: Settings
    model: Transformer

    @property
    def generation(self) -> GenerationConfig:
        """Special tokens and length limit of the task."""
        longest = self.task.text.max_length + 1  # and EOS
        return GenerationConfig(
            max_new_tokens=longest, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=BOS, decoder_start_token_id=BOS
        )


def fresh_state(settings: Settings) -> tuple[Any, TrainState]:
    """The structure of the model, and the training state before the first step."""
    graphdef, params = nnx.split(Transformer(settings.transformer, rngs=nnx.Rngs(settings.seed)))
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    return graphdef, init_state(nnx.to_pure_dict(params), optimizer, settings.seed)


def describe(folder: Path, task_name: str, settings: Settings) -> None:
    """Write what the run is, so that its checkpoints can be opened by themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"version": version("jaxformer"), "task": task_name, "settings": to_dict(settings)}
    replace_text(folder / DESCRIPTION, json.dumps(about, indent=1) + "\n")


def read_description(folder: Path) -> tuple[str, Settings]:
    """Task and settings of the run in a folder. Raises InputError where there is none that can be read."""
    try:
        about = json.loads((folder / DESCRIPTION).read_text())
        task, settings = about["task"], from_dict(about["settings"], SETTINGS_CLASSES)
    except FileNotFoundError:
        raise InputError(f"{folder} is not a run: it has no {DESCRIPTION}; train one with train.py") from None
    except (ValueError, KeyError) as error:
        raise InputError(f"{folder / DESCRIPTION} cannot be read: {error}") from None
    if task not in TASKS:
        raise InputError(
            f"{folder} was trained on the task {task!r}, which is unknown here: known are {', '.join(TASKS)}"
        )
    return task, settings


def runs_in(root: Path, task_name: str | None = None) -> Iterator[Path]:
    """The runs below a folder, newest first; only those of one task if it is named."""
    found = sorted(root.glob(f"*/{DESCRIPTION}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        if task_name is None or read_description(path.parent)[0] == task_name:
            yield path.parent


def steps_taken(folder: Path) -> int:
    """The step of the newest complete checkpoint of a run, 0 before the first."""
    with Checkpoints(folder / CHECKPOINTS, writable=False) as checkpoints:
        return checkpoints.latest or 0


def newest_finished(root: Path = ROOT) -> Path:
    """The run below a folder that was finished last; if none was, the newest that has a complete checkpoint.

    Raises InputError where there is neither.
    """
    finished = sorted(root.glob(f"*/{RESULTS}"), key=lambda path: path.stat().st_mtime)
    found = finished[-1].parent if finished else next(filter(steps_taken, runs_in(root)), None)
    if found is None:
        raise InputError(f"no finished run in {root}/: train one first with python train.py --task copy")
    return found


def open_run(folder: Path | None = None) -> Run:
    """The run in a folder, at its newest checkpoint; without a folder the run below `runs/` that was finished last."""
    folder = newest_finished() if folder is None else folder
    task_name, settings = read_description(folder)
    graphdef, state = fresh_state(settings)
    with Checkpoints(folder / CHECKPOINTS, writable=False) as checkpoints:
        params = checkpoints.restore(state)[0].params
    return Run(folder, task_name, TASKS[task_name](settings.text), settings, nnx.merge(graphdef, params))


def compute_type(settings: Settings) -> jnp.dtype:
    """The type that a run computes in."""
    return jnp.dtype(settings.dtype)
