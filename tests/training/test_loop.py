"""The loop: when it saves, when it gives up, and the record that it leaves."""

import errno
import json
import math
import os
import signal
from pathlib import Path

import jax.numpy as jnp
import pytest
from jax.experimental import multihost_utils

from jaxformer import InputError
from jaxformer.training import (
    METRICS,
    Checkpoints,
    DivergedError,
    InterruptedRunError,
    LoopConfig,
    LossMonitor,
    MetricLogger,
    Metrics,
    TrainState,
    draw_loss,
    fit,
    read_lines,
    replace_text,
)
from jaxformer.training.loop import WINDOW


class Numbers:
    """An endless stream of 1, 2, 3 ... as a checkpointable iterator."""

    def __init__(self, last: int) -> None:
        self.last = last

    def __next__(self) -> int:
        self.last += 1
        return self.last

    def get_state(self) -> dict[str, int]:
        return {"last": self.last}


def run(
    folder: Path,
    losses: dict[int, float],
    steps: int = 10,
    interrupt: int | None = None,
    taken: int = 0,
    number: int = signal.SIGINT,
) -> list[float]:
    """Run the loop with a step that reports the given losses (1.0 elsewhere), resumed after `taken` steps."""

    def step(state: TrainState, batch: int) -> tuple[TrainState, Metrics]:
        if batch == interrupt:
            os.kill(os.getpid(), number)
        loss = jnp.float32(losses.get(batch, 1.0))
        return state._replace(step=state.step + 1), Metrics(loss, loss, loss, jnp.float32(0.1), state.skipped)

    state = TrainState({"weight": jnp.zeros(2)}, (), jnp.int32(taken), jnp.int32(0), jnp.zeros(2, jnp.uint32))
    batches = Numbers(taken)
    with (
        Checkpoints(folder / "checkpoints") as checkpoints,
        MetricLogger(folder, first_step=taken, steps=steps) as recorder,
    ):
        _, loss = fit(state, step, batches, LoopConfig(steps, 4, lambda _: 7), recorder, checkpoints)
    (folder / "mean").write_text(str(loss))
    return [line["loss"] for line in read_lines(folder / METRICS)]


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def test_it_saves_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    losses = run(tmp_path, {3: 0.5})
    assert losses == [1.0, 1.0, 0.5] + [1.0] * 7
    assert saved(tmp_path)[-2:] == [8, 10]
    line = next(read_lines(tmp_path / METRICS))
    assert list(line) == [
        "step",
        "loss",
        "grad_norm",
        "update_ratio",
        "learning_rate",
        "skipped",
        "spike",
        "tokens_per_second",
    ]


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError, match="stopped after step 6"):
        run(tmp_path, {}, interrupt=6)
    assert saved(tmp_path)[-1] == 6
    assert len(list(read_lines(tmp_path / METRICS))) == 6
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [2, 10])
def test_any_step_may_be_the_last_one(tmp_path: Path, number: int, step: int) -> None:
    with pytest.raises(InterruptedRunError, match=f"stopped after step {step},") as stop:
        run(tmp_path, {}, interrupt=step, number=number)
    assert stop.value.number == number
    assert saved(tmp_path)[-1] == step


