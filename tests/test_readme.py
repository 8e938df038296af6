"""What README and the guides show runs, their links and claims hold, and the public names are documented."""

import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hf_models import save_decoder

import jaxformer
from jaxformer.__main__ import COMMANDS
from jaxformer.__main__ import main as program
from jaxformer.data import train_tokenizer
from jaxformer.pretrained import FAMILIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES, *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [info.name for info in pkgutil.walk_packages(jaxformer.__path__, "jaxformer.") if "__main__" not in info.name]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What a guide's shell blocks are run with, so that they end in seconds.
SMALL = ["--steps", "2", "--batch-size", "2"]


def blocks(path: Path, language: str = "python") -> list[str]:
    """The code blocks of a page."""
    return [code for kind, code in FENCED.findall(path.read_text()) if kind == language]


def fenced_commands(path: Path) -> list[list[str]]:
    """The arguments of `jaxformer` in the shell blocks of a page."""
    return commands([line for block in blocks(path, "") for line in block.replace("\\\n", " ").splitlines()])


def inline_commands(path: Path) -> list[list[str]]:
    """The arguments of `jaxformer` in the text of a page."""
    return commands(re.findall(r"`([^`\n]+)`", FENCED.sub("", path.read_text())))


def commands(lines: list[str]) -> list[list[str]]:
    """The program and its arguments, of those lines that call one."""
    found = [
        re.match(r"(?:python (?=train\.py|generate\.py)|python -m jaxformer |jaxformer )(.*)", line) for line in lines
    ]
    words = [shlex.split(match[1], comments=True) for match in found if match]
    return [[name.removesuffix(".py"), *rest] for name, *rest in words]


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_readme_opens_generates_and_saves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As does the guide, of a folder that the commands on the page make."""
    (code,), guide = blocks(ROOT / "README.md"), blocks(ROOT / "docs/guides/checkpoints.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    train, export = fenced_commands(ROOT / "README.md")
    program([*train, *SMALL, "--context", "48"])
    program(export)
    capsys.readouterr()
    variables: dict[str, Any] = {}
    exec(code, variables)
    assert capsys.readouterr().out.startswith("(1, 22, ")
    assert variables["found"].sequences.shape == (1, 42)
    assert (folder / "my-copy/model.safetensors").read_bytes() == (folder / "my-gpt2/model.safetensors").read_bytes()
    for part in guide:
        exec(part, variables)
    assert (folder / "my-copy/model.safetensors").read_bytes() == (folder / "my-own/model.safetensors").read_bytes()
    assert len(variables["output"].hidden_states) == len(variables["output"].attentions) + 1
    assert variables["found"].attentions is not None


def test_the_forward_pass_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(ROOT / "docs/guides/model.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    variables: dict[str, object] = {}
    exec(code, variables)
    assert "(2, 3, 1000)" in capsys.readouterr().out
    assert variables["best"].sequences.shape == (2, 11)


def test_the_guide_to_generation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks one after the other, as a reader types them."""
    variables: dict[str, Any] = {}
    for code in blocks(ROOT / "docs/guides/generate.md"):
        exec(code, variables)
    assert "(4, 11)" in capsys.readouterr().out
    assert variables["answers"].sequences.max() <= 12


def test_the_guide_to_fine_tuning_learns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, export = fenced_commands(ROOT / "README.md")
    program([*train, *SMALL, "--context", "48"])
    program(export)
    capsys.readouterr()
    (code,), variables = blocks(ROOT / "docs/guides/fine-tune.md"), {}
    exec(code, variables)
    assert float(variables["loss"]) < 1.0
    ids = variables["tokens"]
    adapted = jaxformer.from_pretrained(folder / "my-adapted-gpt2")(ids).logits
    assert np.abs(adapted - variables["lm"](ids).logits).max() > 0.1


def test_the_loop_of_ones_own_trains_and_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(ROOT / "docs/guides/loop.md")
    short, variables = code.replace("STEPS, folder = 60", "STEPS, folder = 6"), {}
    exec(short.replace("save_every=20", "save_every=3"), variables)
    assert variables["trained"](np.zeros((1, 3), int)).shape == (1, 3, variables["tokenizer"].vocab_size)
    exec(code.replace("STEPS, folder = 60", "STEPS, folder = 8"), again := {})
    assert int(again["state"].step) == 8
    assert len((folder / "my-run/metrics.jsonl").read_text().splitlines()) == 8


def test_the_guide_to_many_devices_runs(tmp_path: Path) -> None:
    save_decoder("gpt2", tmp_path)
    train_tokenizer("word", ["one two"], 5).backend.save(str(tmp_path / "tokenizer.json"))
    (code,), variables = blocks(ROOT / "docs/guides/scale.md"), {}
    exec(code.replace("my-gpt2", str(tmp_path)), variables)
    assert variables["logits"].shape[0] == 2


