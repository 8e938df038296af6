"""`generate()` of transformers, call by call: recorded ones, and as many as are drawn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn import differences, modes
from hf_decoders import FURTHER
from hf_models import DECODERS, MODELS
from recorded import FOLDER, cases

HERE = Path(__file__).parent
DRAWN, PARTS = 2000, 4


def run(script: str, *arguments: str) -> tuple[int, str]:
    """Exit status and last line of a script."""
    command = [sys.executable, str(HERE / script), *arguments]
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr[-2000:])
    return done.returncode, done.stdout.splitlines()[-1] if done.stdout else ""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart", "marian"])
def test_recorded_calls_give_the_same(family: str) -> None:
    status, said = run("recorded.py", family)
    assert status == 0
    assert re.fullmatch(r"\d+ recorded calls: \d+ equal, [0-3] ties, 0 different", said)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_drawn_calls_give_the_same(part: int) -> None:
    status, said = run("drawn.py", "--calls", str(DRAWN), "--part", f"{part}/{PARTS}")
    assert status == 0
    assert re.fullmatch(r"\d+ calls: \d+ equal, [0-5] ties, 0 different", said)


def test_every_family_with_a_language_model_is_drawn() -> None:
    drawn = {({**DECODERS, **MODELS}[mode.model][0]).model_type for mode in modes()}
    assert drawn == {config.model_type for config, _ in {**DECODERS, **MODELS}.values()}
    further = {FURTHER[name][0].model_type for name in FURTHER}
    assert len(modes()) == len(set(modes())) == 72 + len(further)
    assert modes(0) != modes(1)


def test_a_few_drawn_calls_give_the_same() -> None:
    """Of an encoder-decoder with three beams and decoder_input_ids."""
    found = list(differences(modes(1)[43], 6, np.random.default_rng(1)))
    assert len(found) == 6
    assert not [each for each in found if each and not each.startswith("tie")]


def test_all_recorded_calls_are_here() -> None:
    found = cases()
    assert len(found) == 444
    assert {case.model for case in found} == {path.name for path in (FOLDER / "models").iterdir()}
