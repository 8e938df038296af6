"""Tasks by the names that --task takes: those of the package, and classes in files of users."""

import hashlib
import inspect
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxformer.config import to_dict
from jaxformer.errors import InputError, listed, shortened
from jaxformer.schema import shown
from jaxformer.tasks.answering import AnswerTask
from jaxformer.tasks.classification import ClassifyTask
from jaxformer.tasks.language import LanguageTask
from jaxformer.tasks.masked import MaskedLanguageTask
from jaxformer.tasks.sequences import Copy, Reverse, SequenceTask, Sort
from jaxformer.tasks.settings import TrainSettings, settings_from_dict
from jaxformer.tasks.spans import SpanTask
from jaxformer.tasks.tagging import TagTask
from jaxformer.tasks.task import Task
from jaxformer.tasks.translation import TranslateTask

TASKS: dict[str, type[Task[Any]]] = {
    "copy": Copy,
    "reverse": Reverse,
    "sort": Sort,
    "lm": LanguageTask,
    "translate": TranslateTask,
    "classify": ClassifyTask,
    "tag": TagTask,
    "answer": AnswerTask,
    "mlm": MaskedLanguageTask,
    "span": SpanTask,
}
BASES = (Task, SequenceTask)  # classes to derive from, which are no tasks themselves
HOW = "write --task FILE.py:CLASS"
MOST_BYTES = 1 << 20  # of a file with tasks


class NamedTask(NamedTuple):
    """A task, as the command line names it.

    Attributes:
        spec: A name of `TASKS`, or FILE.py:CLASS.
        task: The class.
        code: SHA-256 of the file, in hexadecimal; None for a task of the package.
    """

    spec: str
    task: type[Task[Any]]
    code: str | None = None


def find_task(spec: str) -> NamedTask:
    """Return the task that a user names. The code of a file runs: never call this with what a file says.

    Raises:
        InputError: There is no such task, or its file or class cannot be used.
    """
    if spec in TASKS:
        return NamedTask(spec, TASKS[spec])
    if not is_outside(spec):
        raise InputError(f"unknown task {shortened(spec, 60)!r}: choose one of {', '.join(TASKS)}, or {HOW}")
    file, _, name = spec.rpartition(":")
    if not file or not name:
        raise InputError(f"--task {shortened(spec, 200)} names no class: {HOW}")
    source = read_source(Path(file))
    return NamedTask(spec, checked(find_class(execute(Path(file), source), name, file), spec), digest(source))


def is_outside(spec: str) -> bool:
    """Return whether a name of a task is that of a file, not of a task of the package."""
    return ":" in spec or spec.endswith(".py")


def same_task(spec: str, other: str) -> bool:
    """Return whether two names mean the same task. A file may have moved: its own name and the class count."""
    if not (is_outside(spec) and is_outside(other)):
        return spec == other
    (file, _, name), (other_file, _, other_name) = spec.rpartition(":"), other.rpartition(":")
    return (Path(file).name, name) == (Path(other_file).name, other_name)


def read_source(path: Path) -> bytes:
    """Return the content of a file with tasks. Raises InputError if it cannot be read."""
    if not path.is_file():
        missing = "is no file" if path.exists() else "does not exist"
        raise InputError(f"--task: {shortened(str(path), 200)} {missing}: {HOW}")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"--task: {shortened(str(path), 200)} is larger than {MOST_BYTES:,} bytes: {HOW}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"--task: {shortened(str(path), 200)} cannot be read: {error.strerror}") from None


def digest(source: bytes) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(source).hexdigest()


def execute(path: Path, source: bytes) -> ModuleType:
    """Return the module that a file makes, whose folder can be imported from, as if Python had been called with it.

    Nothing is compiled into a cache beside the file. Raises InputError with file, line and exception where it fails.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]  # two files may have one name
    module = ModuleType(f"jaxformer_task_{path.stem}_{digest}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and type hints are looked up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's code raises, SystemExit too
        del sys.modules[module.__name__]
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(f"{place(path, error)}: {type(error).__name__}: {message}") from error
    return module


def place(path: Path, error: BaseException) -> str:
    """Return the file of a user, with the line at which an exception left it."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def find_class(module: ModuleType, name: str, file: str) -> type:
    """Return a class of a module. Raises InputError, which names the tasks that there are."""
    found = getattr(module, name, None)
    if isinstance(found, type):
        return found
    own = [key for key, value in vars(module).items() if is_task(value) and value.__module__ == module.__name__]
    there = f"it has {listed(own)}" if own else "derive one from jaxformer.tasks.SequenceTask or Task"
    raise InputError(f"{shortened(file, 150)} has no class {shortened(name, 60)}: {there}")


def is_task(value: Any) -> bool:
    """Return whether a value is a class of a task that may be trained."""
    return isinstance(value, type) and issubclass(value, Task) and value not in BASES


def checked(found: type, spec: str) -> type[Task[Any]]:
    """Return a class. Raises InputError if it is no task that can be trained."""
    name = shortened(spec, 120)
    if not is_task(found):
        raise InputError(f"{name} is no task: derive it from jaxformer.tasks.SequenceTask or jaxformer.tasks.Task")
    if inspect.isabstract(found):
        missing = listed(sorted(found.__abstractmethods__))
        raise InputError(f"{name} lacks {missing}: see help(jaxformer.tasks.Task)")
    defaults = found.defaults
    if not isinstance(defaults, TrainSettings):
        raise InputError(f"{name}: `defaults` must be TrainSettings() or of a derived class, not {shown(defaults)}")
    own = type(defaults)
    if "__dataclass_fields__" not in vars(own):
        raise InputError(f"{name}: the settings {own.__name__} lack @dataclass(frozen=True): put that above the class")
    try:
        same = settings_from_dict(json.loads(json.dumps(to_dict(defaults))), own) == defaults
    except (InputError, NameError, TypeError) as error:
        raise InputError(f"{name}: `defaults` cannot be written to run.json and read again: {error}") from error
    if not same:
        raise InputError(f"{name}: `defaults` differ when they are written to run.json and read again")
    return found