def test_compiled_programs_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,), changed = blocks(ROOT / "docs/guides/compiling.md"), {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    exec(code, {})
    assert changed == {"jax_compilation_cache_dir": "compiled"}


def test_the_training_step_of_the_migration_guide_learns(tmp_path: Path, rng: np.random.Generator) -> None:
    save_decoder("gpt2", tmp_path)
    (code,) = blocks(ROOT / "docs/migration.md")
    names: dict[str, Any] = {}
    exec(code.replace("path/to/gpt2", str(tmp_path)).replace("1e-5", "1e-2"), names)
    tokens, valid = rng.integers(3, 53, (2, 9)), np.arange(9) < np.array([[9], [5]])
    model, state, losses = names["lm"].model, names["state"], []
    for seed in range(12):
        model, state, loss = names["step"](model, state, tokens, valid, jax.random.key(seed))
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


def test_every_flag_that_is_shown_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every command line in README and the guides, each flag is in the help of its program."""
    shown: dict[tuple[str, ...], set[str]] = {}
    for page in PAGES:
        for name, *rest in fenced_commands(page) + inline_commands(page):
            if name in COMMANDS:
                task = rest[rest.index("--task") + 1] if name == "train" and "--task" in rest[:-1] else None
                chosen = () if task is None else ("--task", task.replace("examples", str(ROOT / "examples")))
                flags = {word for word in rest if word.startswith("--")} - {"--task", "--help"}
                shown.setdefault((name, *chosen), set()).update(flags)
    assert len(shown) >= 10
    for words, flags in shown.items():
        with pytest.raises(SystemExit):
            program([*words, "--help"])
        known = capsys.readouterr().out
        assert {flag for flag in flags if flag not in known} == set(), words


def test_every_program_is_in_the_guide() -> None:
    named = {name for name, *_ in inline_commands(ROOT / "docs/guides/command-line.md")}
    assert set(COMMANDS) <= named


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_the_commands_of_a_guide_run(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its shell blocks, in order, with few steps and a small text; the task of one's own has its tests."""
    text = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n" * 60
    for name in ("book.txt", "five-novels.txt", "persuasion.txt", "file.txt"):
        (folder / name).write_text(text)
    for words in fenced_commands(page):
        if "own_task" not in " ".join(words):
            program([*words, *SMALL] if words[0] == "train" else words)
    capsys.readouterr()


def test_every_link_leads_somewhere() -> None:
    """To a file of the repository, and to a heading where one is named."""
    for page in PAGES:
        for target in re.findall(r"(?:\]\(|src=\")([^)\"#\s]*(?:#[^)\"\s]*)?)[)\"]", page.read_text()):
            if target.startswith("http"):
                continue
            name, _, heading = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), f"{page.name}: {target}"
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if heading else []
            anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
            assert not heading or heading in anchors, f"{page.name}: {target}"


def test_every_file_that_is_named_exists() -> None:
    architecture = (ROOT / "docs/architecture.md").read_text()
    tree = architecture.split("## The files")[1]
    known = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert set(re.findall(r"\w+\.py", tree)) <= known
    listed = set(re.findall(r"\w+\.py", tree))
    assert {path.name for path in (ROOT / "jaxformer/generation").glob("[!_]*.py")} <= listed
    for page in PAGES:
        if page.name == "notes.md":  # a diary: files of then
            continue
        for path in re.findall(r"`((?:jaxformer|tests|benchmarks|examples|docs)/[\w/.-]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_functions_of_the_walks_exist() -> None:
    """Of the numbered steps in docs/architecture.md: each name in code is defined in the package."""
    text = (ROOT / "docs/architecture.md").read_text().split("## Walk (a)")[1].split("## Deviations")[0]
    steps = re.findall(r"^\d+\. .*$(?:\n {2,}.*$)*", text, re.MULTILINE)
    assert len(steps) > 30
    package = "\n".join(path.read_text() for path in (ROOT / "jaxformer").rglob("*.py"))
    names = {name for step in steps for name in re.findall(r"`([A-Za-z_.]+)(?:\(.*?\))?`", step)}
    ours = {name for name in names if not re.search(r"^(jax|lax|nnx)\.|\.(py|json|jsonl|safetensors)$", name)}
    missing = {
        name
        for name in ours
        if not re.search(rf"(?:def|class) {name.rpartition('.')[2]}\b|\b{name.rpartition('.')[2]}(?: =|: )", package)
    }
    assert missing <= {"model_type"}


def test_readme_names_the_families() -> None:
    table = README.split("## Families")[1].split("\n## ")[0]
    named = [name for row in re.findall(r"^\|(.*)\|$", table, re.MULTILINE) for name in re.findall(r"`([\w-]+)`", row)]
    assert sorted(set(named) - {"model_type"}) == sorted(FAMILIES)
    assert f"{len(FAMILIES)} families" in table
    parity = (ROOT / "docs/parity.md").read_text()
    assert all(f"\n| {name} |" in parity for name in FAMILIES)


def test_the_speeds_of_readme_are_those_of_the_benchmarks() -> None:
    """Every row of the table is a row of a table in docs/benchmarks."""
    files = {"GPT-2": "decode-gpt2.md", "paper-base": "decode-paper-base.md", "training step": "train.md"}
    table = README.split("## Speed")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (GPT-2|paper-base|training step), ([^|]+) \| ([^|]+) \| ([\d.]+) \|$", table, re.MULTILINE)
    assert len(rows) == 5
    for shape, what, against, times in rows:
        measured = (ROOT / "docs/benchmarks" / files[shape]).read_text()
        assert f"| {what} | {against} | {times} |" in measured, (shape, what, against)


def test_pictures_are_small() -> None:
    assert all(path.stat().st_size < 200_000 for path in (ROOT / "docs/pictures").iterdir())


@pytest.mark.parametrize("name", jaxformer.__all__)
def test_public_names_are_documented(name: str) -> None:
    thing = getattr(jaxformer, name)
    if callable(thing):
        assert len(inspect.getdoc(thing) or "") > 40


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    with jax.numpy_rank_promotion("allow"):
        assert doctest.testmod(importlib.import_module(name)).failed == 0
