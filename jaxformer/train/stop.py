"""Signals that ask a training to stop, and what it saves before it does."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import orbax.checkpoint as ocp

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass
class Stop:
    """The state of a run as far as a signal matters to it.

    Attributes:
        requested: The number of the signal that asked the run to stop, if there was one.
        training: Whether the loop runs.
        unsaved: Whether steps were taken that must be saved first.
        advice: What to do next, for people.
    """

    requested: int | None = None
    training: bool = False
    unsaved: bool = False
    advice: str = ""


class InterruptedRunError(RuntimeError):
    """Somebody asked the run to stop; its state is saved.

    Attributes:
        number: The number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


@contextmanager
def stop_requests(end: Callable[[Stop, int], None] | None = None) -> Generator[Stop]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a request, so that a step is never cut in two.

    A second signal of the same kind kills the process. Signals that are ignored when this begins, as SIGHUP is under
    nohup, stay ignored; outside the main thread no signal is handled. A cluster's notices of preemption are left to
    JAX where it listens to them (see `preempted`).

    Args:
        end: Ends the process; called with the number of the signal, from another thread, where nothing is unsaved and
            for the second signal of a kind. It is called at once, even while the main thread is in a compiler. None:
            the loop asks `requested` after each step.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, _: object) -> None:
        if stop.requested == number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.requested = number

    taken = {signal.SIGTERM} if listens_for_preemption() else set()
    handled = [
        number for number in SIGNALS if number not in taken and signal.getsignal(number) not in (signal.SIG_IGN, None)
    ]
    handler = request if end is None else lambda *_: None  # the watcher does all that is to be done
    with contextlib.nullcontext() if end is None else watcher(stop, handled, end):
        before = {number: signal.signal(number, handler) for number in handled}
        try:
            yield stop
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier)


@contextmanager
def watcher(stop: Stop, handled: list[signal.Signals], end: Callable[[Stop, int], None]) -> Generator[None]:
    """Watch for signals in a thread: Python's own handlers wait until the main thread leaves compiled code."""
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)

    def watch() -> None:
        seen = set()
        while number := os.read(receiver, 1)[0]:
            if number in handled:
                stop.requested = number
                if number in seen or not stop.unsaved:
                    end(stop, number)
                seen.add(number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(sender, b"\0")
        thread.join()
        os.close(receiver)
        os.close(sender)


def listens_for_preemption() -> bool:
    """Return whether JAX itself takes SIGTERM as a notice of preemption: with several processes, unless configured."""
    return jax.distributed.is_initialized() and bool(jax.config.values["jax_enable_preemption_service"])


def preempted(step: int) -> bool:
    """Return whether a notice of preemption has reached a process and all processes are to save after this step."""
    return ocp.utils.reached_preemption(step)
