"""`jaxformer train --task NAME`: settings, then the loop, then what came of it."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import tyro
from tqdm import tqdm

from jaxformer import parallel
from jaxformer.cli import folders, runs, terminal
from jaxformer.cli.accounting import training_flops
from jaxformer.cli.invocation import command_line
from jaxformer.cli.memory import bytes_of, check_memory, size
from jaxformer.cli.runs import CHECKPOINTS, ROOT, Description, Run
from jaxformer.cli.streams import note
from jaxformer.data import Process
from jaxformer.errors import InputError, shortened
from jaxformer.flags import optional
from jaxformer.interrupts import FAREWELL
from jaxformer.locks import locked
from jaxformer.schema import shown
from jaxformer.tasks import (
    TASKS,
    EvalResult,
    NamedTask,
    Task,
    command_flags,
    find_task,
    flag_values,
    loss_function,
    same_task,
)
from jaxformer.training import (
    Checkpoints,
    DivergedError,
    InterruptedRunError,
    LoopConfig,
    MetricLogger,
    Metrics,
    StepProfiler,
    Trainable,
    TrainState,
    draw_loss,
    fit,
    learning_rates,
    make_optimizer,
    make_train_step,
    peak_flops,
    replace_text,
    write_report,
)
from jaxformer.training.loop import Batches

DIVERGED = 1  # exit status
PROFILE, PROFILED = "profile", 5  # folder in that of a run, and how many steps a profile needs
KEPT = 2  # checkpoints, besides the best one
S = TypeVar("S")


@dataclass(frozen=True)
class Arguments(Generic[S]):
    """Arguments of the command line."""

    settings: Annotated[S, tyro.conf.arg(name="")]
    output: Annotated[Path | None, optional("RUN")] = None
    """folder of the run (default: runs/TASK, or runs/TASK-2 and so on where there is one already)"""
    resume: bool = False
    """go on with the run in --output, or else with the newest run of the task, as if it had never stopped"""
    eval_only: bool = False
    """train nothing: evaluate the run in --output, or else the newest run of the task, once more"""
    mesh: Annotated[str | None, optional("AXIS=SIZE,...")] = None
    """divide the training over devices: fsdp=8, data=2,tensor=4, or fsdp=-1 for all that are there"""
    coordinator: Annotated[str | None, optional("HOST:PORT")] = None
    """train with other processes, of which number 0 is reached here; under Slurm, Open MPI and on slices of TPUs they
    are found without this"""
    processes: Annotated[int | None, optional("N")] = None
    """number of processes"""
    process: Annotated[int | None, optional("I")] = None
    """number of this process, from 0 on"""
    tensorboard: bool = False
    """write TensorBoard events into the run's folder as well"""
    profile: bool = False
    """trace three steps into the run's folder, and print the operations that take longest"""


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
    named, rest = read_task(argv)
    flags = [part for argument in rest for part in argument.split("=", 1)]
    arguments = parse(named, rest, named.task.defaults_for(flags))
    folder = folders.choose(named, arguments.output, existing=arguments.resume or arguments.eval_only)
    parallel.join(arguments.coordinator, arguments.processes, arguments.process)
    mesh = arguments.mesh or (None if jax.process_count() == 1 else "data=-1")
    with quiet_but_for_the_first(), parallel.using(None if mesh is None else parallel.make_mesh(mesh)):
        train_in(folder, named, arguments, rest, start)


