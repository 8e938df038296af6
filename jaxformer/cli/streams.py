"""Standard streams, and the files that programs read and write."""

import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from jaxformer.errors import InputError, shortened
from jaxformer.interrupts import FAREWELL

STANDARD_INPUT = Path("-")
PIPES = (stat.S_ISFIFO, stat.S_ISREG, stat.S_ISSOCK)


def open_standard_streams() -> None:
    """Open the streams that the caller has closed, to nowhere, and let no character be one that cannot be printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # of a file that has become a pipe, Python cannot tell the position
                stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Discard the output that is buffered and everything that is printed from now on: nobody reads it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def is_piped() -> bool:
    """Return whether standard input is a pipe or a file: no terminal, and no device such as /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or replaced by something that is no file
        return False
    return any(is_kind(mode) for is_kind in PIPES)


def read_lines(file: Path, *, least: int = 1) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, with their numbers from 1.

    Args:
        file: A file or a pipe, which is read to its end; "-" is standard input.
        least: How many there must be.

    Raises:
        InputError: There are fewer, the file is a device, or it is not text in UTF-8.
    """
    name = "standard input" if file == STANDARD_INPUT else str(file)
    try:
        with opened(file, name) as text:
            lines = [(number, line.removesuffix("\n")) for number, line in enumerate(text, start=1) if line.strip()]
    except UnicodeDecodeError:
        raise InputError(f"{shortened(name, 200)} is not text in UTF-8") from None
    if len(lines) < least:
        raise InputError(f"{shortened(name, 200)} holds no input: write one sequence per line")
    return lines


@contextmanager
def opened(file: Path, name: str) -> Iterator[io.TextIOWrapper]:
    """Open a file or standard input as text, without the mark that some editors put before it.

    Raises:
        InputError: It is a device, of which most have no end.
    """
    with nullcontext(sys.stdin.buffer) if file == STANDARD_INPUT else file.open("rb") as data:
        if is_device(data):
            raise InputError(f"{shortened(name, 200)} is a device: give a text file or a pipe")
        text = io.TextIOWrapper(data, encoding="utf-8-sig")
        try:
            yield text
        finally:
            text.detach()  # which leaves standard input open


def is_device(file: BinaryIO) -> bool:
    """Return whether an open file is a device other than a terminal."""
    try:
        mode = os.fstat(file.fileno()).st_mode
    except OSError:  # in memory
        return False
    return (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and not file.isatty()


def note(text: str) -> None:
    """Print a line about what is being done on standard error."""
    print(shortened(text), file=sys.stderr)


def print_as_it_comes(parts: Iterable[str]) -> None:
    """Print parts of a text one behind the other, each at once, and end the line."""
    try:
        for part in filter(None, parts):
            print(part, end="", flush=True)
            FAREWELL.in_line = not part.endswith("\n")
        FAREWELL.in_line = True
    finally:
        if FAREWELL.in_line:  # also before the message of an error
            FAREWELL.in_line = False
            print(flush=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be written as a whole or not at all: what was there before stays until the new one is complete.

    A device or a pipe is written to as it is.
    """
    try:
        ordinary = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        ordinary = True
    if not ordinary:
        with path.open("wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))  # a link stays where it is
    unfinished = target.with_name(f"{target.name}.part")
    FAREWELL.unfinished.add(unfinished)
    try:
        with unfinished.open("wb") as file:
            yield file
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        FAREWELL.unfinished.discard(unfinished)
