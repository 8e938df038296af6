"""End a program at once on Ctrl-C, SIGTERM or SIGHUP, also while XLA compiles.

Python runs signal handlers in the main thread, between two of its own instructions. A compilation takes many seconds
without one, and an exception that a handler raises is either lost in a callback of XLA or leaves a compiler running in
an interpreter that is being torn down. So nothing is raised here: a thread of its own waits for signals and ends the
process.

This module imports only the standard library, because it must be ready before the rest of the package is imported.
"""

import _thread
import atexit
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

STOPPED = "stopped, as asked"
SIGNALS = tuple(number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP"))
DEFERS = "defers"  # the name of the mark on a handler
T = TypeVar("T")
PATIENCE = 0.5  # seconds for output that a slow reader of a pipe has not taken yet
BUSY = 5.0  # seconds for a thread to begin on a busy machine


@dataclass
class Farewell:
    """Things left to do when the process ends early.

    Attributes:
        in_line: Whether standard output is in the middle of a line.
        unfinished: Files that are being written under a temporary name.
        errors: The descriptor of standard error.
        bar: Whether a progress bar stands on standard error.
        advice: What to do next, for people.
        begun: When the farewell began, by `time.monotonic`.
    """

    in_line: bool = False
    errors: int = 2
    bar: bool = False
    advice: str = ""
    unfinished: set[Path] = field(default_factory=set)
    begun: float = math.inf

    def say(self) -> None:
        """Remove unfinished files, print what was printed but not flushed, and the message on a line of its own."""
        for path in self.unfinished:
            with suppress(OSError):
                path.unlink()
        if sys.stdout is not None:
            with suppress(Exception):  # a reader that is gone, a file that was closed
                sys.stdout.flush()
        self.write_message()

    def write_message(self) -> None:
        """Write the message on a line of its own, whatever is still unflushed."""
        on_screen = os.isatty(self.errors)  # where the terminal has just written "^C" behind the text
        if self.in_line and not (on_screen and os.isatty(1)):
            os.write(1, b"\n")
        message = f"{STOPPED}; {self.advice}" if self.advice else STOPPED
        os.write(self.errors, f"{chr(10) * (on_screen or self.bar)}{message}\n".encode())


FAREWELL = Farewell()
ENDING, SAID = threading.Lock(), threading.Event()


def end(number: int, _: object = None) -> NoReturn:
    """End the process with the status that shells give a signal, 128 + its number; also a signal handler."""
    if ENDING.acquire(blocking=False):
        try:
            # Printing may wait for a lock, or for the reader of a pipe. A handler may have interrupted the start of a
            # thread, so this one needs no lock of the module threading.
            _thread.start_new_thread(say_farewell, ())
        except RuntimeError:  # no more threads
            with suppress(OSError):
                FAREWELL.write_message()
            SAID.set()
    # Without a lock: another signal may interrupt this, and come here again.
    latest = time.monotonic() + BUSY
    while not SAID.is_set() and time.monotonic() < min(latest, FAREWELL.begun + PATIENCE):
        time.sleep(0.005)
    os._exit(128 + number)  # no destructors: they crash under a running compiler


def say_farewell() -> None:
    """Do what is left to do, in a thread."""
    FAREWELL.begun = time.monotonic()
    with suppress(Exception):  # streams that are closed
        FAREWELL.say()
    SAID.set()


@contextmanager
def watched() -> Iterator[None]:
    """End the process on the first signal, in the middle of a compilation too.

    Signals that are ignored stay so. A handler that is set in the meantime wins as long as it is set, such as that of
    a training loop that saves before it ends. Nothing changes where somebody watches already, and in other threads than
    the main one.
    """
    if threading.current_thread() is not threading.main_thread() or is_watched():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=watch, args=(reader,), name="signals", daemon=True)
    watcher.start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = take_over()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(writer)
        watcher.join()
        os.close(reader)
        atexit.unregister(ignore)
        atexit.register(ignore)


def is_watched() -> bool:
    """Return whether somebody has asked Python for the numbers of signals."""
    descriptor = signal.set_wakeup_fd(-1)  # which cannot be read without being changed
    signal.set_wakeup_fd(descriptor)
    return descriptor != -1


def watch(reader: int) -> None:
    """Read the number of each signal that Python receives and end the process, unless somebody else handles it.

    Where a handler defers the end (see `deferring`), the second signal of a kind ends the process.
    """
    deferred = set()
    while numbers := os.read(reader, 64):
        for number in numbers:
            handler = signal.getsignal(number)
            if handler is end or number in deferred:
                end(number)
            if getattr(handler, DEFERS, False):
                deferred.add(number)


def deferring(handler: T) -> T:
    """Mark a signal handler that ends the process later, when something is saved."""
    setattr(handler, DEFERS, True)
    return handler


def take_over() -> dict[signal.Signals, Any]:
    """Make `end` the handler of every signal that is not ignored, and return the handlers before."""
    found = {number: signal.getsignal(number) for number in SIGNALS}
    found = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}
    for number in found:
        signal.signal(number, end)
    return found


def ignore() -> None:
    """Ignore signals: while the interpreter is torn down everything is printed, and no handler runs any more."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def runs_package() -> bool:
    """Return whether the process is the installed command `jaxformer` or `python -m jaxformer`, at its imports."""
    named = sys.orig_argv[-len(sys.argv) :][:1]  # where sys.argv has "-m" until the module is found
    is_module = sys.argv[:1] == ["-m"] and named in (["jaxformer"], ["-mjaxformer"])
    return is_module or is_installed_command()


def is_installed_command() -> bool:
    """Return whether the process was started by the script that pip writes for the command `jaxformer`."""
    started = getattr(sys.modules.get("__main__"), "__file__", None)
    return started is not None and Path(started).stem == "jaxformer" and Path(sys.argv[0]).stem == "jaxformer"


if runs_package():
    take_over()
