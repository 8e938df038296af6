"""Tasks outside the package through the programs: the guide's, one on the bare protocol, and runs of strangers."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import REPOSITORY, TINY, call, message, parameters, refusal

from jaxformer.__main__ import main as module
from jaxformer.cli.generate import decode_inputs
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import open_run, steps_taken
from jaxformer.cli.train import train
from jaxformer.tasks import find_task

SECTION = (REPOSITORY / "docs/guides/tasks.md").read_text().split("## A task of your own")[1].split("\n## ")[0]
EXAMPLE = (REPOSITORY / "examples/own_task.py").read_text()
DOUBLE = "examples/own_task.py:Double"
SMALL = ["--max-length", "5", "--dim", "16", "--layers", "1", "--heads", "2", "--batch-size", "8"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the examples."""
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, *more: str) -> None:
    """Run a command of the guide in this process."""
    words = shlex.split(line)
    start, program = {
        "python train.py": (2, train),
        "python generate.py": (2, decode_inputs),
        "python -m": (3, module),
    }[" ".join(words[:2])]
    program([*words[start:], *more])


@pytest.mark.slow
def test_the_commands_of_the_guide(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained for a few steps, resumed, asked and drawn, as the guide says, of a file that the guide shows."""
    assert SECTION.split("```python\n")[1].split("```")[0].strip() in EXAMPLE
    assert len(EXAMPLE.splitlines()) < 60
    begin, resume, generate, visualize = [line for line in SECTION.splitlines() if line.startswith("python ")]
    assert all(line in EXAMPLE for line in (begin, generate, visualize))
    run(begin, *SMALL, "--steps", "4")
    said = capsys.readouterr().out
    assert said.startswith("double: training loss ")
    assert said.splitlines()[-1] == f"next: {command_line('generate')} --beam 4 --task {DOUBLE}"
    assert json.loads((folder / "runs/double/run.json").read_text())["task"] == DOUBLE
    run(resume.replace("--steps 500", "--steps 6"))
    assert steps_taken(folder / "runs/double") == 6
    capsys.readouterr()
    run(generate, "--json")
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["source"] == "2 5 7"
    run(visualize)
    assert capsys.readouterr().out.startswith("2 5 7  ->  ")
    assert (folder / "runs/double/pictures/attention.html").exists()


def test_the_example_doubles(rng: np.random.Generator) -> None:
    task = find_task(str(REPOSITORY / DOUBLE)).task()
    for _ in range(20):
        source = task.draw(rng)
        number, doubled = (int(task.decode(ids).replace(" ", "")) for ids in (source, task.answer(source)))
        assert doubled == 2 * number
    assert task.decode(task.answer(task.encode("9 9"))) == "1 9 8"


def refused(program: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    return refusal(lambda: program(list(argv)), capsys)


def test_the_code_of_a_run_never_runs_by_itself(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder from a stranger names a file that would leave a trace: no program runs it, wherever the file lies."""
    train(["--task", DOUBLE, *SMALL, "--steps", "1"])
    shutil.move("runs/double", "runs/strange")
    about = json.loads(Path("runs/strange/run.json").read_text())
    Path("runs/strange/evil.py").write_text("import pathlib\npathlib.Path('trace').touch()\n" + EXAMPLE)
    Path("runs/strange/run.json").write_text(json.dumps(about | {"task": "runs/strange/evil.py:Double"}))
    capsys.readouterr()
    add = "whose code runs only where you name it: add --task runs/strange/evil.py:Double"
    here = ["--checkpoint", "runs/strange"]
    assert add in refused(decode_inputs, capsys)
    assert add in refused(decode_inputs, capsys, *here, "--input", "1")
    assert add in refused(module, capsys, "visualize", *here)
    assert add in refused(module, capsys, "perplexity", *here, "--data", "examples/own_task.py")
    assert add in refused(module, capsys, "export", "out", *here)
    said = refused(train, capsys, "--task", "copy", "--resume", "--output", "runs/strange")
    assert "resume it with --task runs/strange/evil.py:Double" in said
    said = refused(decode_inputs, capsys, *here, "--task", DOUBLE)
    assert "was trained on the task 'runs/strange/evil.py:Double': name that with --task, or another run" in said
    module(["inspect", *here])  # a table of the model needs no task
    assert "parameters" in capsys.readouterr().out
    assert not (folder / "trace").exists()
    decode_inputs([*here, "--task", "runs/strange/evil.py:Double", "--input", "1"])
    assert (folder / "trace").exists()


def test_a_file_that_moved_or_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(["--task", DOUBLE, *SMALL, "--steps", "1"])
    shutil.copytree("examples", "elsewhere")
    moved = ["--task", "elsewhere/own_task.py:Double"]
    train([*moved, "--eval-only"])
    assert "has changed" not in capsys.readouterr().err
    with Path("elsewhere/own_task.py").open("a") as file:
        file.write("# another line\n")
    train([*moved, "--resume", "--steps", "2"])
    said = capsys.readouterr().err
    assert "elsewhere/own_task.py has changed since runs/double began: the code of now is used" in said
    about = json.loads(Path("runs/double/run.json").read_text())
    assert (about["task"], about["code"]) == (moved[1], find_task(moved[1]).code)
    assert steps_taken(Path("runs/double")) == 2


@pytest.mark.slow
def test_generate_takes_the_newest_run_of_the_task_it_is_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(["--task", DOUBLE, *SMALL, "--steps", "1"])
    train(["--task", "copy", *TINY, "--steps", "1"])
    capsys.readouterr()
    for flags, expected in ([], "runs/copy: copy"), (["--task", DOUBLE], "runs/double: double"):
        decode_inputs([*flags, "--input", "1 2"])
        assert capsys.readouterr().err.startswith(expected)
    assert "no finished run in runs/: train one first with jaxformer train --task sort" in refused(
        decode_inputs, capsys, "--task", "sort"
    )
    assert "--task copy is not for this" in refused(module, capsys, "export", "out", "--task", "copy")
    assert "give a language model" in refused(
        module, capsys, "perplexity", "--checkpoint", "runs/copy", "--data", "examples/own_task.py"
    )


def test_errors_of_a_file_are_one_line_in_every_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("import nmupy\n")
    for program, argv in (
        (train, ["--task", "broken.py:Twice"]),
        (train, ["--task=broken.py:Twice", "--help"]),
        (decode_inputs, ["--task", "broken.py:Twice"]),
        (module, ["visualize", "--task", "broken.py:Twice"]),
        (module, ["export", "out", "--task", "broken.py:Twice"]),
        (module, ["perplexity", "--data", "broken.py", "--task", "broken.py:Twice"]),
    ):
        said = refused(program, capsys, *argv)
        assert said == "error: broken.py, line 1: ModuleNotFoundError: No module named 'nmupy'"
    assert "broken.py, line 1" in message(call(folder, "train.py", "--task", "broken.py:Twice"))


PROTOCOL = '''
"""A decoder that learns to count, on the bare protocol."""

from dataclasses import dataclass

import numpy as np

from jaxformer.data import batches_ahead
from jaxformer.presets import decoder_only
from jaxformer.tasks import EvalResult, Task, TrainSettings, next_token_loss


@dataclass(frozen=True)
class Settings(TrainSettings):
    """Settings of counting."""

    modulus: int = 5
    """where counting begins anew"""
    save_every: int = 2
    """steps between checkpoints"""


class Counts:
    def __init__(self, modulus: int) -> None:
        self.modulus = modulus

    def __len__(self) -> int:
        return self.modulus

    def __getitem__(self, start: int) -> dict:
        numbers = (start + np.arange(8, dtype=np.int32)) % self.modulus
        return {"inputs": numbers[:-1], "labels": numbers[1:]}


class Clock(Task[Settings]):
    """Count, and begin anew."""

    defaults = Settings(steps=4, batch_size=4)

    @property
    def config(self):
        return decoder_only(self.settings.modulus, length=8, dim=16, layers=1, heads=2)

    def batches(self, split="train", process=None):
        return batches_ahead(Counts(self.settings.modulus), 4, self.settings.seed if split == "train" else None)

    def loss(self, model, batch, key):
        return next_token_loss(model(batch["inputs"], dropout_key=key), batch["labels"])

    def evaluate(self, model):
        losses = [float(self.loss(model, batch, None)[0]) for batch in self.batches("validation")]
        return EvalResult({"held_out_loss": sum(losses) / len(losses)}, ["counted"])

    @property
    def evaluate_every(self):
        return 2

    def validate(self, model):
        return {"loss": self.evaluate(model).metrics["held_out_loss"]}
'''


@pytest.fixture
def clock(folder: Path) -> str:
    (folder / "clock.py").write_text(PROTOCOL)
    return "clock.py:Clock"


@pytest.mark.slow
def test_a_task_on_the_bare_protocol_trains_and_resumes(
    folder: Path, clock: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own settings are flags and are remembered; held-out data is looked at; what it cannot do is one line."""
    train(["--task", clock, "--modulus", "6", "--output", "whole"])
    assert "counted\n" in capsys.readouterr().out
    shutil.copytree("whole", "cut")
    shutil.rmtree("cut/checkpoints/4")
    train(["--task", clock, "--resume", "--output", "cut"])
    named = find_task(clock)
    whole, cut = (open_run(Path(name), named) for name in ("whole", "cut"))
    assert whole.task.settings.modulus == 6
    pairs = zip(*(jax.tree.leaves(each.model) for each in (whole, cut)), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    looks = [json.loads(line) for line in Path("whole/evaluations.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [2, 4]
    assert {"held_out_loss", "loss"} <= set(json.loads(Path("whole/results.json").read_text()))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train(["--task", clock, "--help"])
    said = capsys.readouterr().out
    assert "Train on the task clock: Count, and begin anew." in said
    assert "where counting begins anew (default: 5)" in " ".join(said.replace("│", " ").split())
    here = ["--task", clock, "--checkpoint", "whole"]
    assert "the task clock generates nothing: it has no method" in refused(decode_inputs, capsys, *here)
    assert "attention on the task clock cannot be drawn" in refused(module, capsys, "visualize", *here)
    said = refused(train, capsys, "--task", clock, "--resume", "--output", "cut", "--modulus", "7")
    assert "a resumed run keeps its settings: leave out --modulus" in said


def test_batches_that_cannot_be_returned_to_are_refused(
    folder: Path, clock: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "clock.py").read_text()
    (folder / "clock.py").write_text(text.replace("return batches_ahead(", "yield from batches_ahead("))
    said = refused(train, capsys, "--task", clock)
    assert "the batches of the task clock lack get_state and set_state: make them with" in said
    assert not (folder / "runs").exists()


# The task and the settings of runs that were made before tasks had a package of their own.
RECORDED = json.loads((Path(__file__).parent / "recorded_settings.json").read_text())


@pytest.mark.parametrize("name", ["copy", pytest.param("lm", marks=pytest.mark.slow)])
def test_runs_of_earlier_versions_go_on(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What run.json said of task and settings is read: the run resumes, generates and stays what it is."""
    flags = {
        "copy": TINY,
        "lm": ["--data", "text.txt", "--context", "32", "--batch-size", "8", "--warmup-steps", "5"],
    }[name]
    (folder / "text.txt").write_text("The cat sat on the mat; nobody minded it.\n" * 40)
    flags = [*flags, *(["--evaluate-batches", "2", "--evaluate-every", "2"] if name == "lm" else [])]
    train(["--task", name, *flags, "--steps", "4", "--save-every", "2", "--output", "run"])
    about = json.loads(Path("run/run.json").read_text())
    written = {key: about[key] for key in ("task", "settings")}
    # Settings that came later, which change nothing.
    assert written["settings"].pop("average") == 1
    assert written["settings"]["optimizer"].pop("warmup_ratio") is None
    assert written["settings"]["optimizer"].pop("layer_decay") == 1
    assert written["settings"]["optimizer"].pop("optimizer") == "adamw"
    assert written["settings"]["optimizer"].pop("ema") == 0
    if name == "lm":  # which said of a new model what is None now, and knew no checkpoint to start from
        assert written["settings"].pop("start")["model"] is None
        assert written["settings"]["text"].pop("skip_bad") is False
        assert {written["settings"]["model"].pop(size) for size in ("layers", "dim", "heads")} == {None}
        before = (("text", "tokenizer", "char"), ("model", "preset", "tiny"), ("model", "dropout", 0.0))
        for part, field, then in before:
            assert written["settings"][part][field] is None
            written["settings"][part][field] = then
    assert RECORDED[name] == written, "the same flags, the same settings"
    Path("run/run.json").write_text(json.dumps({**about, **RECORDED[name]}))
    before = parameters(Path("run"))
    assert before
    train(["--task", name, "--resume", "--steps", "5", "--output", "run"])
    assert steps_taken(Path("run")) == 5
    capsys.readouterr()
    decode_inputs(["--checkpoint", "run", *(["--prompt", "The cat"] if name == "lm" else ["--input", "1 2"])])
    assert capsys.readouterr().out
