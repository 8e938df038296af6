"""What is installed: the command, what the wheel holds, and the core without the packages of the extras."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import jaxformer
from jaxformer import extras

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"orbax-checkpoint": "orbax"}  # the names of packages to import, where they are not those to install
# Runs without the packages of the extras. Flax needs two of them itself, so that it is imported first.
WITHOUT_EXTRAS = """
import sys
from flax import nnx
import jax, safetensors, tokenizers
BLOCKED = {blocked!r}

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in BLOCKED]:
    del sys.modules[name]
sys.meta_path.insert(0, NotInstalled())
"""
OPEN_AND_GENERATE = """
import tempfile
import jaxformer
from jaxformer import data, pretrained
config = jaxformer.modern_decoder_only(20, dim=16, layers=1, heads=2, kv_heads=1)
model = jaxformer.Transformer(config, rngs=nnx.Rngs(0))
lm = jaxformer.as_pretrained(model, None, jaxformer.GenerationConfig(), longest=16)
with tempfile.TemporaryDirectory() as folder:
    jaxformer.save_pretrained(lm, folder)
    lm = jaxformer.from_pretrained(folder)
print(jaxformer.generate(lm.model, [[3, 4, 5]], max_new_tokens=4, num_beams=2).sequences.shape)
"""
NEEDS = {
    "import jaxformer.training": "train",
    "import jaxformer.visualize": "plots",
    "from jaxformer import data; data.batches_ahead([0, 1], 1)": "train",
    "import jaxformer.tasks": "cli",
    "import jaxformer; jaxformer.allow_regex('a', texts=['a', ''], eos=1)": "regex",
    "import jaxformer; jaxformer.from_pretrained('owner/name')": "hub",
    "from jaxformer.pretrained.chat import ChatTemplate; ChatTemplate('', '', {}).render([])": "chat",
    "from jaxformer.__main__ import run; run(['train', '--task', 'copy'])": "cli",
    "from jaxformer.__main__ import run; run(['inspect'])": "cli",
}


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process where only the core is installed."""
    blocked = sorted(set.union(*map(set, extras.EXTRAS.values())))
    script = WITHOUT_EXTRAS.format(blocked=blocked) + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)


def names(requirements: list[str]) -> set[str]:
    """The packages to import that requirements name, those of extras of this package included."""
    found = set()
    for requirement in requirements:
        name, chosen = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if name == "jaxformer":
            found |= set.union(*(names(PROJECT["optional-dependencies"][extra]) for extra in chosen.split(",")))
        else:
            found.add(PACKAGES.get(name, name))
    return found


@pytest.mark.smoke
def test_the_installed_command_is_a_function_without_arguments() -> None:
    module, _, function = PROJECT["scripts"]["jaxformer"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.smoke
def test_the_version_is_the_one_that_is_installed() -> None:
    assert PROJECT["version"] == jaxformer.__version__


@pytest.mark.smoke
def test_the_extras_that_are_looked_for_are_those_that_pip_installs() -> None:
    for extra, packages in extras.EXTRAS.items():
        assert names(PROJECT["optional-dependencies"][extra]) == set(packages), extra
    everything = names(PROJECT["optional-dependencies"]["all"])
    assert everything == set.union(*map(set, extras.EXTRAS.values()))
    for extra in ("smoke", "test", "lint"):
        assert names(PROJECT["optional-dependencies"][extra]) > everything, extra


@pytest.mark.smoke
def test_every_program_needs_one_extra() -> None:
    parts = set.union(*(set(extras.EXTRAS[extra]) for extra in ("train", "plots", "chat")))
    assert set(extras.EXTRAS["cli"]) == parts | {"tyro"}


def test_the_core_opens_generates_and_saves() -> None:
    process = without_extras(OPEN_AND_GENERATE)
    assert (process.returncode, process.stdout) == (0, "(1, 7)\n"), process.stderr


@pytest.mark.parametrize("code", NEEDS)
def test_what_is_missing_is_named_with_what_to_install(code: str) -> None:
    process = without_extras(code)
    assert process.returncode == (2 if "__main__" in code else 1)
    last = process.stderr.splitlines()[-1]
    assert last.endswith(f": pip install 'jaxformer[{NEEDS[code]}]'")
    assert "MissingPackageError" in last or process.stderr.count("\n") == 1


def test_a_missing_package_is_an_import_error_and_bad_input() -> None:
    with pytest.raises(ImportError) as error:
        raise extras.MissingPackageError("x")
    assert isinstance(error.value, jaxformer.InputError)


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_and_the_command(tmp_path: Path) -> None:
    source, unpacked = tmp_path / "source", tmp_path / "unpacked"
    skipped = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "jaxformer", source / "jaxformer", ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    held = {path.relative_to(unpacked) for path in unpacked.rglob("jaxformer/**/*") if path.is_file()}
    files = (source / "jaxformer").rglob("*")
    assert held == {path.relative_to(source) for path in files if path.is_file()}
    assert "jaxformer = jaxformer.__main__:run" in next(unpacked.glob("*.dist-info/entry_points.txt")).read_text()
    line = [sys.executable, "-m", "jaxformer", "generate", "--beam", "4"]
    environment = {"PYTHONPATH": str(unpacked), "HOME": str(tmp_path)}
    process = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.endswith("train one first with " + f"{sys.executable} -m jaxformer train --task copy\n")
