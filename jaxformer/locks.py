"""Locks on folders: one process holds a folder, and the kernel releases it when that process ends."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from jaxformer.errors import InputError, shortened

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "lock.json"


class NoLocksError(Exception):
    """The file system or the operating system has no locks of this kind."""


@contextmanager
def locked(folder: Path, *, warn: bool = True) -> Generator[None]:
    """Hold the lock of a folder; where the file system has no locks, go on without.

    Args:
        folder: The folder, which must exist.
        warn: Whether to say on standard error that there are no locks.

    Raises:
        InputError: Another process holds it; the message names that process.
        OSError: The lock file cannot be written.
    """
    try:
        descriptor = acquire(folder)
    except NoLocksError as error:
        if warn:
            print(f"{folder} cannot be locked ({error}): do not start a second program in it", file=sys.stderr)
        yield
        return
    if descriptor is None:
        raise InputError(f"{folder} is in use by {holder(folder)}: wait until that ends, or give another folder")
    sign(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        os.close(descriptor)


def acquire(folder: Path) -> int | None:
    """Take the lock of a folder.

    Returns:
        The descriptor of the lock file: the lock is held until it is closed. None if another process holds the lock.

    Raises:
        NoLocksError: The file system or the operating system has no such locks.
        OSError: The lock file cannot be opened.
    """
    if fcntl is None:
        raise NoLocksError("this operating system has no flock")
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise NoLocksError(error.strerror) from error
        if is_file(descriptor, path):
            break
        os.close(descriptor)  # the previous holder removed this file between the two calls
    return descriptor


def sign(descriptor: int) -> None:
    """Write who holds a lock into its file."""
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    with contextlib.suppress(OSError):  # a full disk: the lock holds, its holder has no name
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(about).encode())


def is_held(folder: Path) -> bool | None:
    """Return whether a process holds the lock of a folder; None where the file system has no locks."""
    try:
        descriptor = acquire(folder)
    except (NoLocksError, OSError):
        return None
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def is_file(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def holder(folder: Path) -> str:
    """Return who holds the lock of a folder, in words."""
    try:
        about = json.loads((folder / LOCK).read_text())
        return shortened(f"process {about['pid']} on {about['host']} since {about['since']}", 120)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"
