"""The page about a run: what it says, that it needs nothing else, that no text on it can do harm."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxformer.training import draw_loss, write_report


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A recorded run with a spike, a skipped step and a sample that tries to be markup."""
    losses = 1 + 3 * np.exp(-0.05 * np.arange(120)) + 0.01 * rng.normal(size=120)
    losses[60], text = 3.0, ""
    for step, loss in enumerate(losses.tolist(), start=1):
        line = {"step": step, "loss": None if step == 30 else loss, "grad_norm": 0.5, "update_ratio": 1e-3}
        line |= {"learning_rate": 1e-3, "skipped": int(step >= 30), "spike": int(step == 61), "tokens_per_second": 9.5}
        text += json.dumps(line) + "\n"
    (tmp_path / "metrics.jsonl").write_text(text)
    looks = [
        {"step": step, "loss": 1.5 - step / 1000, "sample": f"<script>alert({step})</script>"}
        for step in range(4, 121, 4)
    ]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    return tmp_path


def test_the_page_says_all_and_needs_nothing(folder: Path) -> None:
    page = write_report(folder, "lm & more", {"parameters": "10 <million>"}).read_text()
    assert page.count("lm &amp; more") == 2
    assert "10 &lt;million&gt;" in page
    assert '<div class="finding' in page
    assert "<svg" in page
    assert not re.search(r"<script|<link|<img|src=|@import|url\((?!#)", page)
    samples = [int(step) for step in re.findall(r"&lt;script&gt;alert\((\d+)\)", page)]
    assert len(samples) == 12
    assert (samples[0], samples[-1]) == (4, 120)


def test_metrics_alone_will_do(folder: Path) -> None:
    (folder / "evaluations.jsonl").unlink()
    page = write_report(folder, "copy", {}).read_text()
    assert "along the way" not in page
    assert draw_loss(folder).stat().st_size > 10_000


def test_an_old_page_survives_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "report.html").write_text("old")
    monkeypatch.setattr("jaxformer.training.report.diagnose", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(folder, "copy", {})
    assert (folder / "report.html").read_text() == "old"
