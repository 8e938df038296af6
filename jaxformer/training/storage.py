"""One checkpoint on disk: arrays written by orbax, checksums of all files, a rename that makes it valid."""

import asyncio
import contextlib
import json
import logging
import math
import zlib
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxformer import parallel
from jaxformer.errors import InputError, shortened
from jaxformer.schema import load_json, mapping, number, read

STATE, POSITION = "state", "position"  # the items of a checkpoint: the training state, the place in the data
POSITION_FILE = f"{POSITION}/metadata"
SEAL = "checksums.json"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that is being written
PATIENCE = 60.0  # seconds for the reads and writes that go on after an error
ABOUT = {"position": mapping(), "loss": number(None)}
T = TypeVar("T")


class DamagedError(Exception):
    """A checkpoint is not as it was written; the message says what is wrong with it."""


class Writer:
    """Write checkpoints in the background. A save that fails leaves nothing that looks like a checkpoint.

    Args:
        folder: Where checkpoints lie, each in a folder named after its step.
    """

    def __init__(self, folder: Path):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors are raised as well
        self.folder = folder.resolve()
        # Folders are created at once, because orbax leaves a thread that waits for minutes if that fails later.
        options = ocp.AsyncOptions(post_finalization_callback=self._seal, create_directories_asynchronously=False)
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(async_options=options))
        self.orbax = ocp.AsyncCheckpointer(handler, async_options=options)

    def begin(self, step: int, state: Any, position: dict[str, Any], loss: float) -> None:
        """Copy the state and begin to write it; `wait` before the next call."""
        about = {"position": position, "loss": loss if math.isfinite(loss) else None}
        items = {STATE: ocp.args.StandardSave(state), POSITION: ocp.args.JsonSave(about)}
        self.orbax.save(self.folder / str(step), args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Return when nothing is being written. Raises what went wrong, in any type."""
        self.orbax.wait_until_finished()

    def close(self) -> None:
        """Close what orbax holds; failures of saves were raised by `wait`."""
        with contextlib.suppress(Exception):
            self.orbax.close()

    def _seal(self) -> None:
        """Write the checksums of a complete checkpoint, before its folder gets its name; once for all processes."""
        if not parallel.is_first():
            return
        (folder,) = self.folder.glob(f"*{UNFINISHED}*")
        files = {str(path.relative_to(folder)): checksum(path) for path in sorted(contents(folder))}
        (folder / SEAL).write_text(json.dumps({"files": files}) + "\n")


def contents(folder: Path) -> Iterator[Path]:
    """Yield the files that a checkpoint consists of."""
    for item in (STATE, POSITION):
        yield from (path for path in (folder / item).rglob("*") if path.is_file())


def checksum(path: Path) -> list[int]:
    """Return the size of a file and the CRC-32 of its bytes."""
    size = total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, total = size + len(block), zlib.crc32(block, total)
    return [size, total]


class About(NamedTuple):
    """Properties of a checkpoint beside its state.

    Attributes:
        position: The place in the data.
        loss: The loss by which the best checkpoint is chosen; infinite if it is unknown.
        sealed: Whether there are checksums. Checkpoints of older versions have none, and their loss is unknown.
    """

    position: dict[str, Any]
    loss: float
    sealed: bool


def read_about(folder: Path) -> About:
    """Return what a checkpoint says of itself, without reading its state.

    Raises:
        DamagedError: That cannot be read.
    """
    sealed = (folder / SEAL).exists()
    with damage(folder):
        about = load_json(folder / POSITION_FILE)
        if about.keys() != ABOUT.keys():
            return About(about, math.inf, sealed)
        about = read(about, ABOUT)
    if not sealed:
        raise DamagedError(f"{SEAL} is missing")
    return About(about["position"], math.inf if about["loss"] is None else about["loss"], sealed)


def verify(folder: Path) -> None:
    """Compare the files of a checkpoint with their checksums.

    Raises:
        DamagedError: A file is missing or not as it was written.
        PermissionError: A file may not be read.
    """
    with damage(folder):
        files = read(load_json(folder / SEAL), {"files": mapping({})})["files"]
        present = {str(path.relative_to(folder)): path for path in contents(folder)}
        for name, written in files.items():
            if name not in present:
                raise DamagedError(f"{shortened(name, 80)} is missing")
            if checksum(present[name]) != written:
                raise DamagedError(f"{name} does not match its checksum")


@contextmanager
def damage(folder: Path) -> Generator[None]:
    """Raise DamagedError for files of a checkpoint that are missing, broken, or of another form."""
    try:
        yield
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedError(f"{Path(error.filename or '').name}: {error.strerror}") from error
    except InputError as error:
        raise DamagedError(shortened(str(error).replace(f"{folder}/", ""), 120)) from error


def load(folder: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Read a checkpoint.

    Args:
        folder: The folder of the checkpoint.
        like: A pytree of arrays, or of their shapes and types, that the state must have.

    Returns:
        The state, and the place in the data.

    Raises:
        DamagedError: The checkpoint is not as it was written.
        InputError: It is as it was written, and holds another state than `like`.
    """
    about = read_about(folder)
    if about.sealed:
        verify(folder)
    try:
        wanted = ocp.args.StandardRestore(jax.tree.map(placed, like))
        state = ocp.StandardCheckpointHandler().restore(epath.Path(folder.resolve() / STATE), args=wanted)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # orbax and its storage layer raise many types
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise
        if about.sealed:
            why = shortened(str(error), 120)
            raise InputError(f"{folder} holds another state than this model has: {why}") from error
        raise DamagedError(shortened(str(error), 120)) from error
    return state, about.position


def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return shape, type and place of an array; the default device where it has no place."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def run_to_the_end(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop that is closed when all of its tasks have ended, also after an error.

    Orbax closes its loops at the first error, while other reads and writes go on: each of them then prints a
    traceback ("Event loop is closed") from another thread.
    """
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(coro)
    finally:
        if pending := asyncio.all_tasks(loop):
            rest = asyncio.gather(*pending, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                loop.run_until_complete(asyncio.wait_for(rest, PATIENCE))
        asyncio.set_event_loop(None)
        loop.close()


with contextlib.suppress(ImportError):  # orbax has no public way to say this
    from orbax.checkpoint._src import asyncio_utils

    asyncio_utils._run_sync_via_new_loop = run_to_the_end
