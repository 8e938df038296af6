"""Running the programs as a user does: a new process, in a folder of its own."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer.cli import terminal
from jaxformer.cli.runs import open_run

REPOSITORY = Path(__file__).parents[1]
# A model so small that most of the time is starting Python: 6 symbols, 1 + 1 layers of width 16.
TINY = ["--symbols", "6", "--max-length", "5", "--dim", "16", "--layers", "1", "--heads", "2"]
TINY += ["--batch-size", "8", "--warmup-steps", "5"]


def command(script: str, *arguments: str) -> list[str]:
    """The command line of train.py or generate.py."""
    return [sys.executable, str(REPOSITORY / script), *arguments]


def typed(script: str) -> str:
    """What hints of train.py and generate.py say to type, as these tests start them."""
    return shlex.join(command(script))


def call(folder: Path, script: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script of the repository in `folder`."""
    return subprocess.run(
        command(script, *arguments), cwd=folder, input=stdin, capture_output=True, text=True, env=environment()
    )


def environment() -> dict[str, str]:
    """The environment of a plain shell, with Python's own warnings silent as they are there."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}


def refusal(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> str:
    """What a program says that refuses its input, called in this process; as `message` of one in another."""
    with pytest.raises(SystemExit) as stop:
        terminal.run(main)
    said = capsys.readouterr()
    return message(subprocess.CompletedProcess([], int(stop.value.code), said.out, said.err))


def message(result: subprocess.CompletedProcess[str]) -> str:
    """What a refused call says: one line on standard error, exit status 2, no traceback, nothing on standard output."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    return lines[0]


def parameters(run: Path) -> list[np.ndarray]:
    """The parameters at a run's newest checkpoint."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(open_run(run).model)]
