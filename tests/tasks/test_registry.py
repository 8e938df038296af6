"""Tasks by name: those of the package, classes in files, and everything that can be wrong with a file."""

import dataclasses
import sys
from pathlib import Path

import pytest

from jaxformer import InputError
from jaxformer.cli.train import parse
from jaxformer.tasks import TASKS, SequenceTask, command_flags, find_task, is_outside, same_task

GOOD = """
from dataclasses import dataclass
from jaxformer.tasks import SequenceSettings, SequenceTask

class Rotate(SequenceTask):
    \"\"\"Say the first symbol last.\"\"\"

    def answer(self, source):
        return [*source[1:], source[0]]

class BigPig(Rotate):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder; what is loaded leaves no traces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("jaxformer_task_")]:
        del sys.modules[name]


def test_tasks_of_the_package_have_their_names() -> None:
    assert list(TASKS) == ["copy", "reverse", "sort", "lm", "translate", "classify", "tag", "answer", "mlm", "span"]
    assert all(find_task(name).task.name == name for name in TASKS)


@pytest.mark.parametrize("file", ["mine.py", "sub/mine.py", "{}/mine.py"])
def test_a_class_in_a_file_is_found_by_relative_and_absolute_paths(folder: Path, file: str) -> None:
    path = Path(file.format(folder))
    path.parent.mkdir(exist_ok=True)
    path.write_text(GOOD)
    named = find_task(f"{path}:Rotate")
    assert issubclass(named.task, SequenceTask)
    assert named.task.name == "rotate"
    assert "Say the first symbol last." in named.task.describe()
    assert named.code != find_task("copy").code
    assert find_task(f"{path}:BigPig").task.name == "big-pig"
    assert [each.name for each in path.parent.iterdir() if each.name != "mine.py"] == [], "no cache beside the file"


def test_a_file_imports_its_neighbours_but_hides_nothing(folder: Path) -> None:
    (folder / "words.py").write_text("NAME = 'from-neighbour'")
    (folder / "numpy.py").write_text("raise RuntimeError")
    (folder / "mine.py").write_text("import numpy, words\n" + GOOD + "\n    name = words.NAME\n")
    assert find_task("mine.py:BigPig").task.name == "from-neighbour"


def test_a_changed_file_is_read_again(folder: Path) -> None:
    (folder / "mine.py").write_text(GOOD)
    first = find_task("mine.py:Rotate")
    (folder / "mine.py").write_text(GOOD.replace("last", "LAST"))
    again = find_task("mine.py:Rotate")
    assert first.code != again.code
    assert "LAST" in again.task.describe()


BASE = "from dataclasses import dataclass\nfrom jaxformer.tasks import SequenceSettings, SequenceTask, Task\n"
ANSWER = "\n    def answer(self, source):\n        return source\n"


@pytest.mark.parametrize(
    ("content", "spec", "message"),
    [
        (None, "nowhere.py:Twice", "nowhere.py does not exist: write --task FILE.py:CLASS"),
        (None, ".:Twice", r"\. is no file"),
        (None, "mine.py", "mine.py names no class: write --task FILE.py:CLASS"),
        (None, "mine.py:", "names no class"),
        (None, ":Twice", "names no class"),
        (
            None,
            "juggle",
            "'juggle': choose one of copy, reverse, sort, lm, translate, classify, tag, answer, mlm, span, or write",
        ),
        (GOOD, "mine.py:Twice", "mine.py has no class Twice: it has Rotate, BigPig"),
        ("x = 1", "mine.py:Twice", "has no class Twice: derive one from jaxformer.tasks.SequenceTask or Task"),
        ("Twice = 3", "mine.py:Twice", "has no class Twice"),
        ("class Twice:\n    pass", "mine.py:Twice", "mine.py:Twice is no task: derive it from"),
        (BASE, "mine.py:SequenceTask", "is no task: derive it from"),
        (BASE + "class Twice(SequenceTask):\n    pass", "mine.py:Twice", "mine.py:Twice lacks answer: see help"),
        (BASE + "class Twice(Task):\n    pass", "mine.py:Twice", "lacks batches, config, evaluate, loss"),
        ("import nmupy", "mine.py:Twice", r"^mine.py, line 1: ModuleNotFoundError: No module named 'nmupy'$"),
        ("x = 1\n\ny = x / 0", "mine.py:Twice", r"^mine.py, line 3: ZeroDivisionError: division by zero$"),
        ("x = 1\nclass Twice(:\n  pass", "mine.py:Twice", r"^mine.py, line 2: SyntaxError: invalid syntax$"),
        ("import sys\nsys.exit(0)", "mine.py:Twice", r"^mine.py, line 2: SystemExit: 0$"),
        ("\0", "mine.py:Twice", "null bytes"),
        ("def f():\n    raise OSError('x' * 999)\nf()", "mine.py:Twice", "mine.py, line 2: OSError: x+"),
        (BASE + "class Twice(SequenceTask):\n    defaults = 3" + ANSWER, "mine.py:Twice", "must be TrainSettings"),
        (
            BASE + "class Mine(SequenceSettings):\n    more: int = 1\n\n"
            "class Twice(SequenceTask):\n    defaults = Mine()" + ANSWER,
            "mine.py:Twice",
            r"the settings Mine lack @dataclass\(frozen=True\)",
        ),
        (
            BASE + "@dataclass(frozen=True)\nclass Mine(SequenceSettings):\n    more: complex = 1j\n\n"
            "class Twice(SequenceTask):\n    defaults = Mine()" + ANSWER,
            "mine.py:Twice",
            "cannot be written to run.json",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_message(folder: Path, content: str | None, spec: str, message: str) -> None:
    if content is not None:
        (folder / "mine.py").write_text(content)
    with pytest.raises(InputError, match=message):
        find_task(spec)


def test_a_file_may_move_but_not_change_its_name() -> None:
    assert is_outside("a/b.py:C")
    assert not is_outside("copy")
    assert same_task("a/b.py:C", "/elsewhere/b.py:C")
    assert not same_task("a/b.py:C", "a/b.py:D")
    assert not same_task("a/b.py:C", "a/c.py:C")
    assert not same_task("copy", "copy.py:copy")
    assert same_task("copy", "copy")


@pytest.mark.parametrize("name", TASKS)
def test_the_settings_of_a_run_can_be_given_again(name: str) -> None:
    """What a report shows as settings is a command line that asks for them."""
    named = find_task(name)
    settings = named.task.defaults
    assert parse(named, command_flags(settings), settings).settings == settings
    other = dataclasses.replace(settings, seed=7, optimizer=dataclasses.replace(settings.optimizer, ema=0.5))
    assert parse(named, command_flags(other), settings).settings == other
