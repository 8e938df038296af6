"""Saving as one step: a checkpoint folder opens as the old model or as the new one, whatever happens on the way."""

import errno
import filecmp
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxformer.errors import InputError
from jaxformer.pretrained.staging import Place, alone, copy_owner, exchange, link_tree, place_for, rescue, sync

CONFIG = "config.json"  # without it nobody opens a folder


@contextmanager
def replacing(folder: Path, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder to write into, whose files then take their places in `folder` in one step.

    A failure or a kill leaves the folder as it was before that step, or as it is after it. Whatever else is in the
    folder stays. The step is to rename a new folder, or the only file that differs, or to exchange the folder for one
    that is complete. Where folders cannot be exchanged (the folder above is not writable, another file system is
    mounted, Windows, NFS), `config.json` leaves first and comes last: on the way the folder does not open at all.

    Args:
        folder: The folder to put files into; made where it is missing. If it is a link, what it leads to is meant.
        stale: Names of files that belong to the old model alone. They are removed in this order.

    Raises:
        OSError: Files cannot be written; the folder is as it was.
        InputError: A folder has the name of a file that is to be written.
    """
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    with place_for(target) as place:
        yield place.new
        for path in place.new.iterdir():
            sync(path)
        sync(place.new)
        try:
            put(place, stale)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with place_for(target, inside=True) as inner:  # another file system, though it looks like the same one
                shutil.copytree(place.new, inner.new, dirs_exist_ok=True)
                for path in inner.new.iterdir():
                    sync(path)
                put(inner, stale)


def put(place: Place, stale: Sequence[str]) -> None:
    """Put the new files of a place where they belong. Raises OSError if they are not, and then nothing has changed."""
    new, target = place.new, place.target
    if not os.path.lexists(target):
        os.rename(new, target)
        with suppress(OSError):
            sync(target.parent)
        return
    with alone(target):
        names = sorted(path.name for path in new.iterdir())
        blocked = next((target / name for name in names if (target / name).is_dir()), None)
        if blocked:
            raise InputError(f"{blocked} is a folder where a file has to be: remove it, or give another folder")
        written = {name.casefold() for name in names}  # some file systems do not tell upper from lower case
        stale = [name for name in stale if name.casefold() not in written]
        changed = [name for name in names if not same(new / name, target / name)]
        several = len(changed) > 1 and os.path.lexists(target / CONFIG)
        if several and exchanged(place, {*names, *stale}):
            return
        one_by_one(place, changed, several)
        for name in stale:  # the step is done: what is left is not read
            with suppress(OSError):
                (target / name).unlink(missing_ok=True)
        with suppress(OSError):
            sync(target)


def same(first: Path, second: Path) -> bool:
    """Return whether two files hold the same bytes."""
    with suppress(OSError):
        return not second.is_symlink() and filecmp.cmp(first, second, shallow=False)
    return False


def exchanged(place: Place, left_out: set[str]) -> bool:
    """Complete the new folder with what stays of the old one and exchange the two. Return False where that cannot be.

    Args:
        place: A place beside the target.
        left_out: Names of the old folder that do not stay: files that are new, and files that are stale.
    """
    new, target, here = place.new, place.target, working_folder()
    try:
        place.note(left_out=sorted(left_out))
        known = link_tree(target, new, left_out)
        copy_owner(target, new)
        sync(new)
        exchange(new, target)
    except OSError:
        return False
    with suppress(OSError):  # the step is done
        rescue(new, target, left_out, known)
        sync(target.parent)
    if here is not None and here.is_relative_to(target):
        with suppress(OSError):  # this process would otherwise work in the folder that is about to be removed
            os.chdir(here)
    return True


def working_folder() -> Path | None:
    """Return the folder that this process works in; None where that has been removed."""
    with suppress(OSError):
        return Path.cwd()
    return None


def one_by_one(place: Place, names: list[str], several: bool) -> None:
    """Rename new files to their places. If that fails, the old ones come back.

    Args:
        place: A place on the file system of the target.
        names: The new files that differ from those in the target.
        several: Whether `config.json` leaves first and comes last, so that nobody opens some old and some new files.
    """
    if len(names) == 1:
        os.replace(place.new / names[0], place.target / names[0])
        return
    order = sorted({*names, *[CONFIG] * several}, key=lambda name: (name == CONFIG, name))
    moves = [(place.target / CONFIG, place.old / CONFIG)] * several
    for name in order:
        there = place.target / name
        if name != CONFIG and os.path.lexists(there):
            moves.append((there, place.old / name))
        moves.append((place.new / name, there))
    done = []
    try:
        for source, goal in moves:
            os.rename(source, goal)
            done.append((source, goal))
    except BaseException:
        for source, goal in reversed(done):
            os.rename(goal, source)
        raise