@contextmanager
def quiet_but_for_the_first() -> Generator[None]:
    """Discard what processes other than the first print: all say the same."""
    if parallel.is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def train_in(folder: Path, named: NamedTask, arguments: Any, rest: list[str], start: float) -> None:
    """Train, or evaluate, in a folder.

    Args:
        folder: The folder of the run.
        named: The task.
        arguments: The command line.
        rest: The same as it was given, without the task.
        start: When the program began.
    """
    if arguments.eval_only:
        read_saved(folder, named, rest)
        run = runs.open_run(folder, named)
        if changed := run.task.changed_data():
            note(f"the {' and the '.join(changed)} changed since {folder} began: its results were of other data")
        note_changed_code(folder, named)
        print("\n".join(run.task.evaluate(run.model).lines))
        return
    with ExitStack() as lock:
        if arguments.resume:
            resumable(folder, named)  # a folder that is no run is not locked either
            if parallel.is_first():
                lock.enter_context(locked(folder))
            arguments = read_saved(folder, named, rest)
        task, batches = prepare(named, arguments, folder)
        if arguments.resume:
            note_changed_code(folder, named)
        try:
            folder = folder if arguments.resume else folders.claim_for_all(named.task.name, arguments.output, lock)
            home = folder if parallel.is_first() else lock.enter_context(folders.scratch(folder))
            parallel.wait_for_all("folder")
            runs.write_description(home, named, task.settings, task.config)
            task.save(home)
            parallel.check_same(folders.described(home), "settings or data")
        except OSError as error:
            raise InputError(f"cannot write to {folder} ({error.strerror}): give another --output") from None
        advice = f"go on with: {command_line('train')} --task {quote(named.spec)} --resume --output {folder}"
        lock.enter_context(farewell(advice))
        try:
            loss = train_run(folder, home, task, batches, arguments)
            run = runs.restore(folder, task, task.config)
            run = replace(run, params=parallel.gather(run.params), model=parallel.gather(run.model))
            if parallel.is_first():
                with parallel.alone():
                    report(run, named, loss, start)
            parallel.wait_for_all("report")
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1:
                raise
            raise OSError(f"another process has ended ({shortened(str(error), 100)}); {advice}") from error
        except (InterruptedRunError, KeyboardInterrupt) as interrupt:
            print(f"{str(interrupt) or 'stopped, as asked'}; {advice}", file=sys.stderr)
            sys.exit(128 + getattr(interrupt, "number", signal.SIGINT))
        except DivergedError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(DIVERGED)
        except OSError as error:
            raise OSError(f"{terminal.explain(error)}; when that is mended, {advice}") from error


def read_saved(folder: Path, named: NamedTask, argv: list[str]) -> Arguments:
    """Return the command line's arguments, with the settings of the run in a folder where no flag is given."""
    description = resumable(folder, named)
    saved = runs.read_settings(folder, description, named.task)
    arguments = parse(named, argv, saved)
    refuse_changes(folder, saved, arguments.settings)
    return arguments


def note_changed_code(folder: Path, named: NamedTask) -> None:
    """Say so if the file of a task is not the one with which the run in a folder began."""
    if named.code != runs.read_description(folder).code:
        file = named.spec.rpartition(":")[0]
        note(f"{shortened(file, 100)} has changed since {folder} began: the code of now is used")


def prepare(named: NamedTask, arguments: Arguments, folder: Path) -> tuple[Task[Any], Batches]:
    """Return the task with its settings, and its data; what cannot be built is refused before anything is written."""
    # A run that was killed before its first checkpoint begins anew: its folder may lack some of its files.
    begun = arguments.resume and runs.steps_taken(folder) > 0
    task = named.task(arguments.settings, folder if begun else None)
    settings, config = task.settings, task.config
    if begun and (changed := task.changed_data()):
        raise InputError(f"the {' and the '.join(changed)} changed since {folder} began: it cannot be resumed")
    batches = training_batches(task)
    trainable, state = runs.abstract_state(task, config)
    check_memory(state, trainable.frozen, task)
    if settings.optimizer.warmup(settings.steps) >= settings.steps > 1:
        print(
            f"--warmup-steps {settings.optimizer.warmup_steps} of {settings.steps} steps: the learning rate never "
            "reaches its peak; leave --warmup-steps out, or train longer",
            file=sys.stderr,
        )
    return task, batches


