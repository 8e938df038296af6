"""Runs on disk: a folder with its description, checkpoints, metrics and results."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxformer import parallel
from jaxformer.cli.invocation import command_line
from jaxformer.config import TransformerConfig, from_dict, to_dict
from jaxformer.errors import InputError, shortened
from jaxformer.model import Transformer, abstract_model
from jaxformer.schema import Field, integer, load_json, located, mapping, nullable, read, require, text
from jaxformer.tasks import TASKS, NamedTask, Task, TrainSettings, find_task, is_outside, same_task, settings_from_dict
from jaxformer.tasks.finetuning import ADAPTER, MODEL
from jaxformer.tasks.text import TEXT
from jaxformer.tasks.text import read_description as text_description
from jaxformer.training import Checkpoints, Trainable, TrainState, init_state, make_optimizer, replace_text

ROOT = Path("runs")
DESCRIPTION, RESULTS, CHECKPOINTS = "run.json", "results.json", "checkpoints"
FORMAT = 3  # raised whenever older checkpoints can no longer be read
ABOUT: dict[str, Field] = {
    "version": text("unknown"),
    "format": integer(1),
    "task": text(""),
    "code": nullable(text(None)),
    "settings": mapping({}),
    "model": mapping({}),
}


class Description(NamedTuple):
    """Contents of a run's description. Reading it runs no code of the run.

    Attributes:
        spec: The task, as --task named it.
        code: SHA-256 of the file that spec names; None for a task of the package.
        settings: The settings, as JSON.
        transformer: The model.
    """

    spec: str
    code: str | None
    settings: dict[str, Any]
    transformer: TransformerConfig


@dataclass(frozen=True)
class Run:
    """A trained model with its task, which has the settings of the run.

    Attributes:
        folder: The folder of the run.
        task: The task.
        params: The trained parameters.
        model: The model with them.
    """

    folder: Path
    task: Task[Any]
    params: Any
    model: Transformer


def fresh_state(task: Task[Any], transformer: TransformerConfig) -> tuple[Trainable, TrainState]:
    """Return the model, and the training state before the first step."""
    trainable = task.trainable(transformer)
    make = partial(first_state, task)
    if (mesh := parallel.current_mesh()) is None:
        return trainable, make(trainable.params)
    where = state_shardings(jax.eval_shape(make, trainable.params), transformer, mesh)
    return trainable, jax.jit(make, out_shardings=where)(trainable.params)


def abstract_state(task: Task[Any], transformer: TransformerConfig) -> tuple[Trainable, TrainState]:
    """Return the same with shapes and types in place of the arrays of the state; they are not allocated."""
    trainable = task.trainable(transformer, abstract=True)
    state = jax.eval_shape(partial(first_state, task), trainable.params)
    if (mesh := parallel.current_mesh()) is None:
        return trainable, state
    where = state_shardings(state, transformer, mesh)
    return trainable, jax.tree.map(lambda leaf, place: leaf.update(sharding=place), state, where)


def state_shardings(state: TrainState, transformer: TransformerConfig, mesh: Mesh) -> Any:
    """Return the sharding of each array of a training state; optimizer moments have that of their parameter."""
    letters = parallel.letters_of(abstract_model(transformer))
    return parallel.shardings(state, mesh, parallel.current_rules(), letters)


def first_state(task: Task[Any], params: Any) -> TrainState:
    """Return the training state with these parameters before the first step."""
    optimizer = make_optimizer(task.settings.optimizer, task.settings.steps)
    return init_state(params, optimizer, task.settings.seed)


def write_description(folder: Path, named: NamedTask, settings: TrainSettings, transformer: TransformerConfig) -> None:
    """Write what the run is, so that its checkpoints can be opened by themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"version": version("jaxformer"), "format": FORMAT, "task": named.spec}
    about |= {} if named.code is None else {"code": named.code}
    about |= {"settings": to_dict(settings), "model": to_dict(transformer)}
    replace_text(folder / DESCRIPTION, json.dumps(about, indent=1) + "\n")


def read_description(folder: Path) -> Description:
    """Return what the run in a folder is. Raises InputError where there is none that can be read."""
    path = folder / DESCRIPTION
    if not path.exists():
        raise InputError(f"{folder} is not a run: it has no {DESCRIPTION}; train one with {command_line('train')}")
    values = load_json(path)
    with located(f"{path} cannot be read"):
        require(values, "task")
        about = read(values, ABOUT)
    spec = about["task"]
    if about["format"] != FORMAT:
        raise InputError(
            f"{folder} was written by another version of jaxformer ({shortened(about['version'], 40)}, format "
            f"{about['format']}, where this one reads format {FORMAT}): train again, or use that version"
        )
    if spec not in TASKS and not is_outside(spec):
        unknown = f"the task {shortened(spec, 40)!r}, which is unknown here"
        raise InputError(f"{folder} was trained on {unknown}: known are {', '.join(TASKS)}")
    with located(f"{path} cannot be read"):
        require(values, "settings", "model")
        model = from_dict(about["model"])
        if not isinstance(model, TransformerConfig):
            raise InputError('"model" holds something else')
    return Description(spec, about["code"], about["settings"], model)


