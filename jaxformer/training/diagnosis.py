"""What the curves of a run say, in words: under-fitting, over-fitting, diverged, unstable; and what to try."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from jaxformer.training.record import Line

STILL_FALLING = 0.01  # a loss that fell by this share in the last fifth of the run has not settled
WORSE = 0.02  # a held-out loss that rose by this share from its best has turned
OFTEN = 0.01  # more spikes or skipped steps than this share of all are no accident


class Finding(NamedTuple):
    """Finding about a run.

    Attributes:
        verdict: The finding in a few words, such as "Under-fits".
        because: Numbers that show it.
        advice: Changes to try.
    """

    verdict: str
    because: str
    advice: str


def diagnose(lines: Sequence[Line], evaluations: Sequence[Line] = ()) -> list[Finding]:
    """Return the findings about a run, worst first, from its recorded steps and evaluations; never none."""
    losses = [line["loss"] for line in lines if math.isfinite(line["loss"])]
    if len(losses) < 10:
        return [Finding("Too short to judge", f"{len(losses)} steps were recorded", "train longer")]
    found = [
        diverged(losses),
        unstable(lines),
        over_fits(losses, lines, evaluations),
        warms_up(lines),
        under_fits(losses, evaluations),
    ]
    return [finding for finding in found if finding] or [healthy(losses, evaluations)]


def diverged(losses: Sequence[float]) -> Finding | None:
    """Return the finding that the loss ended above its start, None if it did not."""
    first, last = losses[0], fmean(tail(losses))
    if last <= first:
        return None
    because = f"the loss began at {first:.3f} and ended at {last:.3f}"
    return Finding("Diverged", because, "try a lower learning rate, a longer warm-up, or pre-LN blocks")


def unstable(lines: Sequence[Line]) -> Finding | None:
    """Return the finding that the loss jumped, or steps had to be skipped, more often than by accident."""
    spikes, skipped = sum(line.get("spike", 0) for line in lines), lines[-1]["skipped"]
    if spikes + skipped <= OFTEN * len(lines):
        return None
    because = f"{spikes} of {len(lines)} losses stood out as spikes, {skipped} steps were skipped as not finite"
    advice = "lengthen the warm-up, lower the learning rate or beta2, clip the gradient harder"
    return Finding("Unstable", because, advice)


def over_fits(losses: Sequence[float], lines: Sequence[Line], evaluations: Sequence[Line]) -> Finding | None:
    """Return the finding that the held-out loss rose again while the training loss went on falling."""
    if len(evaluations) < 3:
        return None
    best = min(evaluations, key=lambda look: look["loss"])
    last = evaluations[-1]["loss"]
    then = [line["loss"] for line in lines if line["step"] <= best["step"] and math.isfinite(line["loss"])]
    if last <= (1 + WORSE) * best["loss"] or not then or fmean(tail(losses)) >= fmean(tail(then)):
        return None
    because = (
        f"the held-out loss was best, {best['loss']:.3f}, after step {best['step']} and rose to {last:.3f}, "
        f"while the training loss fell to {fmean(tail(losses)):.3f}"
    )
    return Finding("Over-fits", because, "use more text, dropout or weight decay, a smaller model, or fewer steps")


def warms_up(lines: Sequence[Line]) -> Finding | None:
    """Return a finding if the learning rate was still rising when the run ended."""
    rates = [line.get("learning_rate", math.nan) for line in lines]
    if not rates[0] < rates[-1] == max(rates):
        return None
    because = f"the learning rate was still rising, at {rates[-1]:.1e}, when the run ended"
    return Finding("Still warming up", because, "train for more steps, or shorten the warm-up")


def under_fits(losses: Sequence[float], evaluations: Sequence[Line]) -> Finding | None:
    """Return the finding that the loss was still falling when the run ended."""
    fifth = len(losses) // 5
    before, last = fmean(losses[-2 * fifth : -fifth]), fmean(losses[-fifth:])
    if before - last <= STILL_FALLING * abs(before) or over_the_top(evaluations):
        return None
    share = (before - last) / before
    because = f"the loss still fell by {share:.1%}, to {last:.3f}, from the fourth fifth of the run to the last"
    return Finding("Under-fits", because, "train for more steps, with a higher learning rate, or a larger model")


def over_the_top(evaluations: Sequence[Line]) -> bool:
    """Return whether the held-out loss has turned."""
    best = min((look["loss"] for look in evaluations), default=math.inf)
    return bool(evaluations) and evaluations[-1]["loss"] > (1 + WORSE) * best


def healthy(losses: Sequence[float], evaluations: Sequence[Line]) -> Finding:
    """Return the finding that nothing is wrong."""
    held_out = f", on held-out data at {evaluations[-1]['loss']:.3f}" if evaluations else ""
    because = f"the loss fell from {losses[0]:.3f} and settled at {fmean(tail(losses)):.3f}{held_out}"
    return Finding("Healthy", because, "a larger model or more data are what could still help")


def tail(values: Sequence[float]) -> Sequence[float]:
    """Return the last values, a twentieth of them but at least five."""
    return values[-max(5, len(values) // 20) :]
