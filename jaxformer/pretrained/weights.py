"""Weights from safetensors files into our models, strictly: every tensor is used, every parameter is filled."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError, safe_open

from jaxformer.config import TransformerConfig
from jaxformer.errors import InputError
from jaxformer.model import Transformer

Arrays = dict[str, np.ndarray]


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises InputError where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}: give a folder that `save_pretrained` wrote") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


def read_tensors(folder: Path) -> Arrays:
    """Every tensor of `model.safetensors` in `folder`, by its name in the file."""
    path = folder / "model.safetensors"
    if not path.exists():
        raise InputError(f"{folder} has no model.safetensors: save the model in that format")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def build(config: TransformerConfig, tensors: Arrays, rename: Callable[[str], str], ignorable: str) -> Transformer:
    """A model of `config` whose parameters are `tensors`.

    `rename` maps the name of a parameter of ours ("decoder.blocks.0.attention.query.weight") to the tensor's name in
    the file; tensors that match the regular expression `ignorable` may stay unused. Linear maps, whose parameter is
    called "weight", are [outputs, inputs] in the file and [inputs, outputs] here. Raises InputError listing all
    missing, surplus and misshapen tensors at once.
    """
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    shapes: dict[tuple, Any] = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    names = {path: rename(".".join(map(str, path))) for path in shapes}
    surplus = [name for name in tensors.keys() - set(names.values()) if not re.fullmatch(ignorable, name)]
    problems = [f"surplus {name}" for name in sorted(surplus)]
    filled = {}
    for path, name in names.items():
        if name not in tensors:
            problems.append(f"missing {name}")
            continue
        tensor = tensors[name].T if path[-1] == "weight" else tensors[name]
        if same_matrix(tensor.shape, shapes[path].shape):
            filled[path] = np.asarray(tensor, np.float32).reshape(shapes[path].shape)
        else:
            problems.append(f"{name} has shape {tensors[name].shape}, which does not fit {shapes[path].shape}")
    if problems:
        raise InputError(f"the weights do not fit the configuration: {'; '.join(problems)}")
    return nnx.merge(graphdef, traverse_util.unflatten_dict(filled))


def same_matrix(theirs: Iterable[int], ours: Iterable[int]) -> bool:
    """Whether a tensor of one shape is one of the other with axes split: [D, N*H] and [D, N, H], [1, V] and [V]."""
    ends_theirs, ends_ours = (set(np.cumprod([n for n in shape if n > 1]).tolist()) for shape in (theirs, ours))
    return ends_theirs <= ends_ours and max(ends_theirs, default=1) == max(ends_ours, default=1)
