"""Signals end a process at once and in order; the programs themselves are interrupted in tests/faults/interrupts.py."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import interrupts as programs
import numpy as np
import pytest
from workplace import add_models

MODULE = Path(__file__).parents[1] / "jaxformer/interrupts.py"
# The module alone, as the package imports it first: without JAX a process starts in a few milliseconds.
SCRIPT = f"""
import importlib.util, os, signal, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("interrupts", {str(MODULE)!r})
interrupts = importlib.util.module_from_spec(spec)
sys.modules["interrupts"] = interrupts
spec.loader.exec_module(interrupts)

def ready():
    os.write(int(sys.argv[1]), b"x")

def wait():
    ready()
    time.sleep(60)

def compute():  # no instruction of Python ends for a minute, and no other thread is kept from running
    import hashlib
    ready()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def begin(body: str, **streams: int) -> subprocess.Popen[bytes]:
    """Start a process and wait until it is ready."""
    reader, writer = os.pipe()
    line = [sys.executable, "-c", f"{SCRIPT}\n{body}", str(writer)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    process = subprocess.Popen(line, pass_fds=(writer,), **streams)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    return process


def stopped(body: str, *numbers: signal.Signals) -> tuple[int, bytes, bytes]:
    """Status, output and errors of a process that receives signals; it ends soon."""
    process = begin(body)
    start = time.monotonic()
    for number in numbers:
        process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - start < 5
    return process.returncode, output, errors


def processor_time(process: subprocess.Popen[bytes]) -> float:
    """Return the seconds that a process has computed."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("body", ["wait()", "compute()"])
def test_a_signal_ends_the_process_with_the_status_of_a_shell(number: signal.Signals, body: str) -> None:
    assert stopped(f"with interrupts.watched(): {body}", number) == (STATUS[number], b"", b"stopped, as asked\n")


def test_many_signals_are_one() -> None:
    numbers = [signal.SIGINT] * 20
    assert stopped("with interrupts.watched(): wait()", *numbers) == (130, b"", b"stopped, as asked\n")
    assert stopped("interrupts.take_over(); wait()", *numbers) == (130, b"", b"stopped, as asked\n")


def test_what_was_printed_appears_and_the_message_begins_a_line() -> None:
    body = "with interrupts.watched():\n print('It is', end='')\n interrupts.FAREWELL.in_line = True\n wait()"
    assert stopped(body, signal.SIGINT) == (130, b"It is\n", b"stopped, as asked\n")


def test_on_a_terminal_the_message_begins_a_line_behind_the_sign_of_the_key() -> None:
    leader, follower = pty.openpty()
    body = "with interrupts.watched():\n print('It is', end='')\n interrupts.FAREWELL.in_line = True\n wait()"
    process = begin(body, stdout=follower, stderr=follower)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    shown = b""
    while shown.count(b"\n") < 2:
        shown += os.read(leader, 100)
    assert shown == b"It is\r\nstopped, as asked\r\n"


def test_unfinished_files_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.part"
    path.touch()
    body = f"interrupts.FAREWELL.unfinished.add(Path({str(path)!r}))\nwith interrupts.watched(): wait()"
    assert stopped(body, signal.SIGINT)[0] == 130
    assert not path.exists()


def test_a_reader_that_does_not_read_is_not_waited_for() -> None:
    process = begin("with interrupts.watched():\n ready()\n while True: print('x' * 10_000)")
    time.sleep(0.3)  # the pipe is full, and the main thread holds the lock of the stream
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert time.monotonic() - start < 2
    process.communicate()


def test_ignored_signals_stay_ignored() -> None:
    """As under nohup."""
    body = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nwith interrupts.watched(): wait()"
    assert stopped(body, signal.SIGHUP, signal.SIGTERM)[0] == 143


def test_a_handler_that_is_set_meanwhile_wins_as_long_as_it_is_set() -> None:
    """As that of a training loop, which saves first."""
    lines = [
        "asked = []",
        "with interrupts.watched():",
        " before = signal.signal(signal.SIGINT, lambda *_: asked.append(1))",
        " ready()",
        " while not asked: time.sleep(0.01)",
        " time.sleep(0.3)",
        " signal.signal(signal.SIGINT, before)",
        " print('saved', flush=True)",
        " time.sleep(60)",
    ]
    process = begin("\n".join(lines))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"saved\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.communicate()


def test_a_handler_that_defers_the_end_defers_it_once_for_each_signal() -> None:
    """A training loop saves after the first one; the second one ends it, even in compiled code."""
    lines = [
        "import hashlib",
        "def later(number, _): print('first', number, flush=True)",
        "with interrupts.watched():",
        " for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, interrupts.deferring(later))",
        " interrupts.FAREWELL.advice, interrupts.FAREWELL.bar = 'go on with --resume', True",
        " ready()",
        " time.sleep(0.5)",
        " print('computes', flush=True)",
        " hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    ]
    process = begin("\n".join(lines))
    assert process.stdout is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        assert process.stdout.readline() == f"first {int(number)}\n".encode()
    assert process.stdout.readline() == b"computes\n"
    before = processor_time(process)
    while processor_time(process) < before + 0.1:  # now no more Python runs
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, b"")
    assert errors == b"\nstopped, as asked; go on with --resume\n"


def test_somebody_else_who_watches_is_left_alone() -> None:
    body = "reader, writer = os.pipe(); os.set_blocking(writer, False); signal.set_wakeup_fd(writer)\n"
    body += "signal.signal(signal.SIGINT, lambda *_: None)\nwith interrupts.watched():\n ready(); os.read(reader, 1)"
    assert stopped(body, signal.SIGINT)[0] == 0


def test_afterwards_everything_is_as_before() -> None:
    body = "\n".join(
        [
            "before = signal.getsignal(signal.SIGINT)",
            "with interrupts.watched(): assert signal.getsignal(signal.SIGINT) is interrupts.end",
            "assert signal.getsignal(signal.SIGINT) is before and signal.set_wakeup_fd(-1) == -1",
            "ready()",
        ]
    )
    process = begin(body)
    assert process.wait(30) == 0
    process.communicate()


def test_the_package_takes_signals_over_only_where_it_is_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxformer.interrupts import runs_package

    assert not runs_package()
    for started in (["-m", "jaxformer"], ["-mjaxformer"]):
        monkeypatch.setattr(sys, "argv", ["-m", "embed", "--help"])
        monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", *started, "embed", "--help"])
        assert runs_package()
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "other", "embed", "--help"])
    assert not runs_package()


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("name", ["jaxformer", "other"])
def test_the_installed_command_ends_in_order_during_its_imports(name: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("import os, time\nos.write(1, b'x')\ntime.sleep(60)")  # imports that take long
    (tmp_path / name).write_text("from jaxformer.__main__ import run\nrun()")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(MODULE.parents[1])])}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, str(tmp_path / name)], env=environ, **streams)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"x"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    if name == "jaxformer":
        assert (process.returncode, errors) == (STATUS[number], b"stopped, as asked\n")
    else:  # the package is a guest, and changes nothing
        assert process.returncode == -number


def test_a_program_is_interrupted_at_a_random_moment(tmp_path: Path) -> None:
    add_models(tmp_path, ["gpt2"])
    program = programs.Program("greedy", programs.lines()["greedy"], 3.0, None)
    for delay in np.random.default_rng(time.time_ns()).uniform(programs.EARLIEST, program.seconds, 2):
        end = programs.interrupted(program, tmp_path, signal.SIGINT, delay)
        assert programs.problem(program, signal.SIGINT, end) is None, delay


@pytest.mark.slow
def test_all_programs_are_interrupted_by_all_signals() -> None:
    tally = programs.fuzz(10, time.time_ns(), numbers=tuple(STATUS))
    assert not tally.failures, tally
