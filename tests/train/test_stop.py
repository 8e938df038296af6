"""Signals: requests while there is something to save, the end at once while there is not."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import jax
import pytest

from jaxformer.train.stop import SIGNALS, Stop, stop_requests


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


def test_while_nothing_is_unsaved_a_signal_ends_at_once_even_in_compiled_code() -> None:
    ended: list[tuple[int, float]] = []
    with stop_requests(lambda stop, number: ended.append((number, time.monotonic()))) as stop:
        threading.Timer(0.05, send, [signal.SIGINT]).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # about a second in which Python's own handlers wait
        returned = time.monotonic()
    ((number, moment),) = ended
    assert number == signal.SIGINT
    assert moment < returned
    assert stop.requested == signal.SIGINT


def test_with_something_unsaved_the_first_signal_is_a_request_and_the_second_ends() -> None:
    ended: list[int] = []
    came = threading.Event()

    def end(_: Stop, number: int) -> None:
        ended.append(number)
        came.set()

    with stop_requests(end) as stop:
        stop.unsaved = True
        send(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while stop.requested is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert stop.requested == signal.SIGTERM
        assert ended == []
        send(signal.SIGTERM)
        assert came.wait(10)
    assert ended == [signal.SIGTERM]


def test_signals_of_other_kinds_are_not_looked_at() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with stop_requests(lambda *_: pytest.fail("ended")) as stop:
            send(signal.SIGUSR1)
            time.sleep(0.05)
        assert stop.requested is None
    finally:
        signal.signal(signal.SIGUSR1, before)
