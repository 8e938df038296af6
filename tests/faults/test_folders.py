"""A sample of the damaged folders, and of the kills and full disks while a folder is saved to."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import loading
import numpy as np
import pytest
import torch
from hf_models import save_decoder
from transformers import AutoModelForCausalLM

from jaxformer.pretrained import from_pretrained

FAULTS = Path(__file__).parent
PATHS = [str(FAULTS.parents[1]), str(FAULTS.parent), str(FAULTS.parent / "parity"), str(FAULTS)]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)}


@pytest.mark.parametrize("cases", [40, pytest.param(800, marks=pytest.mark.slow)])
def test_damaged_folders(cases: int) -> None:
    """Of a few families, or of all."""
    families = ["gpt2", "mixtral", "t5", "bert-masked"] if cases < 100 else None
    tally = loading.fuzz(cases, seed=5, families=families)
    assert tally.tried == cases
    assert not tally.failures, str(tally)


@pytest.mark.parametrize("cases", [30, pytest.param(600, marks=pytest.mark.slow)])
def test_kills_and_full_disks(cases: int) -> None:
    """In a process of its own, which has no threads of JAX and may fork."""
    command = [sys.executable, str(FAULTS / "saving.py"), "--cases", str(cases), "--seed", "5"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stdout == f"saving over a folder: {cases} tried, 0 failed\n", done.stdout + done.stderr


SAVER = """
import sys
import jaxformer
first, second, folder = sys.argv[1:]
models = [jaxformer.from_pretrained(second), jaxformer.from_pretrained(first)]
while True:
    for model in models:
        print("next", flush=True)
        jaxformer.save_pretrained(model, folder)
"""


@pytest.mark.slow
def test_a_killed_save_opens_here_and_in_transformers(tmp_path: Path) -> None:
    """Real models: of two configurations, the folder always holds one."""
    ids, expected, chance = [[3, 4, 5]], [], random.Random(0)
    for name in ("gpt2", "gpt2-unusual"):
        save_decoder(name, tmp_path / name)
        expected.append(np.asarray(from_pretrained(tmp_path / name)(ids).logits))
    folder, found = tmp_path / "saved" / "model", []
    shutil.copytree(tmp_path / "gpt2", folder)
    for saves in (1, 2, 3, 4) * 2:
        command = [sys.executable, "-c", SAVER, tmp_path / "gpt2", tmp_path / "gpt2-unusual", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
            assert process.stdout is not None
            for _ in range(saves):
                process.stdout.readline()
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
        ours = np.asarray(from_pretrained(folder)(ids).logits)
        (which,) = [number for number, logits in enumerate(expected) if np.array_equal(ours, logits)]
        with torch.no_grad():
            theirs = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor(ids)).logits.numpy()
        np.testing.assert_allclose(theirs, expected[which], atol=1e-5 * max(1.0, np.abs(theirs).max()))
        found.append(which)
    assert set(found) == {0, 1}
