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


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the lock of a folder; where the file system has no locks, warn and go on.

    Raises:
        InputError: Another process holds it; the message names that process.
        OSError: The lock file cannot be written.
    """
    try:
        descriptor = acquire(folder)
    except NotImplementedError as error:
        print(f"{folder} cannot be locked ({error}): do not start a second program in it", file=sys.stderr)
        yield
        return
    if descriptor is None:
        raise InputError(f"{folder} is in use by {holder(folder)}: wait until that ends, or give another folder")
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
        NotImplementedError: The file system or the operating system has no such locks.
        OSError: The lock file cannot be opened.
    """
    if fcntl is None:
        raise NotImplementedError("this operating system has no flock")
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
            raise NotImplementedError(error.strerror) from error
        if is_file(descriptor, path):
            break
        os.close(descriptor)  # the previous holder removed this file between the two calls
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    with contextlib.suppress(OSError):  # a full disk: the lock holds, its holder has no name
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(about).encode())
    return descriptor


def is_free(folder: Path) -> bool:
    """Return whether no process holds the lock of a folder. Without locks nobody knows: False."""
    try:
        descriptor = acquire(folder)
    except (NotImplementedError, OSError):
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


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
