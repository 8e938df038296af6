"""Weights from a checkpoint into our models, strictly: every tensor is used, every parameter is filled."""

import re
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from jaxformer.config import TransformerConfig
from jaxformer.errors import InputError
from jaxformer.layers import Linear
from jaxformer.model import Transformer, abstract_model
from jaxformer.pretrained.files import Arrays

FUSED = ("query", "key", "value", "gate", "up")  # the order in which checkpoints lay linear maps side by side


@dataclass(frozen=True)
class WeightTable:
    """Where checkpoints of a family keep what we call "decoder.blocks.0.attention.query.weight" and so on.

    renames: regular expressions on our names and what to put instead, applied in order. Parameters that end up with
    the same name are parts of one tensor, side by side along its outputs, in the order of `FUSED`. A "*" in a name is
    the number of an expert: each has a tensor of its own, and ours are one parameter. ignorable: tensors
    that may stay unused, a regular expression. prefix: what checkpoints of the bare model leave out in front of names.
    as_is: linear maps that are [inputs, outputs] in the file too, a regular expression; all others are transposed, as
    `torch.nn.Linear` has them. rows: vectors that are [1, n] in the file, a regular expression. by_head: tensors whose
    parts lie side by side within each head, a regular expression. alternating: tensors whose parts take turns number by
    number, a regular expression. kept: tensors of other uses, which we leave alone and write back. aliases: names of
    old files, regular expressions and what to put instead.
    """

    renames: tuple[tuple[str, str], ...]
    ignorable: str
    prefix: str
    as_is: str = ""
    rows: str = ""
    by_head: str = ""
    alternating: str = ""
    kept: str = ""
    aliases: tuple[tuple[str, str], ...] = ()

    def name(self, path: tuple[Any, ...]) -> str:
        """The tensor in which a parameter is."""
        name = ".".join(map(str, path))
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


def build(config: TransformerConfig, tensors: Arrays, table: WeightTable, dtype: Any = None) -> Transformer:
    """A model of `config` whose parameters are `tensors`, in their own types or all in `dtype`; raises as `place`."""
    leaves, structure = jax.tree.flatten(place(config, tensors, table))
    for index, leaf in enumerate(leaves):  # in turn, so that what had to be gathered for `place` is given back at once
        # Copies: an array of a mapped file would change with the file, and a transposed one be copied at every call.
        leaves[index] = jnp.array(leaf, dtype or leaf.dtype)
    return jax.tree.unflatten(structure, leaves)


def place(config: TransformerConfig, tensors: Arrays, table: WeightTable) -> Transformer:
    """The tensors, or views of them, where the parameters of a model of `config` are.

    Linear maps, whose parameter is called "weight", are [inputs, outputs] here. Raises InputError listing all missing,
    surplus and misshapen tensors at once.
    """
    graphdef, state = nnx.split(abstract_model(config))
    shapes: dict[tuple, Any] = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    parts: dict[str, list[tuple]] = {}
    for path in shapes:
        parts.setdefault(table.name(path), []).append(path)
    names = {name: numbered(name, shapes[paths[0]].shape[0]) for name, paths in parts.items()}
    known = f"{table.ignorable}|{table.kept}"
    surplus = [name for name in tensors.keys() - set(chain(*names.values())) if not re.fullmatch(known, name)]
    problems = [f"surplus {name}" for name in sorted(surplus)]
    filled: dict[tuple, np.ndarray] = {}
    for name, paths in parts.items():
        if missing := [each for each in names[name] if each not in tensors]:
            experts = f" of {len(missing)} of {len(names[name])} experts" if "*" in name else ""
            problems.append(f"missing {name}{experts}")
            continue
        tensor = gathered(name, [tensors[each] for each in names[name]])
        whole = {path: shapes[path].shape for path in sorted(paths, key=place_among_fused)}
        found = None if tensor is None else split(turned(tensor, name, paths[0], table), whole, name, table)
        if found is None:
            wanted = " + ".join(map(str, whole.values()))
            theirs = " and ".join(str(shape) for shape in {tensors[each].shape: None for each in names[name]})
            problems.append(f"{name} has shape {theirs}, which does not fit {wanted}")
        else:
            filled |= found
    if problems:
        raise InputError(f"the weights do not fit the configuration: {'; '.join(problems)}")
    return nnx.merge(graphdef, traverse_util.unflatten_dict(filled))


def tensors_of(model: Transformer, table: WeightTable) -> Arrays:
    """The parameters of a model as the tensors of a checkpoint: what `build` reads."""
    _, state = nnx.split(model)
    leaves: dict[tuple, Any] = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    parts: dict[str, list[tuple]] = {}
    for path in sorted(leaves, key=place_among_fused):
        parts.setdefault(table.name(path), []).append(path)
    tensors = {}
    for name, paths in parts.items():
        arrays = [np.asarray(leaves[path]) for path in paths]
        if re.fullmatch(table.by_head, name):
            tensor = np.concatenate(arrays, axis=-1)
            tensor = tensor.reshape(*tensor.shape[:-2], -1)
        elif re.fullmatch(table.alternating, name):
            tensor = np.stack(arrays, axis=-1)
            tensor = tensor.reshape(*tensor.shape[:-2], -1)
        else:
            pieces = [as_matrix(array, owner(model, path), path) for array, path in zip(arrays, paths, strict=True)]
            tensor = np.concatenate(pieces, axis=-1)
        tensor = turned(tensor, name, paths[0], table)
        each = tensor if "*" in name else [tensor[None] if re.fullmatch(table.rows, name) else tensor]
        tensors |= dict(zip(numbered(name, len(each)), map(np.ascontiguousarray, each), strict=True))
    return tensors


