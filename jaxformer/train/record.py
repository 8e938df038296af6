"""What a run writes down: a progress bar, metrics.jsonl and evaluations.jsonl, TensorBoard."""

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

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
Line = dict[str, Any]


class Recorder:
    """The record of one run: each step is one line of `metrics.jsonl`, and moves the progress bar.

    In models with experts a line says under "expert_load", by layer, which share of the choices fell on each of them.

    Each look at held-out data is one line of `evaluations.jsonl`.
    """

    def __init__(self, folder: Path, *, first_step: int, steps: int, tensorboard: bool = False):
        self.board = open_tensorboard(folder) if tensorboard else None
        self.folder = folder
        self.earlier = keep_lines(folder / METRICS, first_step)
        self.evaluations = keep_lines(folder / EVALUATIONS, first_step)
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

    def write(self, step: int, metrics: Metrics, tokens: int, *, spike: bool = False) -> Line:
        """Record a step that trained on so many real target tokens; waits until it is computed."""
        values = {name: value.item() for name, value in metrics._asdict().items() if name != "loads"}
        loads = {layer: [round(share, 4) for share in load.tolist()] for layer, load in (metrics.loads or {}).items()}
        elapsed, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        line = {"step": step} | values | {"spike": int(spike), "tokens_per_second": round(tokens / elapsed, 1)}
        self.file.write(as_json(line | ({"expert_load": loads} if loads else {})))
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

    def write_evaluation(self, step: int, found: Line) -> Line:
        """Record what was found on held-out data after a step; the time that it took counts for no step."""
        line = {"step": step} | found
        with (self.folder / EVALUATIONS).open("a") as file:
            file.write(as_json(line))
        numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
        said = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers.items())
        self.bar.write(f"step {step}, held out: {said}", file=sys.stderr)
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(f"held-out/{name}", value, step)
        self.clock = time.perf_counter()
        return line


def as_json(line: Line) -> str:
    """A line of a metrics file. JSON has no word for what is not finite: null."""
    finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in line.items()}
    return json.dumps(finite) + "\n"


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
