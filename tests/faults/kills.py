"""SIGKILL at random moments of training, then --resume, until the run is through: it must equal one left alone.

Equal are the last state (parameters, optimiser, keys), the recorded lines but for times, and the checkpoints that are
left. A third of the kills is aimed into a save. Run all with `python tests/faults/kills.py --cases 200 --seed 0`.
"""

import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
from compilation import XLA_FLAGS
from tally import Tally, main

STEPS = 16
SMALL = ["--symbols", "6", "--max-length", "5", "--dim", "16", "--layers", "1", "--heads", "2", "--batch-size", "4"]
COMMON = ["--dropout", "0.2", "--steps", str(STEPS), "--save-every", "1"]
TEXT = ["--data", "../text.txt", "--context", "16", "--batch-size", "2", "--evaluate-every", "4"]
RUNS = {
    "copy": ["--task", "copy", *SMALL, *COMMON],
    "bfloat16": ["--task", "copy", "--dtype", "bfloat16", *SMALL, *COMMON],
    "lm": ["--task", "lm", *TEXT, *COMMON, "--evaluate-batches", "1"],
}
# To start a process, multiprocessing polls all others, too. Of two threads that poll one at the same time, the second
# finds its exit status read already and takes it for 255.
POLLING = threading.Lock()
PRELOADED = [
    "jaxformer.__main__",
    "jaxformer.cli.train",
    "grain",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
]


def run_training(cache: str, folder: str, flags: list[str], log: str) -> None:
    """Be train.py, in a process that was forked from one that has imported everything."""
    import jax

    os.environ |= {"XDG_CACHE_HOME": cache, "XLA_FLAGS": XLA_FLAGS}
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from jaxformer.__main__ import run

    run(["train", *flags])


class Trainings:
    """Start trainings quickly: they are forked from a server that has imported the program and no more.

    Args:
        root: Where compiled programs and tokens are kept.
    """

    def __init__(self, root: Path) -> None:
        self.cache = str(root / "cache")
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def start(self, folder: Path, flags: list[str]) -> multiprocessing.Process:
        """Start a training in a folder; what it says goes to the file log.txt there."""
        return self.fork(run_training, self.cache, str(folder), flags, str(folder / "log.txt"))

    def fork(self, target: Callable[..., None], *arguments: object) -> multiprocessing.Process:
        """Call a function in a process of its own."""
        process = self.context.Process(target=target, args=arguments)
        with POLLING:
            process.start()
        return process

    def leave_alone(self, root: Path, kind: str) -> float:
        """Train a run to its end in `root/KIND/run`, to compare others with; how long that takes."""
        (root / "text.txt").write_text(" ".join(f"{n} squared is {n * n}" for n in range(400)))
        for _ in range(2):  # the first one compiles
            shutil.rmtree(root / kind, ignore_errors=True)
            (root / kind).mkdir()
            start = time.monotonic()
            process = self.start(root / kind, [*RUNS[kind], "--output", "run"])
            ended(process, 300)
            assert process.exitcode == 0, (root / kind / "log.txt").read_text()
        return time.monotonic() - start


@dataclass
class Killed:
    """A run that is killed again and again, and what went wrong with it."""

    kind: str
    moments: list[str] = field(default_factory=list)
    problem: str | None = None


def ended(process: multiprocessing.Process, timeout: float = 0.0) -> bool:
    """Wait for the end of a process for at most so many seconds; whether it has come."""
    wait([process.sentinel], timeout)
    with POLLING:
        return process.exitcode is not None


def wait_for_save(process: multiprocessing.Process, checkpoints: Path, patience: float) -> bool:
    """Wait until a save is under way; False if there was none in time."""
    deadline = time.monotonic() + patience
    while not ended(process) and time.monotonic() < deadline:
        if any(checkpoints.glob("*.orbax-checkpoint-tmp*")):
            return True
        time.sleep(0.001)
    return False


def kill_until_done(trainings: Trainings, folder: Path, kind: str, seed: int, usual: float) -> Killed:
    """Train in `folder`, killed at random moments; `usual` is how long a run takes that is left alone."""
    rng, killed = np.random.default_rng(seed), Killed(kind)
    output = folder / "run"
    for attempt in range(60):
        begun = (output / "run.json").exists()
        process = trainings.start(folder, [*RUNS[kind], "--output", "run", *(["--resume"] if begun else [])])
        if attempt < 5:  # else a run might never end
            if rng.random() < 1 / 3 and wait_for_save(process, output / "checkpoints", usual):
                delay, aim = rng.exponential(0.02), "in a save"
            else:
                delay, aim = rng.uniform(0, usual), "anywhere"
            if not ended(process, delay):
                process.kill()
                killed.moments.append(f"{aim} after {delay:.3f} s")
        ended(process, 120)
        if process.exitcode == 0:
            return killed
        if process.exitcode != -9:
            said = (folder / "log.txt").read_text(errors="replace")[-300:] if process.exitcode is not None else "hangs"
            killed.problem = f"status {process.exitcode}: {said}"
            return killed
    raise AssertionError("unreachable: the sixth attempt is not killed")