def numbered(name: str, experts: int) -> list[str]:
    """The names of the tensors that are one parameter: those of all experts, or the name itself."""
    return [name.replace("*", str(number)) for number in range(experts)] if "*" in name else [name]


def gathered(name: str, tensors: list[np.ndarray]) -> np.ndarray | None:
    """The tensors of all experts as one, or the only tensor of a name; None if the experts' have several shapes."""
    if "*" not in name:
        return tensors[0]
    return None if len({tensor.shape for tensor in tensors}) > 1 else np.stack(tensors)


def turned(tensor: np.ndarray, name: str, path: tuple[Any, ...], table: WeightTable) -> np.ndarray:
    """A linear map as the other side has it, [inputs, outputs] or [outputs, inputs]; anything else as it is."""
    stays = path[-1] != "weight" or re.fullmatch(table.as_is, name) or tensor.ndim < 2
    return tensor if stays else np.swapaxes(tensor, -1, -2)


def owner(model: Transformer, path: tuple[Any, ...]) -> Any:
    """The module that a parameter belongs to."""
    module: Any = model
    for part in path[:-1]:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    return module


def as_matrix(array: np.ndarray, module: Any, path: tuple[Any, ...]) -> np.ndarray:
    """A parameter of a linear map without the axes that its inputs and outputs are split into; any other as it is."""
    if not isinstance(module, Linear):
        return array
    inputs = module.inputs if path[-1] == "weight" else ()
    experts = array.shape[: array.ndim - len(inputs) - len(module.outputs)]
    return array.reshape(*experts, *[prod(inputs)] * bool(inputs), prod(module.outputs))


def place_among_fused(path: tuple[Any, ...]) -> int:
    """Where a parameter stands among those that share a tensor."""
    return next((FUSED.index(part) for part in path if part in FUSED), 0)


def named(tensors: Arrays, table: WeightTable) -> Arrays:
    """The tensors of a file under the names that they have today in a whole model."""
    if not any(name.startswith(table.prefix) for name in tensors):
        tensors = {table.prefix + name: tensor for name, tensor in tensors.items()}
    for pattern, replacement in table.aliases:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    return tensors


def split(
    tensor: np.ndarray, shapes: dict[tuple, tuple[int, ...]], name: str, table: WeightTable
) -> dict[tuple, np.ndarray] | None:
    """The parameters of these shapes that lie side by side along the last axis of a tensor; None if they do not.

    Or within each head, so that the axis is heads x parts x width, or taking turns, so that it is width x parts.
    """
    if len(shapes) == 1:
        ((path, shape),) = shapes.items()
        return {path: tensor.reshape(shape)} if same_matrix(tensor.shape, shape) else None
    if re.fullmatch(table.by_head, name):
        widths, others = [shape[-1] for shape in shapes.values()], {shape[:-1] for shape in shapes.values()}
        *inputs, heads = next(iter(others))
        if len(others) > 1 or tensor.shape != (*inputs, heads * sum(widths)):
            return None
        pieces = np.split(tensor.reshape(*inputs, heads, -1), np.cumsum(widths)[:-1], axis=-1)
        return dict(zip(shapes, pieces, strict=True))
    if re.fullmatch(table.alternating, name):
        shape = next(iter(shapes.values()))
        inputs, outputs = shape[: tensor.ndim - 1], shape[tensor.ndim - 1 :]
        if tensor.shape != (*inputs, len(shapes) * prod(outputs)) or len(set(shapes.values())) > 1:
            return None
        pieces = np.moveaxis(tensor.reshape(*inputs, *outputs, len(shapes)), -1, 0)
        return dict(zip(shapes, pieces, strict=True))
    inputs, outputs = tensor.shape[:-1], [prod(shape[tensor.ndim - 1 :]) for shape in shapes.values()]
    if tensor.shape[-1] != sum(outputs) or any(shape[: len(inputs)] != inputs for shape in shapes.values()):
        return None
    pieces = np.split(tensor, np.cumsum(outputs)[:-1], axis=-1)
    return {path: piece.reshape(shape) for (path, shape), piece in zip(shapes.items(), pieces, strict=True)}


def same_matrix(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether a tensor of one shape is one of the other with axes split: [D, N*H] and [D, N, H], [1, V] and [V]."""
    ends_theirs, ends_ours = (set(np.cumprod([n for n in shape if n > 1]).tolist()) for shape in (theirs, ours))
    return ends_theirs <= ends_ours and max(ends_theirs, default=1) == max(ends_ours, default=1)
