"""`jaxformer train --task NAME`: settings, then the loop, then what came of it."""

import json
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import tyro
from tqdm import tqdm

from jaxformer.cli import folders, runs, terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.kind import Outcome, Prepared, Run
from jaxformer.cli.memory import check_memory
from jaxformer.cli.runs import CHECKPOINTS, KINDS, ROOT, Description
from jaxformer.cli.terminal import optional
from jaxformer.errors import InputError
from jaxformer.interrupts import FAREWELL
from jaxformer.locks import locked
from jaxformer.schema import shown
from jaxformer.training import (
    Checkpoints,
    DivergedError,
    InterruptedRunError,
    Plan,
    Recorder,
    draw_loss,
    fit,
    learning_rates,
    make_optimizer,
    make_train_step,
    replace_text,
    write_report,
)
from jaxformer.training.loop import Batches

DIVERGED = 1  # exit status
S = TypeVar("S")


@dataclass(frozen=True)
class Arguments(Generic[S]):
    """What the command line says."""

    settings: Annotated[S, tyro.conf.arg(name="")]
    output: Annotated[Path | None, optional("RUN")] = None
    """folder of the run (default: runs/TASK, or runs/TASK-2 and so on where there is one already)"""
    resume: bool = False
    """go on with the run in --output, or else with the newest run of the task, as if it had never stopped"""
    eval_only: bool = False
    """train nothing: evaluate the run in --output, or else the newest run of the task, once more"""
    tensorboard: bool = False
    """write TensorBoard events into the run's folder as well"""


@contextmanager
def farewell(advice: str) -> Generator[None]:
    """Make this what a process says that a signal ends at once."""
    FAREWELL.advice = advice
    try:
        yield
    finally:
        FAREWELL.advice = ""


def train(argv: list[str]) -> None:
    """Train as the command line says."""
    tqdm.set_lock(threading.RLock())  # its own one is shared between processes, and not given back by `os._exit`
    start = time.perf_counter()
    task_name, rest = read_task(argv)
    kind = KINDS[task_name]
    arguments = parse(task_name, rest, kind.default(task_name))
    folder = folders.choose(task_name, arguments.output, existing=arguments.resume or arguments.eval_only)
    if arguments.eval_only:
        read_saved(folder, task_name, rest)
        print("\n".join(kind.evaluate(runs.open_run(folder)).lines))
        return
    with ExitStack() as lock:
        if arguments.resume:
            resumable(folder, task_name)  # a folder that is no run is not locked either
            lock.enter_context(locked(folder))
            arguments = read_saved(folder, task_name, rest)
        prepared = prepare(task_name, arguments, folder)
        try:
            folder = folder if arguments.resume else folders.claim(task_name, arguments.output, lock)
            runs.describe(folder, Description(task_name, arguments.settings, prepared.config))
            prepared.write(folder)
        except OSError as error:
            raise InputError(f"cannot write to {folder} ({error.strerror}): give another --output") from None
        advice = f"go on with: {command_line('train')} --task {task_name} --resume --output {folder}"
        lock.enter_context(farewell(advice))
        try:
            loss = train_run(folder, prepared, arguments)
            report(runs.open_run(folder), loss, start)
        except (InterruptedRunError, KeyboardInterrupt) as interrupt:
            print(f"{str(interrupt) or 'stopped, as asked'}; {advice}", file=sys.stderr)
            sys.exit(128 + getattr(interrupt, "number", signal.SIGINT))
        except DivergedError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(DIVERGED)
        except OSError as error:
            raise OSError(f"{terminal.explain(error)}; when that is mended, {advice}") from error


def read_saved(folder: Path, task_name: str, argv: list[str]) -> Arguments:
    """Return the command line's arguments, with the settings of the run in a folder where no flag is given."""
    saved = resumable(folder, task_name)
    arguments = parse(task_name, argv, saved)
    refuse_changes(folder, saved, arguments.settings)
    return arguments


def prepare(task_name: str, arguments: Arguments, folder: Path) -> Prepared:
    """Return what training needs; what cannot be built is refused before anything is written."""
    settings = arguments.settings
    # A run that was killed before its first checkpoint begins anew: its folder may lack some of its files.
    begun = arguments.resume and runs.steps_taken(folder) > 0
    prepared = KINDS[task_name].prepare(task_name, settings, folder if begun else None)
    check_memory(runs.abstract_state(prepared.config, settings)[1], prepared, settings)
    if settings.optimizer.warmup(settings.steps) >= settings.steps > 1:
        print(
            f"--warmup-steps {settings.optimizer.warmup_steps} of {settings.steps} steps: the learning rate never "
            "reaches its peak; leave --warmup-steps out, or train longer",
            file=sys.stderr,
        )
    return prepared


