"""Places to prepare files in, and the calls of the system that then put them in place.

A place is a folder `.unfinished-XXXXXXXX` with a file `lock`, on which the process that made it holds a lock as long as
it lives, and a folder `new`. Who can take that lock has found what a killed process left.
"""

import ctypes
import errno
import json
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows, where nobody can say whether the process that left a place is alive: all are left alone
    fcntl = None

PREFIX = ".unfinished-"
MARK = "files that jaxformer prepares here"
AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2  # from <linux/fcntl.h>, <linux/fs.h> and macOS's <sys/stdio.h>


@dataclass
class Place:
    """A folder to prepare files in.

    Attributes:
        folder: The place itself, beside or inside the folder `target`.
        target: Where the files will be.
        lock: The open file `lock`, which whoever finds this place after a kill reads.
        record: What is written in it.
    """

    folder: Path
    target: Path
    lock: TextIO
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def new(self) -> Path:
        """Return the folder that new files are written into."""
        return self.folder / "new"

    @property
    def old(self) -> Path:
        """Return the folder for old files that have left their places."""
        return self.folder / "old"

    def note(self, **facts: Any) -> None:
        """Add facts to the record. It only grows, so that it is whole at every moment."""
        self.record |= facts
        self.lock.seek(0)
        self.lock.write(json.dumps(self.record))
        self.lock.flush()


@contextmanager
def place_for(target: Path, inside: bool = False) -> Iterator[Place]:
    """Make a place for the files of `target` beside it, or inside it where that is not possible; then remove it."""
    inside = inside or os.path.ismount(target)
    parents = [target] if inside else [target.parent, *[target] * target.is_dir()]
    for parent in parents:
        clear(parent)
    try:
        place = make_place(parents[0], target)
    except OSError:
        if len(parents) == 1:
            raise
        place = make_place(target, target)
    try:
        for folder in (place.new, place.old):
            folder.mkdir()
        place.note(mark=MARK, host=platform.node(), target=target.name, inode=place.new.stat().st_ino, left_out=[])
        yield place
    finally:
        remove(place.folder, place.lock)


def make_place(parent: Path, target: Path) -> Place:
    """Make a place in the folder `parent`, and lock it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with suppress(FileNotFoundError):  # another process saw it before it was locked, and removed it
            lock = (folder / "lock").open("x")
            try_lock(lock.fileno(), seconds=1)
            if os.path.samestat(os.fstat(lock.fileno()), (folder / "lock").stat()):
                return Place(folder, target, lock)


def remove(folder: Path, lock: TextIO) -> None:
    """Remove a place; its lock goes last, so that what a kill leaves of the place is removed by the next process."""
    for name in ("new", "old"):
        shutil.rmtree(folder / name, ignore_errors=True)
    with suppress(OSError):  # what could not be written to a full disk cannot be now
        lock.close()
    with suppress(OSError):
        if os.listdir(folder) == ["lock"]:
            (folder / "lock").unlink()
        folder.rmdir()


def clear(parent: Path) -> None:
    """Remove the places in a folder that killed processes of this user on this machine left."""
    if fcntl is None:
        return
    with suppress(OSError):
        for folder in list(parent.glob(f"{PREFIX}*")):
            about = folder.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid():
                with suppress(OSError, ValueError, KeyError, TypeError):
                    clear_place(folder)


def clear_place(folder: Path) -> None:
    """Remove a place that nobody uses; files of others that are in it go to where they belong."""
    if not os.listdir(folder):  # killed before it was locked, or after all else was removed
        folder.rmdir()
        return
    with (folder / "lock").open("r+") as lock:
        if not try_lock(lock.fileno()):
            return
        text = lock.read()
        if not text and all(path.name == "lock" or not any(path.iterdir()) for path in folder.iterdir()):
            remove(folder, lock)  # killed before it was used
            return
        record = json.loads(text)
        if (record["mark"], record["host"]) != (MARK, platform.node()):
            return
        new, target = folder / "new", folder.parent / Path(record["target"]).name
        if new.is_dir() and new.stat().st_ino != record["inode"] and target.is_dir():  # it was exchanged for the target
            rescue(new, target, set(record["left_out"]), set())
        remove(folder, lock)


def try_lock(file: int, seconds: float = 0) -> bool:
    """Lock an open file. Return False where another process keeps it for so long, or where nobody can tell."""
    end = time.monotonic() + seconds
    while fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:  # also of file systems that know no locks
            if error.errno != errno.EWOULDBLOCK or time.monotonic() > end:
                return False
        time.sleep(0.01)
    return False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait, up to some seconds, until no other process puts files into `folder`."""
    file = None
    with suppress(OSError):
        while fcntl is not None:
            file = os.open(folder, os.O_RDONLY)
            try_lock(file, seconds=5)
            if os.path.samestat(os.fstat(file), folder.stat()):
                break
            os.close(file)  # another process has exchanged the folder meanwhile
            file = None
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


