"""Disks that fill up while a training runs: one line, status 2, and later the run goes on as if nothing had happened.

As root, the disks are small file systems in memory that are filled at a random moment, a third of the time while a
checkpoint is being saved. Otherwise, and in some cases, the size of files is limited (`RLIMIT_FSIZE`). Run all with
`python tests/faults/disks.py --cases 60 --seed 0`.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from kills import RUNS, Trainings, difference, run_training, wait_for_save
from tally import Tally, main

SIZE = 1500  # kB of a disk; a run takes some 700


def run_limited(limit: int, *arguments: Any) -> None:
    """Be train.py where no file may be larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    run_training(*arguments)


class Start:
    """A training whose words are read while it runs, so that no disk holds them."""

    def __init__(self, trainings: Trainings, folder: Path, flags: list[str], limit: int | None = None) -> None:
        self.pipe, self.said = folder.parent / f"{folder.name}.pipe", ""
        os.mkfifo(self.pipe)
        arguments = (trainings.cache, str(folder), flags, str(self.pipe))
        if limit is None:
            self.process = trainings.fork(run_training, *arguments)
        else:
            self.process = trainings.fork(run_limited, limit, *arguments)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        self.said = self.pipe.read_text(errors="replace")

    def status(self) -> int | None:
        """Wait for the end; None if it does not come, and the process is killed."""
        self.process.join(120)
        status = self.process.exitcode
        if status is None:
            self.process.kill()  # else its disk could not be taken away
            self.process.join()
        self.reader.join(5)
        self.pipe.unlink()
        return status

    @property
    def errors(self) -> list[str]:
        """The lines that are neither progress nor looks at held-out data."""
        lines = (line.strip() for line in self.said.replace("\r", "\n").splitlines())
        return [line for line in lines if line and "%|" not in line and ", held out: " not in line]


@contextmanager
def disk(folder: Path) -> Generator[bool]:
    """Make `folder` a small disk; yields whether it is one: only root can."""
    folder.mkdir()
    flags = ["-t", "tmpfs", "-o", f"size={SIZE}k", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None and not subprocess.run(["mount", *flags], capture_output=True).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def judge(start: Start, folder: Path) -> str | None:
    """What is wrong with the end of a training whose disk was full."""
    status = start.status()
    if status == 0:  # the disk was full too late
        return None
    if status != 2 or len(start.errors) != 1:
        return f"status {status}, {start.said[-600:]!r}"
    if not start.errors[0].startswith("error: ") or len(start.errors[0]) > 300:
        return f"message {start.errors[0]!r}"
    if (folder / "run/metrics.jsonl").exists() and "go on with: jaxformer train --task" not in start.errors[0]:
        return f"no advice in {start.errors[0]!r}"
    return None


def try_one(
    trainings: Trainings, folder: Path, kind: str, seed: int, alone: Path, usual: float
) -> tuple[str, str | None]:
    """Train on a disk that fills up, make room, go on: what was done, and what is wrong."""
    rng = np.random.default_rng(seed)
    flags = [*RUNS[kind], "--output", "run"]
    with disk(folder) as mounted:
        if not mounted or rng.random() < 0.2:
            limit = int(10 ** rng.uniform(2.5, 4.7))
            case, start = f"files of {limit} bytes", Start(trainings, folder, flags, limit)
        else:
            start = Start(trainings, folder, flags)
            if rng.random() < 1 / 2 and wait_for_save(start.process, folder / "run/checkpoints", usual):
                delay, case = rng.exponential(0.02), "full in a save"
            else:
                delay, case = rng.uniform(0, usual), "full anywhere"
            time.sleep(delay)
            fill(folder)
            case += f" after {delay:.3f} s"
        problem = judge(start, folder)
        (folder / "filler").unlink(missing_ok=True)
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=50m", str(folder)], check=True)
        if problem is None:
            begun = (folder / "run/run.json").exists()
            if not begun:
                shutil.rmtree(folder / "run", ignore_errors=True)
            again = Start(trainings, folder, [*flags, *(["--resume"] if begun else [])])
            status = again.status()
            problem = (
                difference(folder / "run", alone) if status == 0 else f"then status {status}: {again.said[-600:]!r}"
            )
    return case, problem


def fuzz(cases: int, seed: int, kinds: tuple[str, ...] = ("copy", "lm")) -> Tally:
    """Fill disks under trainings."""
    tally = Tally("full disks")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        root = Path(name)
        trainings = Trainings(root)
        usual = {kind: trainings.leave_alone(root, kind) for kind in kinds}
        jobs = []
        for index in range(cases):
            kind = kinds[index % len(kinds)]
            case = (trainings, root / f"disk-{index}", kind, seed * 100_003 + index, root / kind / "run", usual[kind])
            jobs.append((f"seed {seed}, case {index} ({kind})", pool.submit(try_one, *case)))
        for about, job in jobs:
            case, problem = job.result()
            tally.record(f"{about}, {case}", problem)
    return tally


if __name__ == "__main__":
    main(fuzz, cases=60)
