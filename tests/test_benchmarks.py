"""The benchmark for accelerators, in its small form: every section is measured, and none fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_benchmark_for_accelerators_runs_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--small", "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    rows = json.loads(output.read_text())["rows"]
    assert {row["section"] for row in rows} == {"parity", "training", "decoding", "experts", "long_sequences"}
    assert not [row for row in rows if "failed" in row or "left out" in row]
    errors = [max(row["value error"], row["gradient error"]) for row in rows if row["section"] == "parity"]
    assert max(errors) < 0.03  # of numbers of 8 bits
