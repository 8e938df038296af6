"""Measure the peak memory and the time of a training step of GPT-2 (124 M), here and in eager PyTorch, by shape.

    python benchmarks/memory.py

Each measurement runs in its own process and reads the largest resident memory at the end. That memory holds weights,
gradients, optimizer, activations, the compiled program and the libraries.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import jax
import numpy as np
import torch
import tyro
from common import conditions, prepare_training
from flax import nnx
from transformers import GPT2Config, GPT2LMHeadModel

from jaxformer import PRESETS, Transformer
from jaxformer.tasks import model_loss
from jaxformer.training import OptimizerConfig, init_state, learning_rates, make_optimizer, make_train_step

VOCABULARY = 50_257
RATE, STEPS = 1e-4, 1000  # learning rate, and steps of the schedule
Way = Literal["jaxformer", "pytorch"]


@dataclass(frozen=True)
class Arguments:
    """Measure memory and time of a training step."""

    shapes: tuple[str, ...] = ("4x256", "2x1024", "8x1024")
    """windows x tokens of a step"""
    steps: int = 2
    """steps that are timed"""
    output: Path = Path("docs/benchmarks/memory.md")
    """where the table is written"""
    way: Way | None = None
    """measure this way alone, in this process, with the first of the shapes, and print it as JSON"""


def main(arguments: Arguments) -> None:
    """Measure each shape both ways, each in its own process, and write the table."""
    if arguments.way is not None:
        print(json.dumps(measure(arguments.way, arguments.shapes[0], arguments.steps)))
        return
    found = {
        shape: {way: in_process(way, shape, arguments.steps) for way in ("jaxformer", "pytorch")}
        for shape in arguments.shapes
    }
    arguments.output.write_text(table(arguments, found))
    print(arguments.output.read_text())


def in_process(way: str, shape: str, steps: int) -> dict[str, float]:
    """Run `measure` in a separate process and return its numbers."""
    command = [sys.executable, __file__, "--shapes", shape, "--steps", str(steps), "--way", way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(way: Way, shape: str, steps: int) -> dict[str, float]:
    """Return the peak memory in bytes and the seconds of the fastest step."""
    prepare_training()
    rows, length = map(int, shape.split("x"))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (rows, length + 1), dtype=np.int32)
    step = our_step(tokens) if way == "jaxformer" else their_step(tokens)
    seconds = []
    for _ in range(steps + 1):  # the first one compiles
        start = perf_counter()
        step()
        seconds.append(perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak, "seconds": min(seconds[1:])}


def our_step(tokens: np.ndarray) -> Callable[[], None]:
    """Return a step of ours, as `train.py --task lm` takes it, without dropout."""
    graphdef, params = nnx.split(Transformer(PRESETS["gpt2"](VOCABULARY), rngs=nnx.Rngs(0)))
    config = OptimizerConfig(learning_rate=RATE)
    optimizer = make_optimizer(config, STEPS)

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        return model_loss(nnx.merge(graphdef, params), batch[:, :-1], labels=batch[:, 1:])

    step = make_train_step(loss, optimizer, learning_rates(config, STEPS))
    states = [init_state(params, optimizer, 0)]

    def take() -> None:
        state, metrics = step(states.pop(), tokens)
        states.append(state)
        metrics.loss.block_until_ready()

    return take


def their_step(tokens: np.ndarray) -> Callable[[], None]:
    """Return a step of PyTorch, without dropout, with a clipped gradient and fused AdamW."""
    model = GPT2LMHeadModel(GPT2Config()).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    batch = torch.tensor(tokens).long()

    def take() -> None:
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        del logits
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return take


def table(arguments: Arguments, found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Peak memory and time of a training step of GPT-2 (124 M)",
        "",
        "| windows x tokens | memory here | eager PyTorch | ratio | seconds here | eager PyTorch | times faster |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for shape, ways in found.items():
        ours, theirs = ways["jaxformer"], ways["pytorch"]
        lines.append(
            f"| {shape} | {ours['peak'] / 1e9:.2f} GB | {theirs['peak'] / 1e9:.2f} GB | "
            f"{ours['peak'] / theirs['peak']:.2f} | {ours['seconds']:.1f} | {theirs['seconds']:.1f} | "
            f"{theirs['seconds'] / ours['seconds']:.2f} |"
        )
    method = (
        "Largest resident memory of a process that takes a few steps: float32, AdamW, clipped gradient, no dropout; "
        f"the fastest of {arguments.steps} steps after the first."
    )
    return "\n".join([*lines, "", method, "", conditions(), ""])


if __name__ == "__main__":
    main(tyro.cli(Arguments))
