"""Training on sequences of symbols: copy, reverse, sort, and what one adds to them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np

from jaxformer.cli.evaluate import exact
from jaxformer.cli.invocation import command_line
from jaxformer.cli.kind import Kind, Outcome, Prepared, Run, check_settings, predicting
from jaxformer.cli.terminal import optional
from jaxformer.config import Placement, TransformerConfig
from jaxformer.data import BOS, EOS, PAD, TASKS, Symbols, Task, held_out, training_batches
from jaxformer.data.pipeline import IGNORED
from jaxformer.errors import InputError
from jaxformer.generation import GenerationConfig
from jaxformer.model import Transformer
from jaxformer.presets import encoder_decoder
from jaxformer.schema import check_range
from jaxformer.training import OptimizerConfig

HELD_OUT = 1000
MAX_WIDTH, MAX_DEPTH = 1 << 20, 256  # of the model; also the width inside of a feed-forward network


@dataclass(frozen=True)
class ModelSettings:
    """The model's size."""

    dim: int = 128
    """model width"""
    layers: int = 2
    """layers of the encoder, and as many of the decoder"""
    heads: int = 8
    """attention heads; they must divide the width"""
    hidden: Annotated[int | None, optional("INT")] = None
    """inner width of the feed-forward network (default: 4 x dim)"""
    placement: Placement = "pre"
    """norm before each sub-layer, or after each residual sum as in the paper"""
    dropout: float = 0.0
    """dropout rate on embeddings, sub-layers and attention weights"""

    def __post_init__(self) -> None:
        """Refuse sizes below 1, and beyond all that is built."""
        most = {"dim": MAX_WIDTH, "layers": MAX_DEPTH, "heads": MAX_WIDTH, "hidden": MAX_WIDTH}
        for name, bound in most.items():
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1, bound)


@dataclass(frozen=True)
class SequenceSettings:
    """All that decides how a run on a sequence task goes: equal settings, equal parameters, bit for bit."""

    text: Symbols = field(default_factory=Symbols)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 800
    """training steps"""
    batch_size: int = 64
    """sequences per step"""
    accumulate: int = 1
    """parts into which a batch is cut, to be computed one after the other in less memory"""
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
        check_settings(self)
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


def default(task_name: str) -> SequenceSettings:
    """The settings of a task unless flags say otherwise."""
    # Sorting weighs every symbol against every other, and takes longer to learn than copying and reversing.
    return SequenceSettings(steps=1000) if task_name == "sort" else SequenceSettings()


def about(task_name: str) -> str:
    """What the task is, for the help text."""
    return f"Train an encoder-decoder on the task {task_name}: {TASKS[task_name].__doc__}"


def prepare(task_name: str, settings: SequenceSettings, _: Path | None) -> Prepared:
    """Batches drawn without end; every position of the answer predicts the next token."""

    def forward(model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, dict]:
        source = batch["source"]
        return model(source, batch["target"], inputs_mask=source != PAD, dropout_key=key), {}

    return Prepared(
        config=settings.transformer,
        batches=training_batches(TASKS[task_name](settings.text), settings.batch_size, settings.seed),
        loss=predicting(forward, settings, settings.label_smoothing),
        row_tokens=settings.text.max_length + 1,
        tokens=lambda batch: int((batch["labels"] != IGNORED).sum()),
    )


def open_task(task_name: str, settings: SequenceSettings, _: Path) -> tuple[Task, GenerationConfig]:
    """The task, its special tokens and its length limit."""
    longest = settings.text.max_length + 1  # and EOS
    generation = GenerationConfig(
        max_new_tokens=longest, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=BOS, decoder_start_token_id=BOS
    )
    return TASKS[task_name](settings.text), generation


def evaluate(run: Run) -> Outcome:
    """How many held-out sequences the model answers exactly."""
    batch = held_out(run.task, HELD_OUT, run.settings.seed)
    correct = exact(run.model, batch, run.generation)
    share = float(np.mean(correct))
    said = f"held-out: {correct.sum()} of {len(correct)} sequences exactly right ({share:.1%}, greedy)"
    return Outcome({"held_out": len(correct), "exact": share}, [said], f"{command_line('generate')} --beam 4")


CLASSES = (SequenceSettings, Symbols, ModelSettings, OptimizerConfig)
SEQUENCES = Kind(CLASSES, default, about, prepare, open_task, evaluate)
