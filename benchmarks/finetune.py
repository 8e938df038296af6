"""Measure memory and time of a fine-tuning step: all weights, half of the blocks frozen, LoRA, LoRA over 8 bits.

    python benchmarks/finetune.py

Each way trains the same GPT-2 (124 million random weights) in a separate process, as `train.py --task lm --model` does.
Temporaries are the memory that the compiler allocates for a step in addition to its inputs.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np
import tyro
from common import conditions, prepare_training, random_gpt2

from jaxformer.cli.memory import bytes_of
from jaxformer.cli.runs import fresh_state
from jaxformer.data import train_tokenizer
from jaxformer.pretrained import as_pretrained, save_pretrained
from jaxformer.tasks import LanguageModelSettings, LanguageSettings, LanguageTask, TextSettings, loss_function
from jaxformer.tasks.start import StartSettings
from jaxformer.training import learning_rates, make_optimizer, make_train_step

LOWER_HALF = ("embedding", "decoder.positions", *(f"decoder.blocks.{number}" for number in range(6)))
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "upper half, `--freeze` for the rest": {"freeze": LOWER_HALF},
    "LoRA, `--lora 8`": {"lora": 8},
    "LoRA over 8 bits, `--lora 8 --weights int8`": {"lora": 8, "weights": "int8"},
}


@dataclass(frozen=True)
class Arguments:
    """Measure memory and time of a fine-tuning step."""

    batch_size: int = 4
    """windows per step"""
    context: int = 256
    """tokens per window"""
    steps: int = 6
    """steps that are timed"""
    output: Path = Path("docs/benchmarks/finetune.md")
    """where the table is written"""
    way: str = ""
    """measure this way alone, in this process, and print it as JSON"""
    folder: Path = Path()
    """where its model is"""


def main(arguments: Arguments) -> None:
    """Measure each way in its own process, and write the table."""
    if arguments.way:
        print(json.dumps(measure(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        found = {way: in_process(arguments, way, folder) for way in WAYS}
    arguments.output.write_text(table(arguments, found))
    print(arguments.output.read_text())


def write_model(folder: Path) -> None:
    """Write a GPT-2 of random weights with a tokenizer, and a text, into a folder."""
    words = np.random.default_rng(0).integers(0, 5_000, 40_000)
    (folder / "text.txt").write_text(" ".join(f"w{word}" for word in words))
    tokenizer = train_tokenizer("bpe", [(folder / "text.txt").read_text()], 4_000)
    lm = as_pretrained(random_gpt2()[1], tokenizer=tokenizer.backend)
    lm = replace(lm, generation=replace(lm.generation, eos_token_id=tokenizer.end))
    save_pretrained(lm, folder / "model")


def in_process(arguments: Arguments, way: str, folder: str) -> dict[str, float]:
    """Run `measure` for one way in a separate process and return its numbers."""
    sizes = ["--batch-size", str(arguments.batch_size), "--context", str(arguments.context)]
    command = [sys.executable, __file__, *sizes, "--steps", str(arguments.steps), "--way", way, "--folder", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: Arguments) -> dict[str, float]:
    """Return the number of trained parameters, bytes held and temporary, and seconds per step of one way."""
    prepare_training()
    task = LanguageTask(
        LanguageSettings(
            text=TextSettings(data=str(arguments.folder / "text.txt")),
            model=LanguageModelSettings(context=arguments.context),
            start=StartSettings(str(arguments.folder / "model"), **WAYS[arguments.way]),
            batch_size=arguments.batch_size,
            steps=arguments.steps + 2,
        )
    )
    trainable, state = fresh_state(task, task.config)
    settings = task.settings
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    step = make_train_step(
        loss_function(task, trainable), optimizer, learning_rates(settings.optimizer, settings.steps)
    )
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    held = bytes_of(state) + bytes_of(trainable.frozen)
    batches, seconds = iter(task.batches("train")), []
    batch = next(batches)
    compiled: Any = jax.jit(step).lower(state, batch).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    for _ in range(arguments.steps + 2):  # the first ones compile, and fill the memory
        batch = next(batches)
        start = perf_counter()
        state, metrics = step(state, batch)
        metrics.loss.block_until_ready()
        seconds.append(perf_counter() - start)
    return {"trained": trained, "held": held, "temporary": temporary, "seconds": min(seconds[2:])}


def table(arguments: Arguments, found: dict[str, dict[str, float]]) -> str:
    """Return the table as Markdown."""
    first = next(iter(found.values()))
    lines = [
        "# Fine-tuning GPT-2 (124 M): memory and time of a step",
        "",
        "| trained | parameters | weights and optimizer | temporaries | together | seconds per step | of all weights |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way, one in found.items():
        lines.append(
            f"| {way} | {one['trained'] / 1e6:.2f} M | {one['held'] / 1e9:.2f} GB | {one['temporary'] / 1e9:.2f} GB | "
            f"{(one['held'] + one['temporary']) / 1e9:.2f} GB | "
            f"{one['seconds']:.2f} | {one['seconds'] / first['seconds']:.2f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"{arguments.batch_size} windows of {arguments.context} tokens per step, float32, AdamW; the fastest of "
            f"{arguments.steps} steps.",
            "",
            conditions(),
            "",
        ]
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
