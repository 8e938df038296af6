"""Fine-tune an encoder to classify texts, here and in transformers, from the same weights and on the same batches.

    python benchmarks/classify.py --model FOLDER --train train.tsv --held-out test.tsv

Both train all weights without dropout, so that nothing but rounding tells them apart: the accuracies on the held-out
texts should agree. The new head and the order of the texts are drawn by seed.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
import tyro
from common import TORCH_DEVICE, conditions, prepare_training

from jaxformer.cli.runs import fresh_state
from jaxformer.tasks import loss_function
from jaxformer.tasks.classification import ClassifyTask, accuracy
from jaxformer.tasks.classification_settings import ClassificationSettings, ClassifierSettings, LabelledSettings
from jaxformer.tasks.start import StartSettings
from jaxformer.training import OptimizerConfig, learning_rates, make_optimizer, make_train_step

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Arguments:
    """Fine-tune the same encoder here and in transformers."""

    model: str
    """checkpoint folder of a BERT, RoBERTa or DistilBERT"""
    train: Path
    """texts to train on: .tsv, text TAB label"""
    held_out: Path
    """texts to compare accuracies on"""
    seeds: int = 3
    """runs of each"""
    steps: int = 430
    """training steps"""
    batch_size: int = 32
    """texts per step"""
    learning_rate: float = 5e-5
    """the largest learning rate, after a tenth of the steps"""
    output: Path = Path("docs/benchmarks/classify.md")
    """where the table is written"""


def main(arguments: Arguments) -> None:
    """Train both with each seed, and write the table."""
    prepare_training()
    rows = []
    for seed in range(arguments.seeds):
        task = ClassifyTask(settings(arguments, seed))
        with tempfile.TemporaryDirectory() as folder:
            write_start(task, Path(folder))
            rows.append((seed, *ours(task), *theirs(task, Path(folder) / "model")))
        print("seed {}: ours {:.2f} % in {:.0f} s, transformers {:.2f} % in {:.0f} s".format(*rows[-1]), flush=True)
    arguments.output.write_text(table(arguments, rows))
    print(arguments.output)


def settings(arguments: Arguments, seed: int) -> ClassificationSettings:
    """Return the settings of a run without dropout."""
    return ClassificationSettings(
        text=LabelledSettings(data=str(arguments.train), validation=str(arguments.held_out)),
        start=StartSettings(arguments.model),
        model=ClassifierSettings(dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=arguments.learning_rate, warmup_steps=arguments.steps // 10),
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=seed,
    )


def write_start(task: ClassifyTask, folder: Path) -> None:
    """Write the checkpoint with the new head that training starts with."""
    trainable = task.trainable(task.config)
    task.export(folder, trainable.params, trainable.assemble(trainable.params, trainable.frozen))


def batches(task: ClassifyTask) -> Iterator[Batch]:
    """Yield the batches of a run."""
    return islice(task.batches("train"), task.settings.steps)


def ours(task: ClassifyTask) -> tuple[float, float]:
    """Return the accuracy on the held-out texts in percent, and the seconds of training."""
    config, steps = task.settings.optimizer, task.settings.steps
    trainable, state = fresh_state(task, task.config)
    step = make_train_step(loss_function(task, trainable), make_optimizer(config, steps), learning_rates(config, steps))
    start = time.perf_counter()
    for batch in batches(task):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    return 100 * accuracy(task.confusion(trainable.assemble(state.params, trainable.frozen))[1]), seconds


def theirs(task: ClassifyTask, folder: Path) -> tuple[float, float]:
    """Return the same of transformers."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).to(TORCH_DEVICE).eval()
    config, steps = task.settings.optimizer, task.settings.steps
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and "token_type" not in name]
    others = [p for p in model.parameters() if not any(p is other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer, rates = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, config.beta2)), learning_rates(config, steps)
    start = time.perf_counter()
    for number, batch in enumerate(batches(task)):
        for group in optimizer.param_groups:
            group["lr"] = np.asarray(rates(number)).item()
        logits, labels = forward(model, batch)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        right = [hit for batch in task.batches("validation") for hit in hits(*forward(model, batch))]
    return 100 * statistics.mean(right), seconds


def forward(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [R, classes] and labels [R] of the rows of a batch that hold a text."""
    tensors = {name: torch.tensor(array, device=TORCH_DEVICE) for name, array in batch.items()}
    real = tensors["labels"][:, 0] >= 0
    logits = model(input_ids=tensors["source"][real].long(), attention_mask=tensors["source_mask"][real].long()).logits
    return logits, tensors["labels"][real, 0].long()


def hits(logits: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Return 1 for each row whose label is the most likely one, else 0."""
    return (logits.argmax(-1) == labels).int().tolist()


def table(arguments: Arguments, rows: list[tuple[int, float, float, float, float]]) -> str:
    """Return the results as Markdown."""
    own, other = (statistics.mean(row[place] for row in rows) for place in (1, 3))
    lines = [
        "# An encoder that learns to classify, here and in transformers",
        "",
        f"`{Path(arguments.model).resolve().parent.name}`, {arguments.steps} steps of {arguments.batch_size} texts, "
        f"float32, no dropout, largest rate {arguments.learning_rate:g}; the same first weights and batches.",
        conditions(),
        "",
        "| seed | jaxformer, % right | transformers, % right | seconds, with compiling | seconds, transformers |",
        "|---|---|---|---|---|",
        *(f"| {seed} | {a:.2f} | {b:.2f} | {s:.0f} | {t:.0f} |" for seed, a, s, b, t in rows),
        f"| mean | {own:.2f} | {other:.2f} | | |",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
