"""Signals that ask a training loop to stop: it saves before it does."""

import contextlib
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import orbax.checkpoint as ocp

from jaxformer.interrupts import SIGNALS, deferring


@dataclass
class Stop:
    """Flag that asks the loop to stop.

    Attributes:
        requested: The number of the signal, if there was one.
    """

    requested: int | None = None


class InterruptedRunError(RuntimeError):
    """Somebody asked the run to stop; its state is saved.

    Attributes:
        number: The number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


@contextmanager
def stop_requests() -> Generator[Stop]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a request, so that a step is never cut in two.

    A second signal of the same kind kills the process. Signals that are ignored when this begins, as SIGHUP is under
    nohup, stay ignored; outside the main thread no signal is handled. A cluster's notices of preemption are left to
    JAX where it listens to them (see `preempted`).
    """
    stop = Stop()

    @deferring
    def request(number: int, _: object) -> None:
        if stop.requested == number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.requested = number

    handled = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    if listens_for_preemption():
        handled = tuple(number for number in handled if number != signal.SIGTERM)
    handled = tuple(number for number in handled if signal.getsignal(number) not in (signal.SIG_IGN, None))
    with contextlib.ExitStack() as handlers:
        for number in handled:
            handlers.callback(signal.signal, number, signal.signal(number, request))
        yield stop


def listens_for_preemption() -> bool:
    """Return whether JAX itself takes SIGTERM as a notice of preemption: with several processes, unless configured."""
    return jax.distributed.is_initialized() and bool(jax.config.values["jax_enable_preemption_service"])


def preempted(step: int) -> bool:
    """Return whether a notice of preemption has reached a process and all processes are to save after this step."""
    return ocp.utils.reached_preemption(step)
