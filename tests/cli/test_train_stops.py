"""Runs that stop before their end: killed, interrupted, out of disk space, resumed."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, call, command, environment, parameters, refusal, typed

from jaxformer.cli import terminal
from jaxformer.cli import train as program
from jaxformer.cli.runs import ROOT, newest_finished, open_run, steps_taken
from jaxformer.cli.train import train


def same_parameters(first: Path, second: Path) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(parameters(first), parameters(second), strict=True))


def record(run: Path) -> list[tuple[float, ...]]:
    """What the metrics file says of each step, but for the speed."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [tuple(value for name, value in line.items() if name not in ("tokens_per_second", "mfu")) for line in lines]


def checkpoints(run: Path) -> list[str]:
    """The names in a run's folder of checkpoints."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stop(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a run says that ends with the exit status of Ctrl-C."""
    with pytest.raises(SystemExit) as end:
        terminal.run(lambda: train(flags))
    assert end.value.code == 130
    return capsys.readouterr().err.splitlines()[-1]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_ctrl_c_while_evaluating_keeps_what_was_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--task", "sort", *TINY, "--steps", "6", "--save-every", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(program, "report", interrupt)
        said = stop(flags, capsys)
    assert said == "stopped, as asked; go on with: jaxformer train --task sort --resume --output runs/sort"
    assert newest_finished() == ROOT / "sort"  # none is finished, but this one has a complete checkpoint
    before = parameters(ROOT / "sort")
    train(["--task", "sort", "--resume"])
    loss = np.mean([line[1] for line in record(ROOT / "sort")])
    assert f"sort: training loss {loss:.4f} nats per token after 6 steps" in capsys.readouterr().out
    assert all(np.array_equal(a, b) for a, b in zip(before, parameters(ROOT / "sort"), strict=True))


def test_ctrl_c_elsewhere_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        terminal.run(interrupt)
    assert (end.value.code, capsys.readouterr().err) == (130, "stopped, as asked\n")


