"""What a run looks like when it is over: its curves as a picture, and all about it on one page."""

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.extras import require_extra
from jaxformer.training.diagnosis import Finding, diagnose
from jaxformer.training.record import EVALUATIONS, METRICS, Line, read_lines, replace_text

PICTURE, PAGE = "loss.png", "report.html"
SHOWN = 12  # samples on the page
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.finding { border-left: 4px solid #b4541a; background: #fbf4ee; padding: .6rem 1rem; margin: .6rem 0 }
.finding.Healthy { border-color: #2a7d4f; background: #eef8f2 }
.finding b { display: block }
table { border-collapse: collapse } td, th { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere } th { font-weight: 600; white-space: nowrap }
svg { width: 100%; height: auto }
pre { background: #f3f5f7; padding: .6rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 1rem }
"""


def draw_loss(folder: Path) -> Path:
    """Draw the curves of the run in a folder as `loss.png`, and return its path."""
    path = folder / PICTURE
    curves(*read_run(folder)).savefig(path, dpi=120)
    return path


def write_report(folder: Path, title: str, facts: Mapping[str, str], held_out: Sequence[str] = ()) -> Path:
    """Write `report.html`, one page that needs nothing else, and return its path.

    What the curves say comes first, then the facts, the curves, and samples of the model's text along the way.

    Args:
        folder: The folder of the run.
        title: The page's title.
        facts: The rows of its table.
        held_out: Lines that say what the model achieves on held-out data.
    """
    lines, evaluations = read_run(folder)
    samples = [look for look in evaluations if look.get("sample")]
    parts = [
        f"<h1>{escape(title)}</h1>",
        *map(finding_html, diagnose(lines, evaluations)),
        f"<h2>The run</h2><table>{''.join(map(row_html, facts.items()))}</table>",
        f"<h2>Its curves</h2>{as_svg(curves(lines, evaluations))}",
    ]
    if held_out:
        parts.insert(-1, f"<h2>On held-out data</h2><pre>{escape(chr(10).join(held_out))}</pre>")
    if any("expert_load" in line for line in lines):
        text = "Share of the choices that fell on each expert; 1 is as much as all have when loads are even."
        parts.append(f"<h2>Its experts</h2><p>{text}</p>{as_svg(expert_loads(lines))}")
    if samples:
        parts += ["<h2>What the model wrote along the way</h2>", *map(sample_html, spread(samples, SHOWN))]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    page = "\n".join(["<!doctype html>", f'<html lang="en"><head>{head}</head><body>', *parts, "</body></html>"])
    replace_text(folder / PAGE, page + "\n")
    return folder / PAGE


def read_run(folder: Path) -> tuple[list[Line], list[Line]]:
    """Return the recorded steps of a run, and its looks at held-out data."""
    return list(read_lines(folder / METRICS)), list(read_lines(folder / EVALUATIONS))


def finding_html(finding: Finding) -> str:
    """Return a finding as a box."""
    text = f"{escape(finding.because)}. What to try: {escape(finding.advice)}."
    return f'<div class="finding {finding.verdict}"><b>{finding.verdict}</b>{text[0].upper()}{text[1:]}</div>'


def row_html(fact: tuple[str, str]) -> str:
    """Return a row of the table of facts."""
    return f"<tr><th>{escape(fact[0])}</th><td>{escape(fact[1])}</td></tr>"


def sample_html(look: Line) -> str:
    """Return a sample under its step."""
    return f"<b>step {look['step']}, held-out loss {look['loss']:.3f}</b><pre>{escape(look['sample'])}</pre>"


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` of the items, evenly spread, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[index] for index in chosen]


def as_svg(figure: Any) -> str:
    """Return a figure as an SVG element."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    return text[text.index("<svg") :]


def curves(lines: Sequence[Line], evaluations: Sequence[Line]) -> Any:
    """Return loss, learning rate, gradient norm, update ratio and speed over the steps, as a matplotlib figure.

    The loss is drawn as it is and smoothed, with the held-out loss as dots; spikes and skipped steps are marked.
    """
    require_extra("plots", "a picture of a training run")
    import matplotlib.figure  # imported here: it takes half a second, and only the end of a run needs it

    steps = [line["step"] for line in lines]
    figure = matplotlib.figure.Figure(figsize=(9, 9), layout="constrained")
    above, *below = figure.subplots(5, 1, sharex=True, height_ratios=(4, 1, 1, 1, 1))
    losses = [line["loss"] for line in lines]
    above.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8)
    above.plot(steps, smoothed(losses), color="tab:blue", linewidth=1.6, label="training loss, smoothed")
    if evaluations:
        looks = [(look["step"], look["loss"]) for look in evaluations]
        above.plot(*zip(*looks, strict=True), "o-", color="tab:red", markersize=4, label="held-out loss")
    mark(above, lines)
    above.set_ylabel("loss [nats]")
    above.legend(frameon=False)
    shown = (
        ("learning_rate", "learning\nrate"),
        ("grad_norm", "gradient\nnorm"),
        ("update_ratio", "update /\nweights"),
        ("tokens_per_second", "tokens/s"),
    )
    for axes, (name, label) in zip(below, shown, strict=True):
        axes.plot(steps, [line.get(name, math.nan) for line in lines], color="tab:green", linewidth=0.9)
        axes.set_ylabel(label)
    for axes in (above, *below[1:3]):
        if any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in axes.lines):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            low, high = axes.get_ylim()
            axes.yaxis.set_minor_formatter("{x:g}" if axes is above and high < 20 * low else "")
    below[-1].set_xlabel("step")
    for axes in (above, *below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def expert_loads(lines: Sequence[Line]) -> Any:
    """Return a figure of how busy each expert was over the steps, a strip per layer: 1 where loads are even."""
    import matplotlib.figure

    lines = [line for line in lines if "expert_load" in line]
    first = lines[0]["expert_load"]
    lines = [line for line in lines if outline(line["expert_load"]) == outline(first)]
    figure = matplotlib.figure.Figure(figsize=(9, 0.6 + 1.5 * len(first)), layout="constrained")
    strips = figure.subplots(len(first), 1, sharex=True, squeeze=False)[:, 0]
    step = max(1, len(lines) // 300)  # strips are not wider than so many columns: each the mean of its steps
    columns = [lines[start : start + step] for start in range(0, len(lines), step)]
    pictures = []
    for axes, (layer, shares) in zip(strips, first.items(), strict=True):
        loads = [np.mean([line["expert_load"][layer] for line in column], axis=0) * len(shares) for column in columns]
        extent = (lines[0]["step"], lines[-1]["step"], len(shares) - 0.5, -0.5)
        pictures.append(axes.imshow(np.transpose(loads), aspect="auto", extent=extent, vmin=0, vmax=3, cmap="viridis"))
        axes.set_ylabel(f"layer {int(layer) + 1}\nexpert")
    strips[-1].set_xlabel("step")
    figure.colorbar(pictures[-1], ax=list(strips), label="load", extend="max", aspect=40)
    return figure


def outline(loads: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Return how many experts each layer has; a damaged line may differ from the others in that."""
    return {layer: len(shares) for layer, shares in loads.items()}


def mark(axes: Any, lines: Sequence[Line]) -> None:
    """Mark spikes of the loss, and steps that were skipped because something was not finite."""
    spikes = [(line["step"], line["loss"]) for line in lines if line.get("spike")]
    if spikes:
        axes.plot(*zip(*spikes, strict=True), "v", color="tab:orange", markersize=6, label="spike")
    counts = [0, *(line["skipped"] for line in lines)]
    skipped = [line["step"] for line, before in zip(lines, counts, strict=False) if line["skipped"] > before]
    for index, step in enumerate(skipped):
        axes.axvline(step, color="tab:gray", linestyle=":", linewidth=1, label="skipped step" if index == 0 else None)


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Return the values, each the mean of its neighbourhood, a fiftieth of all; what is not finite does not count."""
    if len(values) == 0:
        return np.zeros(0)
    array, width = np.asarray(values, float), max(1, len(values) // 50)
    finite = np.isfinite(array)
    window = np.ones(2 * width + 1)
    sums, counts = (np.convolve(x, window, "same") for x in (np.where(finite, array, 0), finite.astype(float)))
    size = len(array)  # a curve shorter than the window comes back longer
    start = max(0, (len(sums) - size) // 2)
    return (sums / np.maximum(counts, 1))[start : start + size]