def task_of(folder: Path, description: Description, named: NamedTask | None = None) -> NamedTask:
    """Return the task of a run.

    The code of a task outside the package runs only where the user names its file: a run cannot start it.

    Args:
        folder: The run.
        description: What the run says of itself.
        named: The task that the user named, if any.

    Raises:
        InputError: The user named another task, or has to name this one.
    """
    spec = shortened(description.spec, 100)
    if named is not None:
        if not same_task(named.spec, description.spec):
            raise InputError(f"{folder} was trained on the task {spec!r}: name that with --task, or another run")
        return named
    if is_outside(description.spec):
        raise InputError(
            f"{folder} was trained on a task of your own, whose code runs only where you name it: add --task {spec}"
        )
    return NamedTask(description.spec, TASKS[description.spec])


def read_settings(folder: Path, description: Description, task: type[Task[Any]]) -> TrainSettings:
    """Return the settings of a run of a task. Raises InputError if they cannot be read."""
    with located(f"{folder / DESCRIPTION} cannot be read"):
        return settings_from_dict(description.settings, type(task.defaults))


def checkpoint_in(name: str) -> str:
    """Return the checkpoint of Hugging Face that a name means: of a run the one that it wrote, else the name itself.

    Raises:
        InputError: The run wrote none, because it began with new weights or has not finished.
    """
    if not (Path(name) / DESCRIPTION).exists():
        return name
    for inside in (Path(name) / MODEL, Path(name) / ADAPTER):
        if inside.exists():
            return str(inside)
    shown = shortened(name, 150)
    programs = ", ".join(command_line(program) for program in ("generate", "perplexity", "visualize"))
    raise InputError(f"{shown} is a run of new weights, not a checkpoint folder: {programs} read it as --checkpoint")


def reads_plain(name: str) -> bool:
    """Return whether a name is a run, or a folder in one, that was trained on texts without the chat template."""
    for folder in (Path(name), Path(name).parent):
        if (folder / DESCRIPTION).exists() and (folder / TEXT).exists():
            return not text_description(folder)["chat"]
    return False


def runs_in(root: Path, spec: str | None = None) -> Iterator[Path]:
    """Return the runs below a folder, newest first; only those of one task if it is named."""
    found = sorted(root.glob(f"*/{DESCRIPTION}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        if spec is None or same_task(spec, read_description(path.parent).spec):
            yield path.parent


def steps_taken(folder: Path) -> int:
    """Return the step of the newest complete checkpoint of a run, 0 before the first."""
    with Checkpoints(folder / CHECKPOINTS, writable=False) as checkpoints:
        return checkpoints.latest or 0


def newest_finished(
    root: Path = ROOT, named: NamedTask | None = None, able: Callable[[type[Task[Any]]], bool] | None = None
) -> Path:
    """Return the run below a folder that was finished last; if none was, the newest that has a complete checkpoint.

    Args:
        root: The folder.
        named: Only runs of this task count.
        able: Only runs of tasks count of which this is true: of the package, or named.

    Raises:
        InputError: There is no such run.
    """

    def is_wanted(folder: Path) -> bool:
        if named is None and able is None:
            return True
        spec = read_description(folder).spec
        if named is not None:
            return same_task(named.spec, spec)
        return able is not None and spec in TASKS and able(TASKS[spec])

    if named is not None and able is not None and not able(named.task):
        raise InputError(f"--task {shortened(named.spec, 100)} is not for this: leave it out, or name another task")
    finished = sorted(root.glob(f"*/{RESULTS}"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = next((path.parent for path in finished if is_wanted(path.parent)), None)
    found = found or next((folder for folder in runs_in(root) if is_wanted(folder) and steps_taken(folder)), None)
    if found is None:
        example = named.spec if named else next(spec for spec, task in TASKS.items() if able is None or able(task))
        raise InputError(f"no finished run in {root}/: train one first with {command_line('train')} --task {example}")
    return found


def open_run(folder: Path | None = None, named: NamedTask | None = None) -> Run:
    """Return the run in a folder, at its newest checkpoint.

    Args:
        folder: The folder (None: the run below `runs/` that was finished last).
        named: The task that the user named; needed for a task outside the package.
    """
    folder = newest_finished(named=named) if folder is None else folder
    description = read_description(folder)
    task_class = task_of(folder, description, named).task
    task = task_class(read_settings(folder, description, task_class), folder)
    return restore(folder, task, description.transformer)


def restore(folder: Path, task: Task[Any], transformer: TransformerConfig) -> Run:
    """Return the run of a task in a folder, at its newest checkpoint."""
    trainable, state = abstract_state(task, transformer)
    with Checkpoints(folder / CHECKPOINTS, writable=False) as checkpoints:
        params = checkpoints.average(state, task.settings.average)
    return Run(folder, task, params, trainable.assemble(params, trainable.frozen))


def find_run(checkpoint: Path | None, spec: str | None, able: Callable[[type[Task[Any]]], bool] | None = None) -> Run:
    """Return the run that a command line asks for.

    Args:
        checkpoint: Its folder (None: the run that was finished last, of those that fit).
        spec: The task (None: that of the run, if it is one of the package).
        able: Without a folder, only runs of tasks count of which this is true.
    """
    named = None if spec is None else find_task(spec)
    return open_run(checkpoint or newest_finished(named=named, able=able), named)
