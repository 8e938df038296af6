"""Signals are requests while there is something to save."""

import os
import signal
import threading
from collections.abc import Iterator

import jax
import pytest

from jaxformer.interrupts import SIGNALS
from jaxformer.training.stop import Stop, stop_requests


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Give all handlers back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_request(number: int) -> None:
    with stop_requests() as stop:
        assert stop.requested is None
        send(number)
        assert stop.requested == number


def test_the_second_signal_of_a_kind_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = []
    monkeypatch.setattr(signal, "raise_signal", lambda number: killed.append((number, signal.getsignal(number))))
    with stop_requests() as stop:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert (stop.requested, killed) == (signal.SIGINT, [])
        send(signal.SIGINT)
        assert killed == [(signal.SIGINT, signal.SIG_DFL)]


def test_what_is_ignored_stays_ignored() -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            send(signal.SIGHUP)
            assert stop.requested is None
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_handle_no_signals() -> None:
    found: list[Stop] = []

    def run() -> None:
        with stop_requests() as stop:
            found.append(stop)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found[0].requested is None


def test_a_notice_of_preemption_is_left_to_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests():
        assert signal.getsignal(signal.SIGTERM) is before
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
