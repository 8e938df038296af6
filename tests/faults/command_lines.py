"""Hundreds of odd command lines over all programs: each is carried out, or refused in one short line.

Most run one after the other in a worker process, so that a case costs no start of Python; some are processes of their
own. A worker that crashes or does not come back is a failure of the case that it had, and another one takes over.
"""

import base64
import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from command_cases import KINDS, QUICK, Case, Kind
from tally import Tally, main

LONGEST = 300  # characters of a line on standard error
PATIENCE = 300.0  # seconds for a case, on a machine that does other things too
MEMORY = 8 * 2**30  # bytes that a worker may take: what asks for more must say so, not bring the machine down
NOISE = ("Traceback", "Exception ignored", "Warning", "panicked", "Fatal Python error", "stack backtrace")
PROGRESS = re.compile(
    r".*: (\S+, )?(greedy|one sequence at a time|beam search with|sampling at).*|no --data: .*"
    r"|.*(step|text|sentence)s?/s.*|.*\d+%\|.*|step \d+, held out: .*"
    r"|.* are unknown to the tokenizer, as .*|\d+ of \d+ right, .*|\s*"
)


@dataclass(frozen=True)
class End:
    """How a case ended: its exit status, or what became of the worker; what it printed, where that could be heard."""

    status: int | str
    errors: str
    heard: bool = True


def problem(end: End) -> str | None:
    """Return what is wrong with an end, None where nothing is."""
    lines = [line for line in re.split(r"[\r\n]", end.errors) if not PROGRESS.fullmatch(line)]
    if end.status not in (0, 1, 2) or any(noise in end.errors for noise in NOISE):
        return f"status {end.status}, {end.errors[-1500:]!r}"
    if any(len(line) > LONGEST or not line.isprintable() for line in re.split(r"[\r\n]", end.errors)):
        return f"a long or unprintable line: {end.errors[:400]!r}"
    if end.status == 0:
        return f"status 0, but says {lines}" if lines else None
    if not end.heard:
        return None
    said = ("differs by more than",) if end.status == 1 else ("error: ",)
    if len(lines) != 1 or not lines[0].startswith(said):
        return f"status {end.status}, says {lines}"
    return None


def serve() -> None:
    """Carry out the cases that come on standard input, a line of JSON each, and answer on standard output."""
    from jaxformer.__main__ import main as module
    from jaxformer.cli import answer, classify, embed, export, fill_mask, inspect, perplexity, tag, verify, visualize
    from jaxformer.cli.generate import decode_inputs
    from jaxformer.cli.train import train

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    modules = (answer, classify, embed, export, fill_mask, inspect, perplexity, tag, verify, visualize)
    names = {each.__name__.rpartition(".")[2].replace("_", "-"): each.main for each in modules}
    programs = names | {"generate": decode_inputs, "train": train, "module": module}
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    for line in requests:
        case = json.loads(line)
        status = carry_out(programs[case["program"]], case)
        print(json.dumps(status), file=answers, flush=True)


def carry_out(program: Callable[[list[str]], None], case: dict[str, Any]) -> int | str:
    """Call a program as its process would be, with files in place of the standard streams; its exit status."""
    from jaxformer.cli import terminal

    os.chdir(case["folder"])
    arguments = [os.fsdecode(base64.b64decode(argument)) for argument in case["arguments"]]
    for number, path, flags in (
        (0, case["stdin"], os.O_RDONLY),
        (1, case["stdout"], os.O_WRONLY | os.O_CREAT),
        (2, case["stderr"], os.O_WRONLY | os.O_CREAT),
    ):
        file = os.open(path, flags)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(os.fdopen(number, mode, closefd=False), encoding="utf-8")
        for number, mode in ((0, "rb"), (1, "wb"), (2, "wb"))
    )
    try:
        terminal.run(lambda: program(arguments))
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else repr(stop.code)
    except BaseException:  # a process would die of it
        import traceback

        os.write(2, traceback.format_exc().encode(errors="replace"))
        return "exception"
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError as error:
                os.write(2, f"Exception ignored in: flush {error}\n".encode())


