"""What both benchmarks need: fair timing of rivals side by side, and a table of the ratios."""

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any, NamedTuple

import jax
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MarianConfig, MarianMTModel
from transformers.utils import logging

from jaxformer import Transformer
from jaxformer.machine import keep_freed_memory
from jaxformer.pretrained import from_pretrained

PAUSE = 0.3  # seconds between two measurements, in which the threads of the one before stop spinning and go to sleep
EOS, PAD = 0, 1  # of Marian; PAD is what its decoder starts from, too
TORCH_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Row(NamedTuple):
    """One comparison: what was raced, against whom, and the seconds that both took in every round."""

    what: str
    rival: str
    ours: Sequence[float]
    theirs: Sequence[float]


def prepare() -> None:
    """All cores for PyTorch, as XLA takes them anyway, and true float32 products in both, on GPUs too."""
    torch.set_num_threads(cores())
    logging.disable_progress_bar()
    jax.config.update("jax_default_matmul_precision", "highest")


def prepare_training() -> None:
    """The same, and memory that stays for both, as train.py has it; call it before JAX starts its threads."""
    keep_freed_memory()
    prepare()


def random_marian(
    vocab_size: int, *, dim: int, layers: int, heads: int, dropout: float = 0.0, pad: int = PAD
) -> tuple[Any, Transformer]:
    """A Marian model of transformers with random weights, and ours read from the folder that it was saved to."""
    torch.manual_seed(0)
    theirs: Any = MarianMTModel(
        MarianConfig(
            vocab_size=vocab_size,
            d_model=dim,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * dim,
            decoder_ffn_dim=4 * dim,
            activation_function="relu",
            scale_embedding=True,
            dropout=dropout,
            attention_dropout=dropout,
            init_std=dim**-0.5,
            pad_token_id=pad,
            eos_token_id=EOS,
            decoder_start_token_id=pad,
            forced_eos_token_id=None,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs.to(TORCH_DEVICE), from_pretrained(folder).model


def random_gpt2() -> tuple[Any, Transformer]:
    """GPT-2 small of transformers with random weights, and ours read from the folder that it was saved to."""
    torch.manual_seed(0)
    theirs: Any = GPT2LMHeadModel(GPT2Config(initializer_range=0.05)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs.to(TORCH_DEVICE), from_pretrained(folder).model


def race(rivals: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds that each rival takes, in each of `runs` rounds.

    In a round every rival runs once, so that whatever else the machine does slows down all of them alike; a ratio
    within a round means more than any time. One round before the first compiles and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(runs + 1):
        for name, run in rivals.items():
            start = perf_counter()
            run()
            if number > 0:
                seconds[name].append(perf_counter() - start)
            sleep(PAUSE)
    return seconds


def compare(what: str, seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """The first entry of `seconds` against each of the others."""
    (_, ours), *others = seconds.items()
    return [Row(what, name, ours, theirs) for name, theirs in others]


def report(title: str, file: Path | None, rows: Sequence[Row], method: str) -> None:
    """Print the comparisons, and write them to `file` as Markdown if there is one."""
    header = ("jaxformer", "against", "times faster", "lowest to highest", "best / best")
    cells = [header, *(describe(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if file is None:
        return
    table = [f"| {' | '.join(line)} |" for line in cells]
    table.insert(1, "| --- | --- | ---: | ---: | ---: |")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join([f"# {title}", "\n".join(table), method, conditions()]) + "\n")
    print(f"written to {file}")


def describe(row: Row) -> tuple[str, ...]:
    """The cells of a comparison: the median of the ratios within rounds, their range, the ratio of the best times."""
    ratios = [theirs / ours for ours, theirs in zip(row.ours, row.theirs, strict=True)]
    best = min(row.theirs) / min(row.ours)
    return row.what, row.rival, f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}", f"{best:.2f}"


def conditions() -> str:
    """When, where and with what was measured."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "transformers"))
    return (
        f"Measured on {date.today()} on {processor()} ({cores()} cores, load {os.getloadavg()[0]:.1f}); "
        f"jax on {jax.devices()[0].device_kind}, PyTorch on {TORCH_DEVICE}; "
        f"Python {platform.python_version()}, {versions}."
    )


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
