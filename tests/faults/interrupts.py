"""Ctrl-C at any moment of a program that has nothing to save: it ends at once, in order, without a traceback."""

import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from commands import command
from tally import Tally, main
from workplace import REPOSITORY_ON_PATH, add_models, add_runs, module, quiet_environment

SOON = 2.0  # seconds from the signal to the end of the process
EARLIEST = 0.05  # seconds after the start of the process
STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
NOISE = ("Traceback", "Exception ignored", "KeyboardInterrupt", "Segmentation", "Fatal Python error")
PROMPT = ["--prompt", "feed a deaf cab", "--max-new-tokens", "20"]


@dataclass(frozen=True)
class Program:
    """A command line, how long it takes, and what it prints when it is left alone (None: not known)."""

    name: str
    line: list[str]
    seconds: float
    output: bytes | None


@dataclass(frozen=True)
class End:
    """How a process ended: its status, the seconds from the signal to its end, what it printed."""

    status: int
    seconds: float
    output: bytes
    errors: str


def lines() -> dict[str, list[str]]:
    """The command lines to interrupt, by name."""
    return {
        "greedy": command("generate.py", "--model", "gpt2", *PROMPT),
        "sampling": command(
            "generate.py",
            "--model",
            "gpt2",
            *PROMPT,
            "--temperature",
            "1",
            "--min-p",
            "0.01",
            "--repetition-penalty",
            "1.1",
        ),
        "beams": command("generate.py", "--model", "bart", *PROMPT, "--beam", "5"),
        "run": command("generate.py", "--checkpoint", "runs/copy", "--beam", "4"),
        "embed": module("embed", "--model", "bert", "--input-file", "lines.txt", "--batch-size", "4"),
    }


def start(line: list[str], folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start a program in `folder`."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=folder, env=quiet_environment(cache) | REPOSITORY_ON_PATH, **pipes)


def measured(name: str, line: list[str], folder: Path) -> Program:
    """Run a program to its end. Raises RuntimeError where it does not end well."""
    with tempfile.TemporaryDirectory() as cache:
        begin = time.monotonic()
        process = start(line, folder, Path(cache))
        output, errors = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(f"{name} ends with {process.returncode}: {errors.decode()}")
    return Program(name, line, time.monotonic() - begin, output)


def catches_hangups(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the program has taken over its signals: until then Python itself is starting."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:  # no Linux, or the process has ended
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << signal.SIGHUP - 1)


def interrupted(program: Program, folder: Path, number: signal.Signals, delay: float) -> End:
    """Start a program, send it a signal after `delay` seconds, and wait for its end."""
    with tempfile.TemporaryDirectory() as cache:
        begin = time.monotonic()
        process = start(program.line, folder, Path(cache))
        while not catches_hangups(process) and time.monotonic() - begin < 0.5:
            time.sleep(0.002)
        time.sleep(max(0.0, begin + delay - time.monotonic()))
        process.send_signal(number)
        sent = time.monotonic()
        try:
            output, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
        return End(process.returncode, time.monotonic() - sent, output, errors.decode(errors="replace"))


def problem(program: Program, number: signal.Signals, end: End) -> str | None:
    """Return what is wrong with an end, None where nothing is."""
    said = end.errors.strip().splitlines()[-1:]
    if end.status not in (0, STOPPED[number]):
        return f"status {end.status}, {end.errors[-200:]!r}"
    if any(noise in end.errors for noise in NOISE):
        return f"says {end.errors[-300:]!r}"
    if end.status == 0 and program.output not in (None, end.output):
        return f"status 0, but the output is not complete: {end.output!r}"
    if end.status and said != ["stopped, as asked"]:
        return f"status {end.status}, but the last line is {said}"
    if end.seconds > 2 * SOON:  # other programs may run on this machine
        return f"ends {end.seconds:.1f} s after the signal"
    return None


def fuzz(cases: int, seed: int, names: tuple[str, ...] = (), numbers: tuple[int, ...] = (signal.SIGINT,)) -> Tally:
    """Interrupt programs `cases` times, each after a random time.

    Args:
        cases: How many processes to start.
        seed: Of the moments.
        names: Which programs (empty: all).
        numbers: Which signals to send.
    """
    tally, rng, slowest, stopped = Tally("interrupts"), random.Random(seed), 0.0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        chosen = {name: line for name, line in lines().items() if name in names or not names}
        add_models(folder, {line[line.index("--model") + 1] for line in chosen.values() if "--model" in line})
        if "run" in chosen:
            add_runs(folder)
        programs = [measured(name, line, folder) for name, line in chosen.items()]
        for case in range(cases):
            program, number = programs[case % len(programs)], signal.Signals(rng.choice(numbers))
            delay = rng.uniform(EARLIEST, program.seconds)
            end = interrupted(program, folder, number, delay)
            slowest, stopped = max(slowest, end.seconds), stopped + (end.status != 0)
            tally.record(f"{program.name}, {number.name} after {delay:.3f} s", problem(program, number, end))
    if not stopped:  # the signals do not arrive
        tally.record("all of them", "no program was stopped")
    print(f"interrupts: {stopped} stopped, the slowest {slowest:.2f} s after its signal", file=sys.stderr)
    return tally


if __name__ == "__main__":
    main(fuzz, cases=100)