class Worker:
    """A process that carries out cases, replaced by another one when it dies or does not come back."""

    def __init__(self, environment: dict[str, str]):
        self.environment, self.process = environment, None

    def __call__(self, request: dict[str, Any]) -> int | str:
        """The exit status of a case, or what happened to the process."""
        if self.process is None:
            line = [sys.executable, __file__, "--serve"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen(line, env=self.environment, text=True, **pipes)
        print(json.dumps(request), file=self.process.stdin, flush=True)
        guard = threading.Timer(PATIENCE, self.process.kill)
        guard.start()
        answer = self.process.stdout.readline()
        guard.cancel()
        if answer:
            return json.loads(answer)
        status = self.process.wait()
        self.close()
        return f"no answer after {PATIENCE:.0f} s" if status == -9 else f"the process died with {status}"

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
            self.process = None


def in_process(case: Case, folder: Path, worker: Worker) -> End:
    """Carry out a case in the worker."""
    said = folder / "standard-error"
    request = asdict(case) | {"folder": str(folder), "stderr": str(said)}
    request["arguments"] = [base64.b64encode(os.fsencode(argument)).decode() for argument in case.arguments]
    request["stdin"] = str(folder / case.stdin)
    request["stdout"] = case.stdout or str(folder / "standard-output")
    status = worker(request)
    return End(status, said.read_bytes().decode(errors="replace") if said.exists() else "")


def as_process(case: Case, folder: Path, environment: dict[str, str]) -> End:
    """Carry out a case in a process of its own."""
    from commands import command
    from workplace import module

    root = {"generate": "generate.py", "train": "train.py"}
    named = [] if case.program == "module" else [case.program]
    line = command(root[case.program]) if case.program in root else module(*named)
    said = folder / "standard-error"
    if case.closed:
        line = ["sh", "-c", f'exec "$@" {" ".join(f"{number}>&-" for number in case.closed)}', "sh", *line]
    with said.open("wb") as errors, (folder / "standard-output").open("wb") as output, open(os.devnull) as nothing:
        streams = {"stdin": nothing, "stdout": output, "stderr": errors}
        process = subprocess.Popen([*line, *case.arguments], cwd=folder, env=environment | case.environment, **streams)
        try:
            status: int | str = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = f"no end after {PATIENCE:.0f} s"
    return End(status, said.read_bytes().decode(errors="replace"), 2 not in case.closed)


def fuzz(cases: int, seed: int, kinds: dict[Kind, int] | None = None, only: int | None = None) -> Tally:
    """Carry out `cases` command lines.

    Args:
        cases: How many.
        seed: Of the command lines; case number n is the same whatever their number.
        kinds: Which kinds, and how often of each (None: all).
        only: Number of the one case to carry out.
    """
    from workplace import REPOSITORY_ON_PATH, add_models, add_runs, quiet_environment

    kinds, tally = kinds or KINDS, Tally("command lines")
    with tempfile.TemporaryDirectory() as temporary:
        shared = Path(temporary, "shared")
        shared.mkdir()
        add_models(shared)
        if set(kinds) - set(QUICK):
            add_runs(shared)
        environment = quiet_environment(shared / "cache") | REPOSITORY_ON_PATH
        environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
        worker = Worker(environment)
        for number in range(cases) if only is None else [only]:
            rng = random.Random(f"{seed} {number}")
            folder = Path(temporary, str(number))
            folder.mkdir()
            for path in shared.iterdir():
                (folder / path.name).symlink_to(path)
            case = rng.choices(list(kinds), list(kinds.values()))[0](rng, folder)
            begin = time.monotonic()
            end = as_process(case, folder, environment) if case.real else in_process(case, folder, worker)
            tally.record(f"case {number}, {case}", problem(end))
            if only is not None or os.environ.get("FAULTS_VERBOSE"):
                print(f"{number} {time.monotonic() - begin:.1f} s {case}\n  {end}", flush=True)
            subprocess.run(["chattr", "-i", str(folder / "locked")], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)
        worker.close()
    return tally


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve()
    else:
        main(fuzz, cases=600)