@pytest.mark.slow
def test_a_resumed_run_refuses_other_settings_and_takes_more_steps(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(["--task", "copy", *TINY, "--steps", "6"])
    before = (folder / "runs/copy/run.json").read_text()
    resume = ["--task", "copy", "--resume"]
    capsys.readouterr()
    said = refusal(lambda: train([*resume, "--dim", "32", "--symbols", "6", "--seed", "5"]), capsys)
    assert said.endswith("keeps its settings: leave out --dim, --seed")
    said = refusal(lambda: train([*resume, "--steps", "5"]), capsys)
    assert said.endswith("runs/copy has taken 6 steps already: give --steps 6 or more")
    assert (folder / "runs/copy/run.json").read_text() == before
    train([*resume, "--steps", "9"])
    assert steps_taken(ROOT / "copy") == 9
    assert [line[0] for line in record(ROOT / "copy")] == list(range(1, 10))
    assert open_run(ROOT / "copy").task.settings.steps == 9


@pytest.mark.slow
def test_bfloat16_computes_and_float32_keeps(folder: Path) -> None:
    train(["--task", "copy", *TINY, "--steps", "30", "--dtype", "bfloat16"])
    losses = [line[1] for line in record(ROOT / "copy")]
    assert losses[-1] < losses[0]
    assert {leaf.dtype for leaf in parameters(ROOT / "copy")} == {np.dtype("float32")}


def start(folder: Path, task: str, flags: list[str]) -> subprocess.Popen[str]:
    """Start a run."""
    return subprocess.Popen(
        command("train.py", "--task", task, *flags),
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def await_file(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until a run has written a file."""
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert path.exists()


def stop_at(folder: Path, task: str, flags: list[str], step: int, number: int) -> tuple[int, str]:
    """Start a run and send it a signal when it has recorded `step`; its exit status, and what it said."""
    process = start(folder, task, flags)
    metrics, deadline = folder / "runs" / task / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
            process.send_signal(number)
            break
        time.sleep(0.002)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


WORDS = [
    "--data",
    "../text.txt",
    "--context",
    "32",
    "--batch-size",
    "4",
    "--warmup-steps",
    "5",
    "--evaluate-every",
    "30",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "more", "number"),
    [
        ("reverse", TINY, signal.SIGKILL),
        ("reverse", TINY, signal.SIGINT),
        ("reverse", TINY, signal.SIGHUP),
        ("lm", WORDS, signal.SIGKILL),
        ("lm", WORDS, signal.SIGTERM),
    ],
    ids=["reverse-killed", "reverse-ctrl-c", "reverse-hung-up", "lm-killed", "lm-terminated"],
)
def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path, task: str, more: list[str], number: int) -> None:
    rng = np.random.default_rng(time.time_ns())  # any step will do: the place is random on purpose
    (tmp_path / "text.txt").write_text(" ".join(f"{n} squared is {n * n}" for n in range(600)))
    flags = [*more, "--dropout", "0.2", "--steps", "400", "--save-every", "20"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    assert call(whole, "train.py", "--task", task, *flags).returncode == 0
    status, said = stop_at(stopped, task, flags, int(rng.integers(40, 300)), number)
    assert status == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert f", as asked; go on with: {typed('train.py')} --task {task} --resume" in said.splitlines()[-1]
        assert "Traceback" not in said
    ours, theirs = whole / "runs" / task, stopped / "runs" / task
    assert not (theirs / "results.json").exists()
    resumed = call(stopped, "train.py", "--task", task, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert same_parameters(ours, theirs)
    assert record(ours) == record(theirs)
    assert checkpoints(ours) == checkpoints(theirs)
    if task == "lm":
        assert (ours / "evaluations.jsonl").read_text() == (theirs / "evaluations.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_ends_at_once(tmp_path: Path, number: int) -> None:
    """The compiler runs then, and there is nothing to save."""
    process = start(tmp_path, "copy", TINY)
    await_file(process, tmp_path / "runs/copy/metrics.jsonl")
    time.sleep(0.2)
    sent = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - sent < 2
    assert process.returncode == 128 + number
    assert (
        said.splitlines()[-1]
        == f"stopped, as asked; go on with: {typed('train.py')} --task copy --resume --output runs/copy"
    )
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(tmp_path, "copy", [*TINY, "--steps", "60", "--save-every", "20"])
    finally:
        signal.signal(signal.SIGHUP, before)
    await_file(process, tmp_path / "runs/copy/checkpoints/20")
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


@pytest.mark.slow
def test_a_run_goes_on_from_an_older_checkpoint_and_with_damaged_metrics(tmp_path: Path) -> None:
    """Both are told in one line, and the run ends as if nothing had happened."""
    flags = [*TINY, "--dropout", "0.2", "--save-every", "4"]
    assert call(tmp_path, "train.py", "--task", "copy", *flags, "--steps", "16", "--output", "whole").returncode == 0
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    newest = max((run / "checkpoints/16/state").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:13], b"[" * 100_000 + b"\n", *lines[14:]]))
    result = call(tmp_path, "train.py", "--task", "copy", "--resume", "--output", "run")
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stderr.splitlines() if "damaged" in line]
    assert len(told) == 2
    assert "going on from 12, its folder is now 16.damaged" in told[0]
    assert "run/metrics.jsonl: 1 line is damaged and left out (line 14 " in told[1]
    assert same_parameters(run, tmp_path / "whole")
    assert record(run) == record(tmp_path / "whole")
    assert [name for name in checkpoints(run) if name != "16.damaged"] == checkpoints(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_run_goes_on_later(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:  # only root can make a disk that fills: tests/training/test_checkpoint.py needs none
        pytest.skip("mounting a small disk needs root")
    flags = ["--task", "copy", "--dim", "32", "--layers", "1", "--steps", "60", "--save-every", "10"]
    assert call(tmp_path, "train.py", *flags).returncode == 0
    try:
        result = call(tmp_path, "train.py", *flags, "--output", str(disk / "run"))
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        said = result.stderr.splitlines()[-1]
        assert "no space left on device" in said.lower()
        assert f"go on with: {typed('train.py')} --task copy --resume --output {disk / 'run'}" in said
        assert steps_taken(disk / "run") >= 10
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        resumed = call(tmp_path, "train.py", "--task", "copy", "--resume", "--output", str(disk / "run"))
        assert resumed.returncode == 0, resumed.stderr
        assert same_parameters(disk / "run", tmp_path / "runs/copy")
        assert record(disk / "run") == record(tmp_path / "runs/copy")
        assert len([line for line in result.stderr.splitlines() if "error" in line.lower()]) == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)
