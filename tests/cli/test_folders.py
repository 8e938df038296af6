"""Folders of runs: one training in each, whoever comes first."""

import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import TINY, command, environment, refusal

from jaxformer.cli import folders
from jaxformer.cli.train import train
from jaxformer.locks import LOCK, locked


def state(folder: Path) -> dict[Path, bytes]:
    """What is in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a run of the task."""
    monkeypatch.chdir(tmp_path)
    train(["--task", "copy", *TINY, "--steps", "1", "--output", "run"])
    return tmp_path / "run"


def test_a_second_training_says_who_holds_the_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not (run / LOCK).exists()
    before = state(run)
    with locked(run):
        for flags in (["--resume", "--steps", "9"], []):
            said = refusal(lambda flags=flags: train(["--task", "copy", *TINY, "--output", "run", *flags]), capsys)
            assert "run is in use by process" in said
        train(["--task", "copy", "--eval-only", "--output", "run"])  # reads alone
        (run / LOCK).unlink()
        assert state(run) == before


def test_a_folder_with_a_forgotten_lock_is_empty(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("{}")
    folders.refuse_used(tmp_path)


@pytest.mark.parametrize("output", [None, Path("here")])
def test_of_programs_that_start_at_once_each_has_a_folder_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Path | None
) -> None:
    monkeypatch.chdir(tmp_path)
    start, claimed, refused = threading.Barrier(8), [], []
    with ExitStack() as lock:

        def claim() -> None:
            start.wait()
            try:
                claimed.append(folders.claim("copy", output, lock))
            except ValueError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if output is None:
        assert sorted(claimed) == sorted(Path("runs", "copy" if n == 1 else f"copy-{n}") for n in range(1, 9))
    else:
        assert claimed == [output]
        assert all("here is in use by" in line for line in refused)


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train.py", "--task", "copy", *TINY, *flags),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


@pytest.mark.slow
def test_two_fresh_trainings_at_once_have_two_folders(tmp_path: Path) -> None:
    processes = [start(tmp_path, "--steps", "3") for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"copy", "copy-2"}
    assert all((path / "results.json").exists() for path in (tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_two_trainings_that_go_on_in_one_folder_at_once(tmp_path: Path) -> None:
    """One is refused in one line, and the other does not notice."""
    first = start(tmp_path, "--steps", "2")
    first.communicate(timeout=300)
    assert first.returncode == 0
    two = [start(tmp_path, "--resume", "--steps", "300") for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in two]
    assert sorted(process.returncode for process in two) == [0, 2], said
    (refused,) = (text for text, process in zip(said, two, strict=True) if process.returncode == 2)
    assert len(refused.splitlines()) == 1
    assert "runs/copy is in use by process" in refused
    assert "Traceback" not in "".join(said)