def record(run: Path) -> list[list[dict]]:
    """The recorded lines of a run, without what depends on time."""
    names = [name for name in ("metrics.jsonl", "evaluations.jsonl") if (run / name).exists()]
    lines = [[json.loads(text) for text in (run / name).read_text().splitlines()] for name in names]
    return [
        [{key: x for key, x in line.items() if key not in ("tokens_per_second", "mfu")} for line in part]
        for part in lines
    ]


def results(run: Path) -> dict:
    """The results of a run, without what depends on time."""
    return {name: x for name, x in json.loads((run / "results.json").read_text()).items() if name != "seconds"}


def state(run: Path) -> list[np.ndarray]:
    """All arrays of the newest checkpoint of a run."""
    import jax

    from jaxformer.cli.runs import abstract_state, read_description, read_settings, task_of
    from jaxformer.training import Checkpoints

    description = read_description(run)
    task = task_of(run, description).task
    begun = task(read_settings(run, description, task), run)
    with Checkpoints(run / "checkpoints", writable=False) as checkpoints:
        restored, _ = checkpoints.restore(abstract_state(begun, description.transformer)[1])
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored)]


def names(run: Path) -> tuple[list[str], list[str]]:
    """What a run's folder holds, and its checkpoints."""
    return sorted(path.name for path in run.iterdir()), sorted(path.name for path in (run / "checkpoints").iterdir())


def difference(ours: Path, alone: Path) -> str | None:
    """In what a run differs from the one that was left alone."""
    if names(ours) != names(alone):
        return f"holds {names(ours)}, not {names(alone)}"
    if record(ours) != record(alone):
        return "recorded other lines"
    if results(ours) != results(alone):
        return f"results {results(ours)}, not {results(alone)}"
    pairs = zip(state(ours), state(alone), strict=True)
    return None if all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs) else "another state"


def fuzz(cases: int, seed: int, kinds: tuple[str, ...] = tuple(RUNS)) -> Tally:
    """Kill trainings until so many kills have been tried; a kill has failed if its run ends otherwise than alone."""
    tally = Tally("kills")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        root = Path(name)
        trainings = Trainings(root)
        usual = {kind: trainings.leave_alone(root, kind) for kind in kinds}
        index = 0
        while tally.tried < cases:
            jobs = []
            for _ in range(min(2, 1 + (cases - tally.tried) // 4)):
                folder, kind = root / f"run-{index}", kinds[index % len(kinds)]
                folder.mkdir()
                job = pool.submit(kill_until_done, trainings, folder, kind, seed * 100_003 + index, usual[kind])
                jobs.append((index, folder, job))
                index += 1
            for number, folder, job in jobs:
                killed = job.result()
                problem = killed.problem or difference(folder / "run", root / killed.kind / "run")
                for moment in killed.moments[:-1]:
                    tally.record(moment, None)
                if killed.moments or problem:
                    case = f"seed {seed}, run {number} ({killed.kind}) killed {', '.join(killed.moments)}"
                    tally.record(case, problem)
                shutil.rmtree(folder)
    return tally


def save_for_ever(folder: str, pace: float) -> None:
    """Write checkpoints whose arrays hold their step, one after the other, until somebody kills this process."""
    import jax.numpy as jnp

    from jaxformer.training import Checkpoints

    with Checkpoints(Path(folder)) as checkpoints:
        first = 1 + (checkpoints.latest or 0)
        for step in range(first, first + 1_000_000):
            checkpoints.save(step, {"weight": jnp.full((40, 30), step)}, {"place": step}, loss=abs(step - 5.0))
            time.sleep(pace)


def judge_saves(folder: Path) -> str | None:
    """What is wrong with the checkpoints that a killed process has left."""
    import jax.numpy as jnp

    from jaxformer.training import Checkpoints

    said: list[str] = []
    before = {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}
    if not before:
        return None
    with Checkpoints(folder, notify=said.append) as checkpoints:
        state, position = checkpoints.restore({"weight": jnp.zeros((40, 30), int)})
    step, kept = position["place"], sorted(path.name for path in folder.iterdir())
    if said or step != max(before) or not (state["weight"] == step).all():
        return f"opened {step} of {sorted(before)}, said {said}"
    return None if set(kept) == set(map(str, before)) and len(kept) <= 4 else f"{kept} are left"


def fuzz_saves(cases: int, seed: int) -> Tally:
    """Kill a process that saves, and save on in another one: quick, because nothing is trained."""
    rng, tally = np.random.default_rng(seed), Tally("killed saves")
    with tempfile.TemporaryDirectory() as name:
        trainings = Trainings(Path(name))
        folder = Path(name, "checkpoints")
        folder.mkdir()
        for case in range(cases):
            pace, delay = rng.choice([0.0, 0.05]), rng.exponential(0.05)
            process = trainings.fork(save_for_ever, str(folder), pace)
            saves = wait_for_save(process, folder, 60)
            time.sleep(delay)
            process.kill()
            process.join()
            problem = judge_saves(folder) if saves else f"status {process.exitcode}"
            tally.record(f"seed {seed}, case {case}, killed {delay:.3f} s after a save began", problem)
    return tally


if __name__ == "__main__":
    main(fuzz, cases=200)
