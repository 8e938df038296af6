"""What README shows runs, and the public names are documented."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hf_models import save_decoder

import jaxformer

README = (Path(__file__).parents[1] / "README.md").read_text()
MODULES = [info.name for info in pkgutil.walk_packages(jaxformer.__path__, "jaxformer.") if "__main__" not in info.name]


def test_the_forward_pass_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(import jax\n.*?)```", README, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    variables: dict[str, object] = {}
    exec(code, variables)
    assert "(2, 3, 1000)" in capsys.readouterr().out
    assert variables["best"].sequences.shape == (2, 11)


def test_the_training_step_of_the_migration_guide_learns(tmp_path: Path, rng: np.random.Generator) -> None:
    save_decoder("gpt2", tmp_path)
    code = re.search(r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs/migration.md").read_text(), re.DOTALL)[
        1
    ]
    names: dict[str, Any] = {}
    exec(code.replace("path/to/gpt2", str(tmp_path)).replace("1e-5", "1e-2"), names)
    tokens, valid = rng.integers(3, 53, (2, 9)), np.arange(9) < np.array([[9], [5]])
    model, state, losses = names["lm"].model, names["state"], []
    for seed in range(12):
        model, state, loss = names["step"](model, state, tokens, valid, jax.random.key(seed))
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", jaxformer.__all__)
def test_public_names_are_documented(name: str) -> None:
    thing = getattr(jaxformer, name)
    if callable(thing):
        assert len(inspect.getdoc(thing) or "") > 40


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    with jax.numpy_rank_promotion("allow"):
        assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_file_named_in_readme_exists() -> None:
    tree = README.split("## The files")[1].split("## A task")[0]
    known = {path.name for path in Path(__file__).parents[1].rglob("*.py")}
    assert set(re.findall(r"\w+\.py", tree)) <= known
