"""Real processes that train together: as one process does, onto other numbers of them, through kills and notices."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import TINY, call, command, environment
from compilation import XLA_FLAGS

from jaxformer import InputError, parallel
from jaxformer.parallel.processes import started_by_a_manager

# Gloo gives a process half a minute to begin what the others compute: where more runs than they, that is too little.
pytestmark = [pytest.mark.slow, pytest.mark.alone]
PATIENCE = 120  # seconds


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder: Path, count: int, *arguments: str, devices: int = 2) -> list[subprocess.Popen[str]]:
    """Start processes that train together, with some devices each."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {XLA_FLAGS}", "OMP_NUM_THREADS": "1"}
    together = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(count), "--process"]
    return [
        subprocess.Popen(
            [*command("train.py", "--task", "copy", *TINY, "--output", "run", *arguments), *together, str(index)],
            cwd=folder,
            env=environment() | flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for all, and return status, output and messages of each."""
    said = [process.communicate(timeout=PATIENCE) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal())


def wait_for(run: Path, step: int) -> None:
    """Wait until a checkpoint of a step or of a later one is complete."""
    end = time.monotonic() + PATIENCE
    while not any(found >= step for found in (checkpoints(run) if run.exists() else [])):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process: eight steps, and four more."""
    folder = tmp_path_factory.mktemp("alone")
    done = call(folder, "train.py", "--task", "copy", *TINY, "--output", "run", "--steps", "8")
    assert done.returncode == 0, done.stderr
    go_on(folder, 12)
    return folder / "run"


def go_on(folder: Path, steps: int) -> None:
    """Resume a run in one process."""
    done = call(folder, "train.py", "--task", "copy", "--resume", "--output", "run", "--steps", str(steps))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("count", "mesh"), [(2, "data=2,tensor=2"), (4, "fsdp=8")])
def test_several_processes_have_the_losses_of_one_and_go_on_as_one(
    count: int, mesh: str, alone: Path, tmp_path: Path
) -> None:
    first, *others = finish(start(tmp_path, count, "--steps", "8", "--mesh", mesh))
    assert first[0] == 0, first[2]
    assert "held-out:" in first[1]
    for status, out, _ in others:
        assert status == 0
        assert "held-out:" not in out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"run.json", "metrics.jsonl", "results.json", "report.html"} <= names
    go_on(tmp_path, 12)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=2e-6)


def test_a_notice_to_one_process_saves_all_of_them(tmp_path: Path) -> None:
    processes = start(tmp_path, 2, "--steps", "100000", "--save-every", "5")
    wait_for(tmp_path / "run", 5)
    processes[1].send_signal(signal.SIGTERM)
    (first, _, said), (second, _, _) = finish(processes)
    assert (first, second) == (128 + signal.SIGTERM,) * 2
    assert "as asked; go on with" in said
    saved = checkpoints(tmp_path / "run")[-1]
    assert len(losses(tmp_path / "run")) == saved
    go_on(tmp_path, saved + 2)


def test_a_kill_of_one_process_ends_the_other(tmp_path: Path) -> None:
    processes = start(tmp_path, 2, "--steps", "100000", "--save-every", "5")
    wait_for(tmp_path / "run", 5)
    processes[1].kill()
    begun = time.monotonic()
    (status, _, said), _ = finish(processes)
    assert time.monotonic() - begun < 60
    assert status != 0
    assert "another" in said
    go_on(tmp_path, checkpoints(tmp_path / "run")[-1] + 2)


def test_processes_with_other_settings_are_refused(tmp_path: Path) -> None:
    together = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process"]
    processes = [
        subprocess.Popen(
            [*command("train.py", "--task", "copy", *TINY, "--output", "run", "--seed", seed), *together, seed],
            cwd=tmp_path,
            env=environment() | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1")
    ]
    (status, _, said), (other, _, _) = finish(processes)
    assert (status, other) == (2, 2)
    assert "error: process 1 has other settings or data than process 0: start all with the same" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processes": 2}, "give --coordinator HOST:PORT"),
        ({"coordinator": "host:1"}, "--coordinator needs --processes N and --process I"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, "I from 0 to N - 1"),
        ({"coordinator": "host", "processes": 2, "process": 1}, "must be HOST:PORT"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        parallel.join(**arguments)
    assert message in str(refused.value)


def test_managers_of_clusters_are_recognised() -> None:
    assert not started_by_a_manager({})
    assert not started_by_a_manager({"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"})
    assert started_by_a_manager({"SLURM_STEP_NUM_TASKS": "4"})
    assert started_by_a_manager({"OMPI_COMM_WORLD_SIZE": "2"})
    assert started_by_a_manager({"TPU_WORKER_HOSTNAMES": "a,b"})
    assert os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1"
