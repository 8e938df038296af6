"""The loop around the step: record, save, stop in order."""

import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from jaxformer.train.checkpoint import Checkpoints
from jaxformer.train.record import Recorder
from jaxformer.train.step import TrainState, TrainStep

WINDOW = 20  # steps that a judgement on the loss looks back over


class Batches(Protocol):
    """An endless, checkpointable iterator, as grain's are."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any:
        """Its place in the data, as JSON can hold it."""
        ...


class DivergedError(RuntimeError):
    """The loss left the region where training can recover; the message says what to try."""


class InterruptedRunError(RuntimeError):
    """Somebody asked the run to stop; its state is saved."""


@dataclass(frozen=True)
class Plan:
    """How far to train, and how often to save. tokens: how many real target tokens a batch holds."""

    steps: int
    save_every: int
    tokens: Callable[[Any], int]


def fit(
    state: TrainState, step: TrainStep, batches: Batches, plan: Plan, recorder: Recorder, checkpoints: Checkpoints
) -> tuple[TrainState, float]:
    """The state after `plan.steps` steps and the mean loss of the last ones.

    Saves every `save_every` steps, at the end, and before it stops early. Raises DivergedError, InterruptedRunError
    after a Ctrl-C, and OSError where a checkpoint cannot be written.
    """
    first: float | None = None
    recent: deque[float] = deque(maxlen=WINDOW)
    skipped_before = int(state.skipped)
    with stop_requests() as stop:
        for number in range(int(state.step) + 1, plan.steps + 1):
            batch = next(batches)
            state, metrics = step(state, batch)
            line = recorder.write(number, metrics, plan.tokens(batch))
            recent.append(float(line["loss"]))
            first = recent[0] if first is None else first
            check_course(recent, first, int(line["skipped"]) - skipped_before)
            if number % plan.save_every == 0 or number == plan.steps or stop.requested:
                recorder.flush()
                checkpoints.save(number, state, batches.get_state(), sum(recent) / len(recent))
            if stop.requested and number < plan.steps:
                checkpoints.wait()
                raise InterruptedRunError(f"stopped after step {number}, as asked")
    checkpoints.wait()
    return state, sum(recent) / max(len(recent), 1)


def check_course(recent: deque[float], first: float, skipped: int) -> None:
    """Raise DivergedError if the loss of the last steps is far above its start, or no step can be taken any more."""
    advice = "try a lower --learning-rate, a longer --warmup-steps, or --placement pre"
    if skipped >= WINDOW and not all(loss < float("inf") for loss in recent):
        raise DivergedError(f"{skipped} steps were skipped because loss or gradient were not finite: {advice}")
    if len(recent) == WINDOW and sum(recent) / WINDOW > 2 * first + 1:
        raise DivergedError(f"the loss rose from {first:.2f} to {sum(recent) / WINDOW:.2f}: {advice}")


@dataclass
class Stop:
    """Whether somebody asked the loop to stop."""

    requested: bool = False


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Turn the first Ctrl-C (or SIGTERM) into a request, so that a step is never cut in two; a second one kills."""
    stop = Stop()

    def request(number: int, _: object) -> None:
        stop.requested = True
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