def read_task(argv: list[str]) -> tuple[str, list[str]]:
    """The task that `--task` names, read first because its flags depend on it, and the other arguments."""
    names = ", ".join(KINDS)
    for index, argument in enumerate(argv):
        if argument == "--task" or argument.startswith("--task="):
            end = index + 1 if "=" in argument else index + 2
            name = argument.removeprefix("--task=") if "=" in argument else "".join(argv[index + 1 : end])
            if name not in KINDS:
                raise InputError(f"unknown task {name!r}: choose one of {names}")
            return name, argv[:index] + argv[end:]
    if "-h" in argv or "--help" in argv:
        print(f"usage: {command_line('train')} --task NAME [flags]\n\nTasks: {names}.")
        print(f"Flags of a task and their defaults: {command_line('train')} --task copy --help")
        sys.exit(0)
    raise InputError(f"name a task: {command_line('train')} --task NAME, one of {names}")


def parse(task_name: str, argv: list[str], defaults: Any) -> Arguments:
    """The command line's arguments, with the flags of the task; a flag that is not given keeps its default."""
    return terminal.parse(
        Arguments[KINDS[task_name].classes[0]],
        argv,
        prog=f"{command_line('train')} --task {task_name}",
        description=KINDS[task_name].about(task_name),
        default=Arguments(defaults),
    )


def resumable(folder: Path, task_name: str) -> Any:
    """The settings of the run in a folder. Raises InputError where it is no run of this task."""
    saved_task, saved, _ = runs.read_description(folder)
    if saved_task != task_name:
        raise InputError(f"{folder} was trained on the task {saved_task!r}: resume it with --task {saved_task}")
    return saved


def refuse_changes(folder: Path, saved: Any, given: Any) -> None:
    """Raise InputError if a resumed run is given other settings than it began with, except more steps."""
    before, after = flag_values(saved), flag_values(given)
    changed = [flag for flag, value in after.items() if value != before[flag] and flag != "--steps"]
    if changed:
        raise InputError(f"a resumed run keeps its settings: leave out {', '.join(changed)}")
    taken = runs.steps_taken(folder)
    if given.steps < taken:
        raise InputError(f"{folder} has taken {taken} steps already: give --steps {taken} or more")


def flag_values(settings: Any) -> dict[str, Any]:
    """What every flag stands at."""
    values: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        values |= flag_values(value) if is_dataclass(value) else {f"--{field.name.replace('_', '-')}": value}
    return values


def train_run(folder: Path, prepared: Prepared, arguments: Arguments) -> float:
    """Train, from the newest checkpoint if there is one, and return the mean loss of the last steps."""
    settings, batches = arguments.settings, prepared.batches
    graphdef, state = runs.fresh_state(prepared.config, settings)
    step = make_train_step(
        prepared.loss(graphdef),
        make_optimizer(settings.optimizer, settings.steps),
        learning_rates(settings.optimizer, settings.steps),
        accumulate=settings.accumulate,
        adjust=prepared.adjust,
    )
    plan = Plan(settings.steps, settings.save_every, prepared.tokens, prepared.evaluate, prepared.evaluate_every)
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        if checkpoints.latest is not None:
            state, position = checkpoints.restore(state)
            go_to(batches, position)
        taken = int(state.step)
        with Recorder(folder, first_step=taken, steps=settings.steps, tensorboard=arguments.tensorboard) as recorder:
            return fit(state, step, batches, plan, recorder, checkpoints)[1]


def go_to(batches: Batches, position: dict[str, Any]) -> None:
    """Go to a place in the data. Raises InputError where a checkpoint without checksums holds something else."""
    try:
        batches.set_state(position)
    except Exception as error:  # grain raises many types
        raise InputError(f"{shown(position)} is no place in the data: the newest checkpoint is damaged") from error


def report(run: Run, loss: float, start: float) -> None:
    """Evaluate on held-out data, write the results down and say what came of it; `start` is on the clock."""
    outcome = KINDS[run.task_name].evaluate(run)
    picture = draw_loss(run.folder)
    seconds = time.perf_counter() - start
    results = {"loss": loss, **outcome.results, "seconds": round(seconds, 1)}
    replace_text(run.folder / runs.RESULTS, json.dumps(results) + "\n")
    page = write_report(run.folder, f"{run.task_name}: {run.folder}", facts(run, outcome, seconds))
    print(f"{run.task_name}: training loss {loss:.4f} nats per token after {run.settings.steps} steps, {seconds:.0f} s")
    print("\n".join(outcome.lines))
    print(f"checkpoint: {run.folder}    loss curve: {picture}    report: {page}")
    found_by_itself = run.folder.parent == ROOT  # generate looks there for the run that was finished last
    print(f"next: {outcome.next_command}{'' if found_by_itself else f' --checkpoint {run.folder}'}")


def facts(run: Run, outcome: Outcome, seconds: float) -> dict[str, str]:
    """What the report's table says of a run."""
    count = sum(leaf.size for leaf in jax.tree.leaves(run.model))
    said = {
        name.replace("_", " "): f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        for name, value in outcome.results.items()
    }
    flags = " ".join(f"{flag} {value}" for flag, value in flag_values(run.settings).items() if value is not None)
    return {"parameters": f"{count:,}", **said, "time": f"{seconds:.0f} s", "settings": flags}
