"""Metrics files from a disk that lies: damaged lines are left out, told, and never an exception."""

import errno
import json
import math
from pathlib import Path

import pytest

from jaxformer import InputError
from jaxformer.training import EVALUATIONS, METRICS, MetricLogger, draw_loss, read_lines, write_report
from jaxformer.training import record as module
from jaxformer.training.record import append, parse_line

GOOD = {"step": 1, "loss": 2.5, "grad_norm": 1.0, "learning_rate": 1e-3, "skipped": 0, "spike": 0}
LOOK = {"step": 1, "loss": 2.5, "perplexity": 12.2, "sample": "the"}
DAMAGED = [
    b"[" * 100_000,
    b"{" * 100_000,
    b'{"a":' * 100_000,
    b"null",
    b"[]",
    b"3",
    b'"step"',
    b"",
    b"\xff\xfe",
    bytes(40),
    b'{"step": 1, "loss": 2.5, "lo',
    b'{"loss": 2.5, "skipped": 0}',
    b'{"step": 1, "skipped": 0}',
    b'{"step": 1, "step": 2, "loss": 2.5, "skipped": 0}',
    *(
        json.dumps(GOOD | change).encode()
        for change in (
            {"step": "1"},
            {"step": 1.5},
            {"step": None},
            {"step": 0},
            {"step": 10**30},
            {"step": True},
            {"loss": "low"},
            {"loss": [2.5]},
            {"loss": 10**400},
            {"skipped": -1},
            {"spike": 2},
            {"learning_rate": {}},
            {"expert_load": [0.5]},
            {"expert_load": {"first": [0.5]}},
            {"expert_load": {"0": []}},
            {"expert_load": {"0": [None]}},
        )
    ),
]


@pytest.mark.parametrize("bad", DAMAGED, ids=lambda data: data[:60].decode(errors="replace"))
def test_a_damaged_line_is_left_out_and_told(tmp_path: Path, bad: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    good = [GOOD | {"step": step} for step in (1, 2, 4)]
    lines = [json.dumps(line).encode() for line in good]
    (tmp_path / METRICS).write_bytes(b"\n".join([*lines[:2], bad, lines[2], b""]))
    assert list(read_lines(tmp_path / METRICS)) == good
    with MetricLogger(tmp_path, first_step=4, steps=9) as recorder:
        assert recorder.earlier == good
    said = [line for line in capsys.readouterr().err.splitlines() if METRICS in line]
    assert len(said) == 1
    assert len(said[0]) <= 300
    assert "1 line is damaged and left out (line 3 " in said[0]
    assert (tmp_path / METRICS).read_bytes() == b"\n".join([*lines, b""])


def test_a_line_that_a_crash_cut_short_is_left_out_without_a_word(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text(json.dumps(GOOD) + '\n{"step": 2, "lo')
    assert list(read_lines(tmp_path / METRICS, notify=pytest.fail)) == [GOOD]


@pytest.mark.parametrize("change", [{"sample": 3}, {"sample": None}, {"perplexity": "12"}, {"step": []}])
def test_looks_at_held_out_data_are_typed_too(change: dict) -> None:
    assert parse_line(EVALUATIONS, json.dumps(LOOK).encode()) == LOOK
    with pytest.raises(InputError, match=next(iter(change))):
        parse_line(EVALUATIONS, json.dumps(LOOK | change).encode())


def test_a_run_is_drawn_whatever_its_lines_hold(tmp_path: Path) -> None:
    """Also where nothing of them is left, and where experts differ in number."""
    (tmp_path / METRICS).write_bytes(b"\n".join(DAMAGED))
    (tmp_path / EVALUATIONS).write_bytes(b"{}\n[]\n")
    draw_loss(tmp_path)
    assert "Too short to judge" in write_report(tmp_path, "copy", {}).read_text()
    loads = [{"0": [0.5, 0.5]}, {"0": [1.0]}, {"1": [0.5, 0.5]}, {"0": [0.1, 0.9]}]
    lines = [GOOD | {"step": step, "expert_load": load} for step, load in enumerate(loads, 1)]
    lines += [GOOD | {"step": 5, "loss": None, "learning_rate": None}]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert math.isnan(list(read_lines(tmp_path / METRICS))[-1]["loss"])
    assert "Its experts" in write_report(tmp_path, "lm", {}).read_text()


class FullFile:
    """A file that takes a few bytes at a time, and no more than `room`."""

    name = "metrics.jsonl"

    def __init__(self, room: int) -> None:
        self.room, self.data = room, b""

    def write(self, data: bytes) -> int:
        taken = data[: min(3, self.room - len(self.data))]
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.data += taken
        return len(taken)


def test_a_line_is_written_whole_or_the_error_names_the_file() -> None:
    file = FullFile(100)
    append(file, '{"step": 1}\n')
    assert file.data == b'{"step": 1}\n'
    with pytest.raises(OSError, match="No space") as error:
        append(FullFile(7), '{"step": 1}\n')
    assert error.value.filename == "metrics.jsonl"


def test_a_file_that_cannot_be_replaced_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(OSError, match="No space") as error:
        module.replace_text(tmp_path / "results.json", "{}")
    assert error.value.filename == str(tmp_path / "results.json")
    assert not list(tmp_path.iterdir())
