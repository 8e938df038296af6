"""`python train.py --task NAME`: settings, then the loop, then what came of it."""

import json
import sys
import time
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import tyro

from jaxformer.errors import InputError
from jaxformer.programs import runs, terminal
from jaxformer.programs.kind import Outcome, Prepared, Run
from jaxformer.programs.runs import CHECKPOINTS, KINDS, ROOT, Description
from jaxformer.programs.terminal import INTERRUPTED, optional
from jaxformer.train import (
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


def main() -> None:
    """Entry point of train.py."""
    terminal.run(lambda: train(sys.argv[1:]))


def train(argv: list[str]) -> None:
    """Train as the command line says."""
    start = time.perf_counter()
    task_name, rest = read_task(argv)
    kind = KINDS[task_name]
    arguments = parse(task_name, rest, kind.default(task_name))
    folder = choose_folder(task_name, arguments)
    if arguments.resume or arguments.eval_only:
        saved = resumable(folder, task_name)
        arguments = parse(task_name, rest, saved)
        refuse_changes(folder, saved, arguments.settings)
    if arguments.eval_only:
        print("\n".join(kind.evaluate(runs.open_run(folder)).lines))
        return
    # What cannot be built is refused before anything is written.
    prepared = kind.prepare(task_name, arguments.settings, folder if arguments.resume else None)
    jax.eval_shape(lambda: runs.fresh_state(prepared.config, arguments.settings)[1])
    try:
        runs.describe(folder, Description(task_name, arguments.settings, prepared.config))
        prepared.write(folder)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}): give another --output") from None
    again = f"go on with: python train.py --task {task_name} --resume --output {folder}"
    try:
        loss = train_run(folder, prepared, arguments)
        report(runs.open_run(folder), loss, start)
    except (InterruptedRunError, KeyboardInterrupt) as stop:
        print(f"{str(stop) or 'stopped, as asked'}; {again}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(DIVERGED)
    except OSError as error:
        raise OSError(f"{terminal.explain(error)}; when that is mended, {again}") from error


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
        print(f"usage: python train.py --task NAME [flags]\n\nTasks: {names}.")
        print("Flags of a task and their defaults: python train.py --task copy --help")
        sys.exit(0)
    raise InputError(f"name a task: python train.py --task NAME, one of {names}")


def parse(task_name: str, argv: list[str], defaults: Any) -> Arguments:
    """The command line's arguments, with the flags of the task; a flag that is not given keeps its default."""
    return terminal.parse(
        Arguments[KINDS[task_name].classes[0]],
        argv,
        prog=f"train.py --task {task_name}",
        description=KINDS[task_name].about(task_name),
        default=Arguments(defaults),
    )


def choose_folder(task_name: str, arguments: Arguments) -> Path:
    """The folder to write to; nothing that is there already is written over."""
    if arguments.resume or arguments.eval_only:
        folder = arguments.output or next(runs.runs_in(ROOT, task_name), None)
        if folder is None:
            raise InputError(f"there is no run of the task {task_name!r} in {ROOT}/ to go on with")
        return folder
    if arguments.output is None:
        folders = (ROOT / (task_name if number == 1 else f"{task_name}-{number}") for number in range(1, sys.maxsize))
        return next(folder for folder in folders if not folder.exists())
    if arguments.output.is_file():
        raise InputError(f"{arguments.output} is a file: give a folder as --output")
    if arguments.output.exists() and any(arguments.output.iterdir()):
        raise InputError(f"{arguments.output} is not empty: add --resume to go on there, or give another --output")
    return arguments.output


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
            batches.set_state(position)
        taken = int(state.step)
        with Recorder(folder, first_step=taken, steps=settings.steps, tensorboard=arguments.tensorboard) as recorder:
            return fit(state, step, batches, plan, recorder, checkpoints)[1]


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
    found_by_itself = run.folder.parent == ROOT  # generate.py looks there for the run that was finished last
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