def read_task(argv: list[str]) -> tuple[NamedTask, list[str]]:
    """Return the task that `--task` names, read first because its flags depend on it, and the other arguments."""
    for index, argument in enumerate(argv):
        if argument == "--task" or argument.startswith("--task="):
            end = index + 1 if "=" in argument else index + 2
            name = argument.removeprefix("--task=") if "=" in argument else "".join(argv[index + 1 : end])
            return find_task(name), argv[:index] + argv[end:]
    if "-h" in argv or "--help" in argv:
        print(f"usage: {command_line('train')} --task NAME [flags]\n\nTasks:")
        print("\n".join(f"  {name:10}{task.describe()}" for name, task in TASKS.items()))
        print(f"\nA task of your own: {command_line('train')} --task FILE.py:CLASS, see examples/own_task.py")
        print(f"Flags of a task and their defaults: {command_line('train')} --task copy --help")
        sys.exit(0)
    if "--resume" in argv or "--eval-only" in argv:
        words = [part for argument in argv for part in argument.split("=", 1)]
        folder = next((Path(value) for flag, value in pairwise(words) if flag == "--output"), None)
        if folder is not None:
            return runs.task_of(folder, runs.read_description(folder)), argv
        raise InputError("name the run by --output RUN, or its task by --task NAME")
    raise InputError(f"name a task: {command_line('train')} --task NAME, one of {', '.join(TASKS)}")


def parse(named: NamedTask, argv: list[str], defaults: Any) -> Arguments:
    """Return the command line's arguments, with the flags of the task; a flag that is not given keeps its default."""
    generic: Any = Arguments
    return terminal.parse(
        generic[type(defaults)],
        argv,
        prog=f"{command_line('train')} --task {named.spec}",
        description=named.task.describe(),
        default=Arguments(defaults),
    )


def resumable(folder: Path, named: NamedTask) -> Description:
    """Return what the run in a folder is. Raises InputError where it is no run of this task."""
    description = runs.read_description(folder)
    if not same_task(named.spec, description.spec):
        other = shortened(description.spec, 80)
        raise InputError(f"{folder} was trained on the task {other!r}: resume it with --task {other}")
    return description


def refuse_changes(folder: Path, saved: Any, given: Any) -> None:
    """Raise InputError if a resumed run is given other settings than it began with, except more steps."""
    before, after = flag_values(saved), flag_values(given)
    changed = [flag for flag, value in after.items() if value != before[flag] and flag != "--steps"]
    if changed:
        raise InputError(f"a resumed run keeps its settings: leave out {', '.join(changed)}")
    taken = runs.steps_taken(folder)
    if given.steps < taken:
        raise InputError(f"{folder} has taken {taken} steps already: give --steps {taken} or more")