def test_a_notice_of_preemption_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX tells all processes of a cluster after the same step."""
    asked = []

    def reached(step: int) -> bool:
        asked.append(step)
        return step == 7

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    with pytest.raises(InterruptedRunError, match="stopped after step 7") as stop:
        run(tmp_path, {})
    assert stop.value.number == signal.SIGTERM
    assert saved(tmp_path)[-1] == 7
    assert sorted(set(asked)) == list(range(1, 8))


def test_a_rising_loss_ends_the_run_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"rose from 1\.00 to 50\.00: try a lower --learning-rate"):
        run(tmp_path, dict.fromkeys(range(2, 99), 50.0), steps=60)


def course(*lines: tuple[float, int]) -> LossMonitor:
    """The course of a run with these losses and counts of skipped steps."""
    return LossMonitor({"loss": loss, "skipped": skipped} for loss, skipped in lines)


def test_many_skipped_steps_end_the_run_and_a_few_do_not() -> None:
    half = WINDOW // 2
    with pytest.raises(DivergedError, match=f"{half} of the last {WINDOW} steps were skipped"):
        course((1.0, 0), *[(math.nan, count) for count in range(1, half + 1)]).check()
    course((1.0, 0), *[(math.nan, count) for count in range(1, half)]).check()
    course((1.0, 0), *[(math.nan, 99)] * 3, *[(1.0, 99)] * WINDOW).check()  # long ago


def test_losses_that_are_not_finite_do_not_count() -> None:
    lines = course((math.nan, 1), (math.inf, 2), (4.0, 2), (2.0, 2))
    assert (lines.first, lines.loss) == (4.0, 3.0)
    assert course((math.nan, 1)).loss == math.inf
    with pytest.raises(DivergedError, match=r"rose from 1\.00 to 9\.00"):
        course((math.nan, 1), (1.0, 1), *[(9.0, 1), (math.nan, 2)] * 4, *[(9.0, 2)] * (WINDOW - 8)).check()


def test_a_resumed_run_is_judged_with_its_earlier_steps(tmp_path: Path) -> None:
    losses = {step: 1.0 + step for step in range(1, 11)}
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    run(tmp_path / "whole", losses)
    run(tmp_path / "resumed", losses, steps=7)
    run(tmp_path / "resumed", losses, taken=7)
    assert (tmp_path / "resumed/mean").read_text() == (tmp_path / "whole/mean").read_text() == "6.5"
    run(tmp_path / "resumed", losses, taken=10)  # nothing left to do
    assert (tmp_path / "resumed/mean").read_text() == "6.5"
    assert [line["loss"] for line in read_lines(tmp_path / "resumed" / METRICS)] == list(losses.values())


def test_metrics_are_json_whatever_the_loss(tmp_path: Path) -> None:
    run(tmp_path, {3: math.nan, 4: math.inf})
    text = (tmp_path / METRICS).read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text.splitlines()[2])["loss"] is None
    assert math.isnan(list(read_lines(tmp_path / METRICS))[3]["loss"])
    draw_loss(tmp_path)


def test_a_step_is_on_disk_as_soon_as_it_is_recorded(tmp_path: Path) -> None:
    metrics = Metrics(*[jnp.float32(1)] * 4, jnp.int32(0))
    with MetricLogger(tmp_path, first_step=0, steps=2) as recorder:
        recorder.write(1, metrics, tokens=3)
        assert len(list(read_lines(tmp_path / METRICS))) == 1


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_text(path, "old")

    def full(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text[:1].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            replace_text(path, "new")
    assert path.read_text() == "old"
    replace_text(path, "new")
    assert path.read_text() == "new"
    replace_text(path, "runs/\udce9")  # a name whose bytes are not UTF-8
    assert path.read_text() == "runs/\\udce9"


def test_lines_behind_a_resumed_step_are_dropped(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0, "skipped": 0} for step in range(1, 6)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "lo'
    (tmp_path / METRICS).write_text(text)
    MetricLogger(tmp_path, first_step=3, steps=9).__exit__()
    assert list(read_lines(tmp_path / METRICS)) == lines[:3]


def test_the_loss_curve_is_drawn(tmp_path: Path) -> None:
    run(tmp_path, {})
    picture = draw_loss(tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    metrics = Metrics(*[jnp.float32(1)] * 4, jnp.int32(0))
    with MetricLogger(tmp_path, first_step=0, steps=1, tensorboard=True) as recorder:
        recorder.write(1, metrics, tokens=3)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_missing_tensorboard_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(InputError, match="pip install"):
        MetricLogger(tmp_path, first_step=0, steps=1, tensorboard=True)


def test_evaluations_are_recorded_decide_the_best_and_are_taken_again(tmp_path: Path) -> None:
    """Every second step and at the end; a resumed run drops what lies behind its checkpoint."""
    held_out = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5, 9: 4.0}

    def step(state: TrainState, batch: int) -> tuple[TrainState, Metrics]:
        params = {"weight": jnp.full(2, batch)}
        loss = jnp.float32(1 / batch)
        return state._replace(step=state.step + 1, params=params), Metrics(loss, loss, loss, loss, state.skipped)

    def evaluate(params: dict) -> dict:
        return {"loss": held_out[int(params["weight"][0])], "sample": "words"}

    def train(taken: int) -> list[dict]:
        state = TrainState({"weight": jnp.zeros(2)}, (), jnp.int32(taken), jnp.int32(0), jnp.zeros(2, jnp.uint32))
        plan = LoopConfig(9, 1, lambda _: 7, evaluate, evaluate_every=2)
        with (
            Checkpoints(tmp_path / "checkpoints") as checkpoints,
            MetricLogger(tmp_path, first_step=taken, steps=9) as recorder,
        ):
            fit(state, step, Numbers(taken), plan, recorder, checkpoints)
        return list(read_lines(tmp_path / "evaluations.jsonl"))

    looks = train(0)
    assert [(look["step"], look["loss"]) for look in looks] == list(held_out.items())
    assert looks[0]["sample"] == "words"
    assert {8, 9} < set(saved(tmp_path))
    assert {4, 5} & set(saved(tmp_path))  # of least loss on held-out data
    (tmp_path / "checkpoints" / "9").rename(tmp_path / "checkpoints" / "away")
    assert train(8) == looks
