"""Starting generate.py: the first time, when all is compiled, and the second, when compiled programs are read."""

import os
import shutil
import string
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from common import Row, compare, prepare, race, report
from transformers import GPT2Config, GPT2LMHeadModel

from jaxformer.data import train_tokenizer

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Arguments:
    """Measure how long whole calls of generate.py take, from the shell and back."""

    rounds: int = 5
    """how often each takes its turn"""
    quick: bool = False
    """tiny models, one round, nothing written"""


def main(arguments: Arguments) -> None:
    """Race, print, and write the table."""
    if arguments.quick:
        arguments = replace(arguments, rounds=1)
    prepare()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        python(place, "train.py", "--task", "copy", "--steps", "20", *(["--dim", "32"] if arguments.quick else []))
        write_gpt2(place / "gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2} if arguments.quick else {})
        calls = {
            "the copy task, `--beam 4`": ["--checkpoint", "runs/copy", "--beam", "4"],
            "GPT-2 small, one prompt, 20 tokens": ["--model", "gpt2", "--prompt", "It is", "--max-new-tokens", "20"],
        }
        rows, times = [], []
        for what, flags in calls.items():
            rivals = {
                "second start": partial(python, place, "generate.py", *flags),
                "first start": partial(first_start, place, *flags),
            }
            compared = compare(what, race(rivals, arguments.rounds))
            rows += compared
            times += [seconds(row) for row in compared]
    method = (
        "Time of the first start of `generate.py`, which compiles, / time of the second, which reads what the first "
        f"has kept in the user's cache folder: the median of {arguments.rounds} interleaved rounds. In seconds: "
        f"{'; '.join(times)}."
    )
    report("Starting generate.py", None if arguments.quick else ROOT / "docs/benchmarks/start.md", rows, method)
    print(*times, sep="\n")


def write_gpt2(folder: Path, shape: dict[str, Any]) -> None:
    """A GPT-2 with random weights and a tokenizer of characters."""
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(folder)
    train_tokenizer("char", [string.ascii_letters + " "], 64).save(folder / "tokenizer.json")


def python(place: Path, script: str, *flags: str) -> None:
    """Run a script of the repository in a folder, with a cache folder that lies in it."""
    environment = os.environ | {"XDG_CACHE_HOME": str(place / "cache")}
    command = [sys.executable, str(ROOT / script), *flags]
    subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)


def first_start(place: Path, *flags: str) -> None:
    """Run generate.py as if it never had been."""
    shutil.rmtree(place / "cache", ignore_errors=True)
    python(place, "generate.py", *flags)


def seconds(row: Row) -> str:
    """The median times themselves."""
    return f"{row.what}: first {median(row.theirs):.1f} s, second {median(row.ours):.1f} s"


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Arguments.__doc__))
