"""Locks on folders: one holder, named in the message; released by the kernel; no lock, no obstacle."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxformer import InputError
from jaxformer.locks import LOCK, is_held, locked

HOLD = """
import sys, time
from pathlib import Path
from jaxformer.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_holder_at_a_time_and_nothing_stays(tmp_path: Path) -> None:
    with locked(tmp_path):
        expected = rf"{re.escape(str(tmp_path))} is in use by process {os.getpid()} on \S+ since 20\d\d-.*: wait"
        with pytest.raises(InputError, match=expected), locked(tmp_path):
            pass
        assert is_held(tmp_path)
    assert not list(tmp_path.iterdir())
    assert is_held(tmp_path) is False
    with locked(tmp_path):
        pass


def test_a_killed_holder_holds_no_more(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {process.pid} on"), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / LOCK).read_text()


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"pid": 3}', b"\xff", b"[]"])
def test_a_holder_without_a_name_is_another_process(tmp_path: Path, content: bytes) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK).write_bytes(content)
        with pytest.raises(InputError, match="in use by another process"), locked(tmp_path):
            pass


def test_a_lock_file_that_its_holder_removes_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the opening of the file and its lock the previous holder may leave, and a third one come."""
    flock, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / LOCK).exists()


def test_file_systems_without_locks_are_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locked(tmp_path):
        pass
    said = capsys.readouterr().err
    assert said == f"{tmp_path} cannot be locked (No locks available): do not start a second program in it\n"
    with locked(tmp_path, warn=False):
        pass
    assert is_held(tmp_path) is None
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""
