"""What a run writes down: a progress bar, metrics.jsonl and evaluations.jsonl, TensorBoard."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from jaxformer.errors import InputError, shortened
from jaxformer.extras import require_extra
from jaxformer.interrupts import FAREWELL
from jaxformer.schema import Field, Schema, count, integer, is_integer, is_number, parse_json, read, require, text
from jaxformer.training.step import Metrics

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
Line = dict[str, Any]


def is_real(value: Any) -> bool:
    """Return whether a value is a number, or null for one that is not finite."""
    return value is None or isinstance(value, float) or (is_integer(value) and abs(value) < 2**63)


def is_load(value: Any) -> bool:
    """Return whether a value is an object with a list of numbers under the number of each layer."""
    return isinstance(value, dict) and all(
        layer.isascii() and layer.isdecimal() and isinstance(shares, list) and shares and all(map(is_number, shares))
        for layer, shares in value.items()
    )


REAL = Field(None, "a number or null", is_real)
FIELDS: dict[str, Schema] = {
    METRICS: {
        **dict.fromkeys(("loss", "grad_norm", "update_ratio", "learning_rate", "tokens_per_second", "mfu"), REAL),
        "step": count(1),
        "skipped": integer(0),
        "spike": integer(0, 0, 1),
        "expert_load": Field(None, "an object with a list of numbers for each layer", is_load),
    },
    EVALUATIONS: {
        **dict.fromkeys(("loss", "perplexity", "bits_per_byte"), REAL),
        "step": count(1),
        "sample": text(""),
    },
}
REQUIRED = {METRICS: ("step", "loss", "skipped"), EVALUATIONS: ("step", "loss")}


class MetricLogger:
    """The record of one run: each step is one line of `metrics.jsonl`, and moves the progress bar.

    In models with experts a line says under "expert_load", by layer, which share of the choices fell on each of them.

    Each look at held-out data is one line of `evaluations.jsonl`.

    Args:
        folder: Where the files are.
        first_step: Number of steps that were taken before.
        steps: Number of steps in all, for the bar.
        tensorboard: Whether to write events for TensorBoard.
        peak: FLOP per second of all devices, see `peak_flops`. None: it is not known.
    """

    def __init__(
        self, folder: Path, *, first_step: int, steps: int, tensorboard: bool = False, peak: float | None = None
    ):
        self.peak = peak
        self.board = open_tensorboard(folder) if tensorboard else None
        self.folder = folder
        self.earlier = keep_lines(folder / METRICS, first_step)
        self.evaluations = keep_lines(folder / EVALUATIONS, first_step)
        self.file = (folder / METRICS).open("ab", buffering=0)  # so that a killed run leaves whole lines
        interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds between two drawings: few, where each is a line
        FAREWELL.bar = True
        self.bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=interval)
        self.clock = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        FAREWELL.bar = False
        self.file.close()
        if self.board is not None:
            self.board.close()

    def write(
        self, step: int, metrics: Metrics, tokens: int, *, spike: bool = False, flops: float | None = None
    ) -> Line:
        """Record a step; waits until it is computed.

        Args:
            step: Its number.
            metrics: What was measured.
            tokens: Number of real target tokens that it trained on.
            spike: Whether its loss stands out.
            flops: FLOPs that the model needs for it. None: unknown.

        Returns:
            The line, with "mfu" where FLOPs and the devices' peak are known: the share of the peak that was used.
        """
        values = {name: value.item() for name, value in metrics._asdict().items() if name != "loads"}
        loads = {layer: [round(share, 4) for share in load.tolist()] for layer, load in (metrics.loads or {}).items()}
        elapsed, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        line = {"step": step} | values | {"spike": int(spike), "tokens_per_second": round(tokens / elapsed, 1)}
        if flops is not None and self.peak is not None:
            line["mfu"] = round(flops / elapsed / self.peak, 4)
        append(self.file, as_json(line | ({"expert_load": loads} if loads else {})))
        self.bar.set_postfix_str(
            f"loss {line['loss']:.4f}, rate {line['learning_rate']:.1e}, gradient {line['grad_norm']:.2f}, "
            f"{line['tokens_per_second']:,.0f} tokens/s" + (f", MFU {line['mfu']:.0%}" if "mfu" in line else ""),
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
        with (self.folder / EVALUATIONS).open("ab", buffering=0) as file:
            append(file, as_json(line))
        numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
        text = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers.items())
        self.bar.write(f"step {step}, held out: {text}", file=sys.stderr)
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(f"held-out/{name}", value, step)
        self.clock = time.perf_counter()
        return line


def as_json(line: Line) -> str:
    """Return a line of a metrics file. JSON has no word for what is not finite: null."""
    finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in line.items()}
    return json.dumps(finite) + "\n"


def append(file: Any, line: str) -> None:
    """Write a line at the end of an unbuffered file. Raises OSError with the name of the file."""
    data = line.encode()
    with naming(file.name):
        while data:
            data = data[file.write(data) :]


@contextmanager
def naming(path: Path | str) -> Generator[None]:
    """Put the name of a file into an OSError that has none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_lines(path: Path, *, notify: Callable[[str], None] | None = None) -> Iterator[Line]:
    """Yield the lines of a metrics file, null as NaN.

    A last line that a crash cut short is left out. So is every line that is damaged: not UTF-8, no JSON object, a key
    missing or of another type.

    Args:
        path: `metrics.jsonl` or `evaluations.jsonl` of a run; it may be missing.
        notify: Receives one line for people if lines are damaged.
    """
    if not path.exists():
        return
    damaged: list[str] = []
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            try:
                line = parse_line(path.name, data)
            except InputError as error:
                if data.endswith(b"\n"):
                    damaged.append(f"line {number} {error}")
                continue
            yield {name: math.nan if value is None else value for name, value in line.items()}
    if damaged and notify is not None:
        left_out = "line is damaged and" if len(damaged) == 1 else "lines are damaged and"
        notify(f"{path}: {len(damaged)} {left_out} left out ({shortened(damaged[0], 150)})")


def parse_line(name: str, data: bytes) -> Line:
    """Return a line of the metrics file of this name. Raises InputError for one that is damaged."""
    line = parse_json(data)
    require(line, *REQUIRED.get(name, ()))
    read(line, FIELDS.get(name, {}))
    return line


def keep_lines(path: Path, last_step: int) -> list[Line]:
    """Remove the lines behind `last_step`, because a resumed run takes those steps again; return what remains."""
    lines = [line for line in read_lines(path, notify=say) if line["step"] <= last_step]
    replace_text(path, "".join(map(as_json, lines)))
    return lines


def say(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr)


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all: a crash or a full disk leaves what was there before."""
    unfinished = path.with_name(path.name + ".part")
    try:
        with naming(path):
            # Names of files may have bytes that are not UTF-8, which are half surrogates here.
            unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def open_tensorboard(folder: Path) -> Any:
    """Return a TensorBoard writer. Raises MissingPackageError if the package is missing."""
    require_extra("tensorboard", "--tensorboard")
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder))
