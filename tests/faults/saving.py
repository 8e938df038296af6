"""Kills and full disks while a checkpoint folder is written over: it opens as the old model or as the new one.

    PYTHONPATH=tests:tests/parity:tests/faults python tests/faults/saving.py --cases 2000 --seed 0

Models are prepared arrays, all of whose numbers are the number of the model, as is a key of each JSON file. Each case
is a forked child that saves; this process never starts JAX, so that it may fork.
"""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from safetensors.numpy import save_file
from tally import Tally, main

from jaxformer.errors import InputError
from jaxformer.pretrained import saving, staging
from jaxformer.pretrained.files import INDEX, SINGLE, old_weights, read_tensors, write_json, write_tensors
from jaxformer.pretrained.saving import replacing
from jaxformer.schema import load_json

OTHERS = {"README.md": "read me", ".git/HEAD": "main", ".cache/a/b": "cached"}
CHANGING = frozenset(("rename", "replace", "unlink", "rmdir", "mkdir", "link", "symlink"))
WAYS = ("exchange", "one by one", "inside")


def tensors_of(number: int) -> dict[str, np.ndarray]:
    """The weights of a model. Every third one has another tensor."""
    names = ["a", "b", *["c"] * (number % 3 == 0)]
    return {name: np.full((50, 100 + number % 7), number, np.float32) for name in names}


def save(folder: Path, number: int, same_settings: bool = False) -> None:
    """Save a model as `save_pretrained` does."""
    settings = 0 if same_settings else number
    with replacing(folder, old_weights(folder)) as new:
        write_tensors(new, tensors_of(number))
        write_json(new / "config.json", {"number": settings})
        write_json(new / "generation_config.json", {"number": settings})


def make_folder(folder: Path, rng: np.random.Generator) -> None:
    """A folder with files of the user, and none, one or several files of weights."""
    shutil.rmtree(folder, ignore_errors=True)
    kind = rng.integers(4)
    if kind == 0:
        return
    for name, text in OTHERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if kind == 1:
        save(folder, 0)
    elif kind == 2:
        for name in ("config.json", "generation_config.json"):
            write_json(folder / name, {"number": 0})
        shards = {name: f"model-{name}.safetensors" for name in tensors_of(0)}
        for name, shard in shards.items():
            save_file({name: tensors_of(0)[name]}, folder / shard)
        write_json(folder / INDEX, {"metadata": {}, "weight_map": shards})


def number_of(folder: Path, same_settings: bool) -> int | None:
    """The number of the model that a folder opens as, None for a folder that is not opened. Raises for a mixture."""
    if not (folder / "config.json").exists():
        return None
    tensors = read_tensors(folder)
    (number,) = {int(value) for tensor in tensors.values() for value in np.unique(tensor)}
    assert tensors.keys() == tensors_of(number).keys(), f"has {sorted(tensors)} of model {number}"
    for name in ("config.json", "generation_config.json"):
        assert load_json(folder / name)["number"] == (0 if same_settings else number), (
            f"{name} is not of model {number}"
        )
    return number


@contextmanager
def way(name: str) -> Iterator[None]:
    """Save in one of the ways: folders can be exchanged, or not, or nothing can be made beside the folder."""
    exchange, make = saving.exchange, staging.make_place

    def refuse(*_: Any) -> None:
        raise OSError(errno.EINVAL, "not here")

    def only_inside(parent: Path, target: Path) -> staging.Place:
        if parent != target and target.exists():
            raise PermissionError(errno.EACCES, "read-only")
        return make(parent, target)

    saving.exchange = exchange if name == "exchange" else refuse
    staging.make_place = only_inside if name == "inside" else make
    try:
        yield
    finally:
        saving.exchange, staging.make_place = exchange, make