def link_tree(old: Path, new: Path, left_out: set[str], room: int = 10_000) -> set[int]:
    """Give what is in the folder `old` a second name in `new`, and return the inodes of all linked files.

    Args:
        old: The folder whose contents are linked, folders in it included.
        new: A folder on the same file system.
        left_out: Names in `old` that stay out.
        room: How many files may be linked at most.

    Raises:
        OSError: Something cannot be linked, for example because another file system is mounted there.
    """
    known: set[int] = set()
    for entry in list(os.scandir(old)):
        if entry.name in left_out or entry.name.startswith(PREFIX):
            continue
        there = new / entry.name
        if entry.is_dir(follow_symlinks=False):
            there.mkdir()
            known |= link_tree(Path(entry.path), there, set(), room - len(known))
            copy_owner(Path(entry.path), there)
        elif entry.is_symlink():
            os.symlink(os.readlink(entry.path), there)
            known.add(entry.inode())
        else:
            os.link(entry.path, there)
            known.add(entry.inode())
        if len(known) > room:
            raise OSError(errno.E2BIG, "too many files to link", str(old))
    return known


def rescue(old: Path, new: Path, left_out: set[str], known: set[int]) -> None:
    """Move what others have put into the folder `old`, since its contents were linked to `new`, over to `new`.

    Args:
        old: The folder that is about to be removed.
        new: The folder that stands in its place.
        left_out: Names in `old` that are not moved.
        known: The inodes that were linked: whatever has one of these is no news.
    """
    for entry in list(os.scandir(old)):
        if entry.name in left_out or entry.inode() in known:
            continue
        there = new / entry.name
        if not os.path.lexists(there):
            os.rename(entry.path, there)
        elif entry.is_dir(follow_symlinks=False):
            if there.is_dir() and not there.is_symlink():
                rescue(Path(entry.path), there, set(), known)
        elif there.lstat().st_ino in known:  # replaced in the old folder after it was linked
            os.replace(entry.path, there)


def copy_owner(old: Path, new: Path) -> None:
    """Give a folder the owner, mode and other attributes of another one. Raises OSError where that is not allowed."""
    theirs, ours = old.stat(), new.stat()
    if os.name == "posix" and (theirs.st_uid, theirs.st_gid) != (ours.st_uid, ours.st_gid):
        os.chown(new, theirs.st_uid, theirs.st_gid)
    shutil.copystat(old, new)


def exchange(first: Path, second: Path) -> None:
    """Exchange the names of two folders in one step. Raises OSError where the system or the file system cannot."""
    if sys.platform not in ("linux", "darwin"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    library, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(first), os.fsencode(second))
    try:
        if sys.platform == "linux":
            failed = library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
        else:
            failed = library.renamex_np(*names, RENAME_SWAP)
    except AttributeError:  # an old C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, so that they survive a loss of power."""
    if path.is_dir():
        if os.name == "posix":
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
    else:
        with path.open("r+b") as opened:
            os.fsync(opened.fileno())
