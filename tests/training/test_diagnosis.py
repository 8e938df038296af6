"""What is said of a run, from curves whose cause is known."""

import math

import numpy as np
import pytest

from jaxformer.training import diagnose
from jaxformer.training.loop import WINDOW, LossMonitor

STEPS = 400


def lines(losses: np.ndarray, **other: list[int]) -> list[dict]:
    return [
        {"step": step, "loss": loss, "skipped": 0} | {name: values[step - 1] for name, values in other.items()}
        for step, loss in enumerate(losses.tolist(), start=1)
    ]


def falling(rng: np.random.Generator, pace: float, floor: float = 1.0) -> np.ndarray:
    """A noisy exponential down to a floor."""
    return floor + 3 * np.exp(-pace * np.arange(STEPS)) + 0.01 * rng.normal(size=STEPS)


def looks(*losses: float) -> list[dict]:
    return [{"step": (index + 1) * STEPS // len(losses), "loss": loss} for index, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("pace", "held_out", "verdict", "number"),
    [
        (0.05, (1.5, 1.2, 1.1, 1.1), "Healthy", "1.1"),
        (0.05, (), "Healthy", "the loss fell from 4.0"),
        (0.003, (3.0, 2.5, 2.2, 2.0), "Under-fits", "still fell by"),
        (0.01, (1.5, 1.2, 1.4, 1.7), "Over-fits", "best, 1.200, after step 200 and rose to 1.700"),
    ],
)
def test_verdicts(rng: np.random.Generator, pace: float, held_out: tuple, verdict: str, number: str) -> None:
    (finding,) = diagnose(lines(falling(rng, pace)), looks(*held_out))
    assert finding.verdict == verdict
    assert number in finding.because
    assert finding.advice


def test_divergence_and_instability(rng: np.random.Generator) -> None:
    rising = diagnose(lines(2 + 0.01 * np.arange(STEPS)))
    assert [finding.verdict for finding in rising] == ["Diverged"]
    spikes = [int(step % 50 == 0) for step in range(STEPS)]
    assert diagnose(lines(falling(rng, 0.05), spike=spikes))[0].verdict == "Unstable"
    skipped = np.linspace(0, 30, STEPS).astype(int).tolist()
    (finding,) = diagnose(lines(falling(rng, 0.05), skipped=skipped))
    assert (finding.verdict, "30 steps were skipped" in finding.because) == ("Unstable", True)
    assert diagnose(lines(np.full(3, 1.0)))[0].verdict == "Too short to judge"


@pytest.mark.parametrize(
    ("loss", "spike"),
    [(2.0, False), (2.05, False), (2.19, False), (2.3, True), (9.0, True), (math.nan, False), (0.1, False)],
)
def test_a_spike_stands_out_from_what_was_before(rng: np.random.Generator, loss: float, spike: bool) -> None:
    course = LossMonitor(lines(2 + 0.01 * rng.normal(size=WINDOW)))
    assert course.is_spike(loss) == spike


def test_a_noisy_or_unknown_past_knows_no_spike(rng: np.random.Generator) -> None:
    assert not LossMonitor(lines(2 + 0.5 * rng.normal(size=WINDOW))).is_spike(3.5)
    assert not LossMonitor(lines(np.full(WINDOW // 2 - 1, 2.0))).is_spike(9.0)


def test_a_rate_that_never_peaked_is_told(rng: np.random.Generator) -> None:
    """As the last rate of a warm-up that is longer than the run."""
    rising = [1e-5 * step for step in range(1, STEPS + 1)]
    findings = diagnose(lines(falling(rng, 0.003), learning_rate=rising))
    assert [finding.verdict for finding in findings] == ["Still warming up", "Under-fits"]
    assert "the learning rate was still rising, at 4.0e-03" in findings[0].because
    assert "Still" not in diagnose(lines(falling(rng, 0.05), learning_rate=[*rising[1:], 0.0]))[0].verdict
