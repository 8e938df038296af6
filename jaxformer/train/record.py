"""What a run writes down: a progress bar, metrics.jsonl, TensorBoard, a picture of the loss."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from jaxformer.errors import InputError
from jaxformer.train.step import Metrics

METRICS = "metrics.jsonl"
Line = dict[str, float | int]


class Recorder:
    """The record of one run: each step is one line of `metrics.jsonl`, and moves the progress bar."""

    def __init__(self, folder: Path, *, first_step: int, steps: int, tensorboard: bool = False):
        self.board = open_tensorboard(folder) if tensorboard else None
        self.earlier = keep_lines(folder / METRICS, first_step)
        self.file = (folder / METRICS).open("a", buffering=1)  # by lines, so that a killed run leaves whole ones
        interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds between two drawings: few, where each is a line
        self.bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=interval)
        self.clock = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.file.close()
        if self.board is not None:
            self.board.close()

    def write(self, step: int, metrics: Metrics, tokens: int) -> Line:
        """Record a step that trained on so many real target tokens; waits until it is computed."""
        values = {name: value.item() for name, value in metrics._asdict().items()}
        elapsed, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        line = {"step": step} | values | {"tokens_per_second": round(tokens / elapsed, 1)}
        self.file.write(as_json(line))
        self.bar.set_postfix_str(
            f"loss {line['loss']:.4f}, rate {line['learning_rate']:.1e}, gradient {line['grad_norm']:.2f}, "
            f"{line['tokens_per_second']:,.0f} tokens/s",
            refresh=False,
        )
        self.bar.update()
        if self.board is not None:
            for name, value in line.items():
                self.board.add_scalar(name, value, step)
        return line


def as_json(line: Line) -> str:
    """A line of the metrics file. JSON has no word for what is not finite: null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in line.items()}) + "\n"


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a metrics file, null as NaN; one that a crash cut short ends the reading."""
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                return
            yield {name: math.nan if value is None else value for name, value in line.items()}


def keep_lines(path: Path, last_step: int) -> list[Line]:
    """Drop the lines behind `last_step`, because a resumed run takes those steps again; return what remains."""
    lines = [line for line in read_lines(path) if line["step"] <= last_step]
    replace_text(path, "".join(map(as_json, lines)))
    return lines


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all: a crash or a full disk leaves what was there before."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def open_tensorboard(folder: Path) -> Any:
    """A TensorBoard writer. Raises InputError if the package is missing."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the package tensorboardX: pip install 'jaxformer[tensorboard]'") from None
    return SummaryWriter(str(folder))


def draw_loss(folder: Path) -> Path:
    """Draw `loss.png`, the loss and the gradient norm of every step in `metrics.jsonl`, and return its path."""
    import matplotlib.figure  # imported here: it takes half a second, and only the end of a run needs it

    lines = list(read_lines(folder / METRICS))
    steps = [line["step"] for line in lines]
    figure = matplotlib.figure.Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(steps, [line["loss"] for line in lines], color="tab:blue", linewidth=1)
    above.set_yscale("log")
    above.set_ylabel("loss [nats per token]")
    rate = above.twinx()
    rate.plot(steps, [line["learning_rate"] for line in lines], color="tab:orange", linewidth=1)
    rate.set_ylabel("learning rate", color="tab:orange")
    below.plot(steps, [line["grad_norm"] for line in lines], color="tab:green", linewidth=1)
    below.set_yscale("log")
    below.set_ylabel("gradient norm")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    path = folder / "loss.png"
    figure.savefig(path, dpi=120)
    return path
