"""Runs on disk: a folder with its description, checkpoints, metrics and results."""

import json
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxformer.cli.invocation import command_line
from jaxformer.cli.kind import Kind, Run, Settings
from jaxformer.cli.language import LANGUAGE
from jaxformer.cli.sequences import SEQUENCES
from jaxformer.config import TransformerConfig, from_dict, to_dict
from jaxformer.data import TASKS
from jaxformer.errors import InputError, shortened
from jaxformer.model import Transformer, abstract_model
from jaxformer.schema import integer, load_json, located, mapping, read, require, text
from jaxformer.training import Checkpoints, TrainState, init_state, make_optimizer, replace_text

KINDS: dict[str, Kind] = {**dict.fromkeys(TASKS, SEQUENCES), "lm": LANGUAGE}
ROOT = Path("runs")
DESCRIPTION, RESULTS, CHECKPOINTS = "run.json", "results.json", "checkpoints"
FORMAT = 2  # raised whenever older checkpoints can no longer be read
ABOUT = {
    "version": text("unknown"),
    "format": integer(1),
    "task": text(""),
    "settings": mapping({}),
    "model": mapping({}),
}


class Description(NamedTuple):
    """What a run's folder says of it: the task, the settings, and the model that came of them."""

    task_name: str
    settings: Any
    transformer: TransformerConfig


def fresh_state(transformer: TransformerConfig, settings: Settings) -> tuple[Any, TrainState]:
    """The structure of the model, and the training state before the first step."""
    graphdef, params = nnx.split(Transformer(transformer, rngs=nnx.Rngs(settings.seed)))
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    return graphdef, init_state(nnx.to_pure_dict(params), optimizer, settings.seed)


def abstract_state(transformer: TransformerConfig, settings: Settings) -> tuple[Any, TrainState]:
    """Return the same with shapes and types in place of arrays; nothing is allocated."""
    graphdef, params = nnx.split(abstract_model(transformer))
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    init = partial(init_state, optimizer=optimizer, seed=settings.seed)
    return graphdef, jax.eval_shape(init, nnx.to_pure_dict(params))


def describe(folder: Path, description: Description) -> None:
    """Write what the run is, so that its checkpoints can be opened by themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    task_name, settings, transformer = description
    about = {"version": version("jaxformer"), "format": FORMAT, "task": task_name}
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
    task = about["task"]
    if about["format"] != FORMAT:
        raise InputError(
            f"{folder} was written by another version of jaxformer ({shortened(about['version'], 40)}, format "
            f"{about['format']}, where this one reads format {FORMAT}): train again, or use that version"
        )
    if task not in KINDS:
        unknown = f"the task {shortened(task, 40)!r}, which is unknown here"
        raise InputError(f"{folder} was trained on {unknown}: known are {', '.join(KINDS)}")
    with located(f"{path} cannot be read"):
        require(values, "settings", "model")
        settings, model = from_dict(about["settings"], KINDS[task].classes), from_dict(about["model"])
        if not isinstance(settings, KINDS[task].classes[0]) or not isinstance(model, TransformerConfig):
            raise InputError('"settings" or "model" holds something else')
        return Description(task, settings, model)


def runs_in(root: Path, task_name: str | None = None) -> Iterator[Path]:
    """The runs below a folder, newest first; only those of one task if it is named."""
    found = sorted(root.glob(f"*/{DESCRIPTION}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        if task_name is None or read_description(path.parent).task_name == task_name:
            yield path.parent


def steps_taken(folder: Path) -> int:
    """The step of the newest complete checkpoint of a run, 0 before the first."""
    with Checkpoints(folder / CHECKPOINTS, writable=False) as checkpoints:
        return checkpoints.latest or 0


def newest_finished(root: Path = ROOT, task_name: str | None = None) -> Path:
    """The run below a folder that was finished last; if none was, the newest that has a complete checkpoint.

    Only runs of one task count, if it is named. Raises InputError where there is neither.
    """
    finished = sorted(root.glob(f"*/{RESULTS}"), key=lambda path: path.stat().st_mtime, reverse=True)
    wanted = (path.parent for path in finished if task_name in (None, read_description(path.parent).task_name))
    found = next(wanted, None) or next(filter(steps_taken, runs_in(root, task_name)), None)
    if found is None:
        raise InputError(
            f"no finished run in {root}/: train one first with {command_line('train')} --task {task_name or 'copy'}"
        )
    return found


def open_run(folder: Path | None = None) -> Run:
    """The run in a folder, at its newest checkpoint; without a folder the run below `runs/` that was finished last."""
    folder = newest_finished() if folder is None else folder
    task_name, settings, transformer = read_description(folder)
    task, generation = KINDS[task_name].open(task_name, settings, folder)
    graphdef, state = abstract_state(transformer, settings)
    with Checkpoints(folder / CHECKPOINTS, writable=False) as checkpoints:
        params = checkpoints.restore(state)[0].params
    return Run(folder, task_name, settings, nnx.merge(graphdef, params), task, generation)
