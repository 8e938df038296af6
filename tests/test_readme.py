"""What README shows runs, and the public names are documented."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import jax
import pytest

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
