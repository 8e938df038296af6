"""The loop around the step: record, save, stop in order."""

import math
import signal
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol, runtime_checkable

from jaxformer.training.checkpoint import Checkpoints
from jaxformer.training.optimizer import averaged
from jaxformer.training.record import Line, MetricLogger
from jaxformer.training.step import Metrics, TrainState, TrainStep
from jaxformer.training.stop import InterruptedRunError, Stop, preempted, stop_requests

WINDOW = 20  # steps that a judgement on the loss looks back over
ADVICE = "try a lower --learning-rate, a longer --warmup-steps, or --norm-order pre"


@runtime_checkable
class Batches(Protocol):
    """An endless, checkpointable iterator, as grain's are."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any:
        """Return the place in the data, as JSON can hold it."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to a place in the data."""
        ...


class DivergedError(RuntimeError):
    """The loss left the region where training can recover; the message says what to try."""


@dataclass(frozen=True)
class LoopConfig:
    """Number of steps, and how often to save and to evaluate.

    Attributes:
        steps: Step at which training ends.
        save_every: Number of steps between checkpoints.
        tokens: Batch -> number of real target tokens in it.
        evaluate: Parameters -> metrics on held-out data, the mean loss under "loss". None: never.
        evaluate_every: Number of steps between evaluations.
        flops: Batch -> FLOPs that the model needs for a step on it; None where they are not known.
    """

    steps: int
    save_every: int
    tokens: Callable[[Any], int]
    evaluate: Callable[[Any], Line] | None = None
    evaluate_every: int = 1
    flops: Callable[[Any], float | None] = lambda batch: None

    def is_due(self, step: int, every: int) -> bool:
        """Return whether something follows a step that happens every so many steps, and after the last one."""
        return step == self.steps or step % every == 0

    def rests(self, step: int) -> bool:
        """Return whether a step is followed by more than the next one."""
        evaluates = self.evaluate is not None and self.is_due(step, self.evaluate_every)
        return evaluates or self.is_due(step, self.save_every)


def fit(
    state: TrainState,
    step: TrainStep,
    batches: Batches,
    plan: LoopConfig,
    recorder: MetricLogger,
    checkpoints: Checkpoints,
) -> tuple[TrainState, float]:
    """Train up to `plan.steps` steps.

    Saves every `save_every` steps, at the end, and when asked to stop; the best checkpoint is the one of least loss on
    held-out data where there is an evaluation, and on the last steps where there is none. Signals are requests to stop
    from the first finished step on (see `stop_requests`).

    Args:
        state: Where training begins; its step counts.
        step: The compiled step.
        batches: The data, at the place where training begins.
        plan: How far to train, how often to save and to evaluate.
        recorder: Receives each step.
        checkpoints: Receives the states.

    Returns:
        The last state, and the mean loss of the last steps.

    Raises:
        DivergedError: The loss rose, or many steps had to be skipped.
        InterruptedRunError: Somebody asked to stop, and the state is saved.
        OSError: A checkpoint or the record cannot be written.
    """
    course, stop = LossMonitor(recorder.earlier, recorder.evaluations), Stop()
    started = StartedSteps(recorder, course)
    with ExitStack() as signals:
        first = int(state.step) + 1
        for number in range(first, plan.steps + 1):
            batch = next(batches)
            state, metrics = step(state, batch)
            started.add(number, metrics, plan.tokens(batch), plan.flops(batch))
            started.read(keep=0 if number == first or plan.rests(number) else 1)
            if number == first:  # before, there was nothing to save, and a signal may end the process
                stop = signals.enter_context(stop_requests())
            if preempted(number):
                stop.requested = signal.SIGTERM
            if plan.evaluate is not None and plan.is_due(number, plan.evaluate_every):
                found = plan.evaluate(averaged(state.params, state.optimizer))
                course.evaluated = recorder.write_evaluation(number, found)["loss"]
            leaves = stop.requested  # looked at once: a signal between two looks would save and go on
            if leaves or plan.is_due(number, plan.save_every):
                started.read(keep=0)
                loss = course.loss if plan.evaluate is None else course.evaluated
                checkpoints.save(number, state, batches.get_state(), loss)
            if leaves:
                break
        checkpoints.wait()
    if stop.requested:
        raise InterruptedRunError(f"stopped after step {int(state.step)}, as asked", stop.requested)
    return state, course.loss


class StartedSteps:
    """Steps whose metrics are not read yet. Reading waits, so the last one is read when the next one has started."""

    def __init__(self, recorder: MetricLogger, course: "LossMonitor"):
        self.recorder, self.course = recorder, course
        self.steps: deque[tuple[int, Metrics, int, float | None]] = deque()

    def add(self, number: int, metrics: Metrics, tokens: int, flops: float | None) -> None:
        """Take one more step into account, on so many tokens, of so many FLOPs."""
        self.steps.append((number, metrics, tokens, flops))

    def read(self, *, keep: int) -> None:
        """Record all but the last `keep` steps. Raises DivergedError as `LossMonitor.check` does."""
        while len(self.steps) > keep:
            number, metrics, tokens, flops = self.steps.popleft()
            spike = self.course.is_spike(metrics.loss.item())
            self.course.add(self.recorder.write(number, metrics, tokens, spike=spike, flops=flops))
            self.course.check()


class LossMonitor:
    """Course of a run, from its recorded lines; a resumed run begins with those of its earlier steps."""

    def __init__(self, lines: Iterable[Line] = (), evaluations: Sequence[Line] = ()):
        self.first = math.nan
        self.evaluated = evaluations[-1]["loss"] if evaluations else math.inf  # on held-out data
        self.recent: deque[Line] = deque(maxlen=WINDOW + 1)  # one more, to count what was skipped since
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """Take one more step into account."""
        self.recent.append(line)
        if math.isnan(self.first) and math.isfinite(line["loss"]):
            self.first = line["loss"]

    @property
    def loss(self) -> float:
        """The mean loss of the last steps, without those that were not finite; infinite if none was."""
        losses = [line["loss"] for line in list(self.recent)[-WINDOW:] if math.isfinite(line["loss"])]
        return sum(losses) / len(losses) if losses else math.inf

    def is_spike(self, loss: float) -> bool:
        """Return whether a loss stands out above those before it.

        It does where it is eight times as far above their median as they scatter.

        Scatter is the median distance from the median, which no single spike moves; less than a tenth of the median,
        or of a nat, is no spike however still the others are.
        """
        losses = [line["loss"] for line in list(self.recent)[-WINDOW:] if math.isfinite(line["loss"])]
        if len(losses) < WINDOW // 2 or not math.isfinite(loss):
            return False
        middle = median(losses)
        scatter = median(abs(other - middle) for other in losses)
        return loss - middle > max(8 * scatter, middle / 10, 0.1)

    def check(self) -> None:
        """Raise DivergedError if the loss is far above its start, or if half of the last steps had to be skipped."""
        skipped = self.recent[-1]["skipped"] - self.recent[0]["skipped"]
        if skipped >= WINDOW // 2:
            raise DivergedError(
                f"{skipped} of the last {WINDOW} steps were skipped, as loss or gradient was not finite: {ADVICE}"
            )
        if len(self.recent) > WINDOW and self.loss > 2 * self.first + 1:
            raise DivergedError(f"the loss rose from {self.first:.2f} to {self.loss:.2f}: {ADVICE}")
