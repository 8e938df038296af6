"""The loop: when it saves, when it gives up, and the record that it leaves."""

import json
import os
import signal
from collections import deque
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxformer import InputError
from jaxformer.train import (
    METRICS,
    Checkpoints,
    DivergedError,
    InterruptedRunError,
    Metrics,
    Plan,
    Recorder,
    TrainState,
    draw_loss,
    fit,
    read_lines,
)
from jaxformer.train.loop import WINDOW, check_course


class Numbers:
    """An endless stream of 1, 2, 3 ... as a checkpointable iterator."""

    def __init__(self) -> None:
        self.last = 0

    def __next__(self) -> int:
        self.last += 1
        return self.last

    def get_state(self) -> dict[str, int]:
        return {"last": self.last}


def run(folder: Path, losses: dict[int, float], steps: int = 10, interrupt: int | None = None) -> list[float]:
    """Run the loop with a step that reports the given losses (1.0 elsewhere)."""

    def step(state: TrainState, batch: int) -> tuple[TrainState, Metrics]:
        if batch == interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        loss = jnp.float32(losses.get(batch, 1.0))
        return state._replace(step=state.step + 1), Metrics(loss, loss, jnp.float32(0.1), state.skipped)

    state = TrainState({"weight": jnp.zeros(2)}, (), jnp.int32(0), jnp.int32(0), jnp.zeros(2, jnp.uint32))
    checkpoints = Checkpoints(folder / "checkpoints")
    with Recorder(folder, first_step=0, steps=steps) as recorder:
        fit(state, step, Numbers(), Plan(steps, 4, lambda _: 7), recorder, checkpoints)
    return [line["loss"] for line in read_lines(folder / METRICS)]


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def test_it_saves_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    losses = run(tmp_path, {3: 0.5})
    assert losses == [1.0, 1.0, 0.5] + [1.0] * 7
    assert saved(tmp_path)[-2:] == [8, 10]
    line = next(read_lines(tmp_path / METRICS))
    assert list(line) == ["step", "loss", "grad_norm", "learning_rate", "skipped", "tokens_per_second"]


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError, match="stopped after step 6"):
        run(tmp_path, {}, interrupt=6)
    assert saved(tmp_path)[-1] == 6
    assert len(list(read_lines(tmp_path / METRICS))) == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_rising_loss_ends_the_run_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"rose from 1\.00 to 47\.55: try a lower --learning-rate"):
        run(tmp_path, dict.fromkeys(range(2, 99), 50.0), steps=60)


def test_steps_that_are_all_skipped_end_the_run() -> None:
    with pytest.raises(DivergedError, match="20 steps were skipped"):
        check_course(deque([float("nan")] * WINDOW), first=1.0, skipped=20)
    check_course(deque([1.0] * WINDOW), first=1.0, skipped=20)


def test_lines_behind_a_resumed_step_are_dropped(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0} for step in range(1, 6)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "lo'
    (tmp_path / METRICS).write_text(text)
    Recorder(tmp_path, first_step=3, steps=9).__exit__()
    assert list(read_lines(tmp_path / METRICS)) == lines[:3]


def test_the_loss_curve_is_drawn(tmp_path: Path) -> None:
    run(tmp_path, {})
    picture = draw_loss(tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    metrics = Metrics(jnp.float32(1), jnp.float32(1), jnp.float32(1), jnp.int32(0))
    with Recorder(tmp_path, first_step=0, steps=1, tensorboard=True) as recorder:
        recorder.write(1, metrics, tokens=3)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_missing_tensorboard_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(InputError, match="pip install"):
        Recorder(tmp_path, first_step=0, steps=1, tensorboard=True)
