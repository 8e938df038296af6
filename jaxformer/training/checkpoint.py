"""The checkpoints of a run: written in the background, the best and the last ones kept, damaged ones passed over."""

import contextlib
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax

from jaxformer import parallel
from jaxformer.errors import InputError, shortened
from jaxformer.training.optimizer import averaged
from jaxformer.training.record import say
from jaxformer.training.storage import UNFINISHED, DamagedError, Writer, load, read_about

REMOVED, DAMAGED = ".removed", ".damaged"  # endings of the folders of checkpoints that are none any more


class Checkpoints:
    """The checkpoints of a run, in one folder, by step.

    A checkpoint is a folder that gets its name only when it is complete, so a run killed while saving leaves nothing
    that could be mistaken for one; such remains are removed when the folder is opened for writing. The last `keep`
    checkpoints and the one of least loss are kept, whichever process wrote them: the loss is on disk.

    Args:
        folder: Where they lie.
        keep: How many of the last ones to keep.
        writable: Whether to write; without, nothing in the folder is changed.
        notify: Receives a line for people when a damaged checkpoint is passed over.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, writable: bool = True, notify: Callable[[str], None] = say
    ) -> None:
        self.folder, self.keep, self.writable, self.notify = folder, keep, writable, notify
        self.losses: dict[int, float] = {}
        self.writer: Writer | None = None
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.step = 0  # of the save in the background
        if writable:
            if parallel.is_first():
                folder.mkdir(parents=True, exist_ok=True)
                self._remove_remains()
            parallel.wait_for_all("checkpoints")
            self.writer = Writer(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(OSError):  # the error that ends the block counts
                self.close()

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return max(self.steps, default=None)

    def save(self, step: int, state: Any, position: dict[str, Any], loss: float) -> None:
        """Begin to write a checkpoint. Raises OSError if this save or the one before it could not be written."""
        assert self.writer is not None, "opened for reading"
        self.wait()
        needed, free = room(state), shutil.disk_usage(self.folder).free
        if free < needed and parallel.is_first():
            missing = f"{amount(needed)} needed, {amount(needed - free)} of them missing"
            raise self._failure(step, f"no space left on device ({missing})")
        try:
            self.writer.begin(step, state, position, loss)
        except Exception as error:
            self._remove_remains()
            raise self._failure(step, reason(error)) from error
        self.step = step
        self.thread = threading.Thread(target=self._finish, args=(step, loss), daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Return when every save is complete. Raises OSError if one could not be written."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise self._failure(self.step, reason(error)) from error

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """Return the newest undamaged state, with shapes and types of the pytree `like`, and its place in the data.

        Damaged checkpoints that are newer are told to `notify`, and renamed if the folder is writable.

        Raises:
            InputError: There is no undamaged checkpoint, or it is one of another model.
        """
        damaged: dict[int, str] = {}
        while left := [step for step in self.steps if step not in damaged]:
            step = left[-1]
            try:
                state, position = load(self.folder / str(step), like)
            except DamagedError as error:
                if (self.folder / str(step)).exists():  # else a training has removed it meanwhile
                    damaged[step] = str(error)
                continue
            for other, why in damaged.items():
                self._pass_over(other, why, f"{'going on from' if self.writable else 'opening'} {step}")
            # A copy, because a training step donates its state, and what was restored may be shared.
            return jax.tree.map(jax.numpy.copy, state), position
        if not damaged:
            raise InputError(f"{self.folder} holds no complete checkpoint: train again")
        newest, why = next(iter(damaged.items()))
        others = f" and so are the {len(damaged) - 1} older ones" if len(damaged) > 1 else " and there is no older one"
        raise InputError(f"the checkpoint {self.folder / str(newest)} is damaged ({why}){others}: train again")

    def average(self, like: Any, count: int) -> Any:
        """Return the mean of the parameters of the last undamaged checkpoints, see `averaged`.

        Args:
            like: A training state of the same shapes and types.
            count: How many checkpoints; fewer where there are not as many.

        Raises:
            InputError: As `restore`.
        """
        newest, _ = self.restore(like)  # tells of damaged ones
        if count == 1:
            return averaged(newest.params, newest.optimizer)
        found: list[Any] = []
        for step in reversed(self.steps):
            if len(found) < count:
                with contextlib.suppress(DamagedError):
                    state = load(self.folder / str(step), like)[0]
                    found.append(averaged(state.params, state.optimizer))

        def mean(*leaves: jax.Array) -> jax.Array:
            return jax.numpy.mean(jax.numpy.stack(leaves).astype("float32"), axis=0).astype(leaves[0].dtype)

        return jax.jit(lambda *states: jax.tree.map(mean, *states))(*found)

    def close(self) -> None:
        """Wait, and release the folder. Raises OSError as `wait` does."""
        try:
            self.wait()
        finally:
            if self.writer is not None:
                self.writer.close()

    def _finish(self, step: int, loss: float) -> None:
        """Wait for a save and remove the checkpoints that it makes superfluous; runs in a thread."""
        assert self.writer is not None
        try:
            self.writer.wait()
            self.losses[step] = loss
            if parallel.is_first():
                self._prune()
        except BaseException as error:
            self.error = error
            self._remove_remains()

    def _prune(self) -> None:
        """Remove all but the last checkpoints and the best; of equally good ones the first is the best."""
        for step in self.steps:
            if step not in self.losses:
                try:
                    self.losses[step] = read_about(self.folder / str(step)).loss
                except DamagedError as error:
                    self._pass_over(step, str(error), "it is not used")
        steps = self.steps
        finite = [step for step in steps if math.isfinite(self.losses[step])]
        best = min(finite, key=lambda step: self.losses[step], default=None)
        for step in steps[: -self.keep]:
            if step != best:
                # A removal that is cut short must not leave half a checkpoint under a valid name.
                shutil.rmtree((self.folder / str(step)).rename(self.folder / f"{step}{REMOVED}"))

    def _pass_over(self, step: int, why: str, instead: str) -> None:
        """Tell that a checkpoint is damaged, and take its name away so that the step can be saved again."""
        kept = ""
        if self.writable:
            names = (f"{step}{DAMAGED}{'' if number == 1 else f'-{number}'}" for number in range(1, sys.maxsize))
            aside = next(self.folder / name for name in names if not (self.folder / name).exists())
            (self.folder / str(step)).rename(aside)
            kept = f", its folder is now {aside.name}"
        self.notify(f"checkpoint {step} is damaged ({why}): {instead}{kept}")

    def _remove_remains(self) -> None:
        """Remove what saves that failed or were killed have left, and what was being removed."""
        for remains in (*self.folder.glob(f"*{UNFINISHED}*"), *self.folder.glob(f"*{REMOVED}")):
            shutil.rmtree(remains, ignore_errors=True)

    def _failure(self, step: int, what: str) -> OSError:
        last = "there is none yet" if self.latest is None else f"the last complete one is {self.latest}"
        return OSError(f"checkpoint {step} cannot be written: {what}; {last}")


def room(state: Any) -> int:
    """Return how many bytes must be free before a save begins: the arrays, and half as much again for the rest."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) * 3 // 2 + 100_000


def amount(size: int) -> str:
    """Return a number of bytes for people, rounded up, with three digits."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{math.ceil(100 * size / unit) / 100:.3g} {name}"
    return f"{math.ceil(size / 1000)} kB"


def reason(error: BaseException) -> str:
    """Return why a save failed, in few words: orbax and its storage layer raise a full disk in several types."""
    if code := getattr(error, "errno", None) or re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code if isinstance(code, int) else code[1])).lower()
    return shortened(str(error).splitlines()[0] if str(error) else type(error).__name__, 100)
