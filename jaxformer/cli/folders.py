"""The folder of a run: chosen, made and locked, so that no two programs train in one."""

import contextlib
import shutil
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from jaxformer import parallel
from jaxformer.cli.runs import RESULTS, ROOT, runs_in
from jaxformer.errors import InputError
from jaxformer.locks import LOCK, holder, is_held, locked
from jaxformer.tasks import NamedTask
from jaxformer.training.record import EVALUATIONS, METRICS


def choose(named: NamedTask, output: Path | None, *, existing: bool) -> Path:
    """Return the folder of a run; nothing that is there already is written over.

    Args:
        named: The task, whose name the folder gets where there is no `output`.
        output: The folder that the command line asks for.
        existing: Whether to look for a run that exists already.
    """
    if existing:
        folder = output or next(runs_in(ROOT, named.spec), None)
        if folder is None:
            raise InputError(f"there is no run of the task {named.spec!r} in {ROOT}/ to go on with")
        return folder
    if output is not None:
        refuse_used(output)
    return output or ROOT / named.task.name


def refuse_used(folder: Path) -> None:
    """Raise InputError for a folder that a new run cannot have."""
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder as --output")
    if (folder / LOCK).exists() and is_held(folder):
        raise InputError(f"{folder} is in use by {holder(folder)}: give another --output")
    refuse_full(folder)


def refuse_full(folder: Path) -> None:
    """Raise InputError for a folder with more in it than a lock."""
    if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty: add --resume to go on there, or give another --output")


def claim(task_name: str, output: Path | None, lock: ExitStack) -> Path:
    """Make the folder of a new run and lock it; of two programs that start at once, each gets one of its own.

    Args:
        task_name: Names the folder where there is no `output`.
        output: The folder that the command line asks for.
        lock: Releases the lock when it is closed.

    Raises:
        InputError: Another program was quicker in `output`.
        OSError: The folder cannot be made.
    """
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        lock.enter_context(locked(output))
        refuse_full(output)
        return output
    ROOT.mkdir(exist_ok=True)
    for number in range(1, sys.maxsize):
        folder = ROOT / (task_name if number == 1 else f"{task_name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            lock.enter_context(locked(folder))
            return folder
    raise InputError(f"all names in {ROOT}/ are taken: give an --output")


def claim_for_all(task_name: str, output: Path | None, lock: ExitStack) -> Path:
    """Return in all processes the folder that the first one claims; arguments and errors as of `claim`."""
    folder, problem = None, None
    if parallel.is_first():
        try:
            folder = str(claim(task_name, output, lock))
        except (InputError, OSError) as error:
            problem = error
    folder = parallel.agree(folder)
    if problem is not None:
        raise problem
    if folder is None:
        raise InputError("process 0 has no folder for the run: see what it says")
    return Path(folder)


def described(home: Path) -> bytes:
    """Return what a run says of itself and of its data, to be compared between processes."""
    files = sorted(path for path in home.glob("*.json") if path.name not in (RESULTS, LOCK))
    return b"".join(path.name.encode() + path.read_bytes() for path in files)


@contextmanager
def scratch(folder: Path) -> Generator[Path]:
    """Make a folder for what processes other than the first write, with the metrics so far, and remove it."""
    with TemporaryDirectory() as name:
        for file in (METRICS, EVALUATIONS):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(folder / file, name)
        yield Path(name)