def train_run(folder: Path, home: Path, task: Task[Any], batches: Batches, arguments: Arguments) -> float:
    """Train, from the newest checkpoint if there is one, and return the mean loss of the last steps.

    Args:
        folder: The folder of the run, with its checkpoints.
        home: Folder that this process writes metrics to: `folder` in process 0, a temporary one in the others.
        task: What is trained.
        batches: The part of the data that this process reads.
        arguments: What to record.
    """
    settings = task.settings
    trainable, state = runs.fresh_state(task, task.config)
    step = make_train_step(
        loss_function(task, trainable),
        make_optimizer(settings.optimizer, settings.steps),
        learning_rates(settings.optimizer, settings.steps),
        accumulate=settings.accumulate,
        adjust=task.adjust,
        shardings=None if parallel.current_mesh() is None else jax.tree.map(lambda leaf: leaf.sharding, state),
    )
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (state.params, trainable.frozen))
    if trainable.frozen is not None:
        held = f"{size(bytes_of(trainable.frozen))} of memory"
        note(f"trains {trained:,} parameters; {frozen:,} are frozen, in {held}")
    every = task.evaluate_every
    evaluate = None if every is None else partial(validate, task, trainable)
    share = trained / (trained + frozen)

    def flops(batch: Any) -> float | None:
        here = training_flops(task.config, batch, trained=share)
        return None if here is None else here * jax.process_count()  # all have as many rows

    def tokens(batch: Any) -> int:
        return task.count_tokens(batch) * jax.process_count()

    plan = LoopConfig(settings.steps, settings.save_every, tokens, evaluate, every or 1, flops)
    with Checkpoints(folder / CHECKPOINTS, keep=max(KEPT, settings.average)) as checkpoints:
        if checkpoints.latest is not None:
            state, position = checkpoints.restore(state)
            go_to(batches, position)
        taken = int(state.step)
        if arguments.profile and settings.steps - taken < PROFILED:
            note(f"--profile traces the third to the fifth step of a run: {settings.steps - taken} are too few")
        board = {"tensorboard": arguments.tensorboard, "peak": peak_flops(jnp.dtype(settings.dtype))}
        with MetricLogger(home, first_step=taken, steps=settings.steps, **board) as recorder:
            take = StepProfiler(step, home / PROFILE) if arguments.profile else step

            def step_on_devices(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
                return take(state, parallel.shard_batch(batch))

            return fit(state, step_on_devices, batches, plan, recorder, checkpoints)[1]


def validate(task: Task[Any], trainable: Trainable, params: Any) -> dict[str, Any]:
    """Return the metrics of held-out data, which the first process computes for all."""
    params, frozen = parallel.gather((params, trainable.frozen))
    with parallel.alone():
        found = task.validate(trainable.assemble(params, frozen)) if parallel.is_first() else None
    return parallel.agree(found)


def training_batches(task: Task[Any]) -> Batches:
    """Return the batches to train on, this process's part. Raises InputError if they cannot be returned to."""
    batches = task.batches("train", Process(jax.process_index(), jax.process_count()))
    if not isinstance(batches, Batches):
        raise InputError(
            f"the batches of the task {task.name} lack get_state and set_state: make them with "
            "jaxformer.data.batches_ahead"
        )
    return batches


def go_to(batches: Batches, position: dict[str, Any]) -> None:
    """Go to a place in the data. Raises InputError where a checkpoint without checksums holds something else."""
    try:
        batches.set_state(position)
    except Exception as error:  # grain raises many types
        raise InputError(f"{shown(position)} is no place in the data: the newest checkpoint is damaged") from error


def report(run: Run, named: NamedTask, loss: float, start: float) -> None:
    """Evaluate on held-out data, write the results down and say what came of it; `start` is on the clock."""
    name, found = run.task.name, run.task.evaluate(run.model)
    picture = draw_loss(run.folder)
    seconds = time.perf_counter() - start
    results = {"loss": loss, **found.metrics, "seconds": round(seconds, 1)}
    replace_text(run.folder / runs.RESULTS, json.dumps(results) + "\n")
    page = write_report(run.folder, f"{name}: {run.folder}", facts(run, found, seconds), found.lines)
    trained = f"{loss:.4f} nats per {run.task.unit} after {run.task.settings.steps} steps, {seconds:.0f} s"
    print(f"{name}: training loss {trained}")
    print("\n".join(found.lines))
    for line in run.task.export(run.folder, run.params, run.model):
        print(line)
    print(f"checkpoint: {run.folder}    loss curve: {picture}    report: {page}")
    found_by_itself = run.folder.parent == ROOT  # generate.py looks there for the run that was finished last
    flags = "" if named.code is None else f" --task {quote(named.spec)}"
    flags += "" if found_by_itself else f" --checkpoint {run.folder}"
    if found.generate_flags is not None:
        print(f"next: {command_line('generate')}{f' {found.generate_flags}' if found.generate_flags else ''}{flags}")


def facts(run: Run, found: EvalResult, seconds: float) -> dict[str, str]:
    """Return what the report's table says of a run."""
    count = sum(leaf.size for leaf in jax.tree.leaves(run.model))
    known = {
        name.replace("_", " "): f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        for name, value in found.metrics.items()
    }
    flags = " ".join(map(quote, command_flags(run.task.settings)))
    return {"parameters": f"{count:,}", **known, "time": f"{seconds:.0f} s", "settings": flags}