def in_child(action: Callable[[], None]) -> int:
    """Fork a child that does something and ends; return its process id."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return child


def kill_after(seconds: float, action: Callable[[], None]) -> None:
    """Kill a child at some time."""
    child = in_child(action)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def kill_at_call(call: int, action: Callable[[], None], functions: frozenset[str]) -> None:
    """Kill a child at some call of these functions of C (none: any), so that short steps are as likely as long ones."""

    def traced() -> None:
        left = iter(range(call))

        def count(frame: Any, event: str, argument: Any) -> None:
            counted = event in ("c_call", "c_return") and (not functions or argument.__name__ in functions)
            if counted and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        action()

    os.waitpid(in_child(traced), 0)


def problem_of(folder: Path, known: set[int | None], same_settings: bool, number: int) -> str | None:
    """What is wrong with a folder after a kill, and after the next save."""
    try:
        found = number_of(folder, same_settings)
        if found not in known:
            return f"opens as {found}, not as one of {known}"
        here = folder.exists()
        others = {name for name in OTHERS if (folder / name).exists()}
        if here and others and any((folder / name).read_text() != text for name, text in OTHERS.items()):
            return "lost files of the user"
        save(folder, number, same_settings)
        if number_of(folder, same_settings) != number:
            return "cannot be saved to again"
        expected = {"config.json", "generation_config.json", SINGLE, *(name.split("/")[0] for name in others)}
        if (found := set(os.listdir(folder))) != expected or os.listdir(folder.parent) != [folder.name]:
            return f"leftovers: {sorted(found ^ expected)} {os.listdir(folder.parent)}"
    except (InputError, AssertionError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def kill_case(folder: Path, rng: np.random.Generator) -> tuple[str, str | None]:
    """Kill a process that saves models 1, 2, ... over a folder."""
    make_folder(folder, rng)
    name, same_settings = WAYS[rng.integers(3)], bool(rng.random() < 0.3)
    if same_settings:  # only the weights differ between saves
        save(folder, 7, True)
    old = number_of(folder, same_settings)
    with way(name):

        def action() -> None:
            for number in range(1, 1000):
                save(folder, number, same_settings)

        how = rng.integers(3)
        moment = (rng.uniform(0, 0.08), int(rng.integers(3000)), int(rng.integers(150)))[how]
        if how == 0:
            kill_after(moment, action)
        else:
            kill_at_call(moment, action, CHANGING if how == 2 else frozenset())
        known = {old, *range(1, 1000), *([None] if name != "exchange" and not same_settings else [])}
        return f"kill at {moment} ({how}), {name}, old={old}", problem_of(folder, known, same_settings, 1001)


def full_case(folder: Path, rng: np.random.Generator, room: Path | None) -> tuple[str, str | None]:
    """Save to a disk that has too little room, or with a limit to the size of files."""
    make_folder(folder, rng)
    old, name, size = number_of(folder, False), WAYS[rng.integers(3)], int(rng.integers(90_000))
    failure = folder.parent.parent / "failure"
    failure.unlink(missing_ok=True)

    def action() -> None:
        if room is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            save(folder, 1)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG):
                failure.touch()
            os._exit(1)
        except BaseException:
            failure.touch()
            raise

    if room is not None:
        free = shutil.disk_usage(room).free
        (room / "ballast").write_bytes(b"\0" * max(0, free - size))
    with way(name):
        _, status = os.waitpid(in_child(action), 0)
        case = f"room for {size} bytes, {name}, old={old}, {'disk' if room else 'limit'}"
        left = [path.name for path in folder.parent.rglob(".unfinished-*")]
        if room is not None:
            (room / "ballast").unlink()
        if failure.exists() or left:
            return case, f"raised something else or left {left}"
        return case, problem_of(folder, {1} if status == 0 else {old}, False, 1001)


@contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """A disk of 2 MB, where this user may mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fuzz(cases: int, seed: int) -> Tally:
    """Try kills, and a case in four full disks."""
    tally = Tally("saving over a folder")
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as disk:
        for case in range(cases):
            rng = np.random.default_rng([seed, case])
            room = disk if rng.random() < 0.7 else None
            full = rng.random() < 0.25
            folder = (room if full and room else Path(name) / "kills") / "above" / "model"
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir(parents=True)
            what, problem = full_case(folder, rng, room) if full else kill_case(folder, rng)
            tally.record(f"seed {seed}, case {case} ({what})", problem)
    return tally


if __name__ == "__main__":
    main(fuzz, cases=2000)
