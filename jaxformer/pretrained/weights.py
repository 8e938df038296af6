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
from jaxformer.errors import InputError, listed
from jaxformer.layers import Linear
from jaxformer.model import Transformer, abstract_model
from jaxformer.pretrained.files import Arrays

FUSED = ("query", "key", "value", "gate", "up")  # the order in which checkpoints lay linear maps side by side


@dataclass(frozen=True)
class WeightTable:
    """Where checkpoints of a family keep what we call "decoder.blocks.0.attention.query.weight" and so on.

    Attributes:
        renames: Regular expressions on our names and what to put instead, applied in order. Parameters that end up with
            the same name are parts of one tensor, side by side along its outputs, in the order of `FUSED`. A "*" in a
            name is the number of an expert: each has a tensor of its own, and ours are one parameter.
        unused: Tensors of no use that old files hold, a regular expression.
        ties: Tensors that repeat another one, a regular expression, and the name of that one.
        prefix: What checkpoints of the bare model leave out in front of names.
        as_is: Linear maps that are [inputs, outputs] in the file too, a regular expression; all others are transposed,
            as `torch.nn.Linear` has them.
        rows: Vectors that are [1, n] in the file, a regular expression.
        by_head: Tensors whose parts lie side by side within each head, a regular expression.
        alternating: Tensors whose parts take turns number by number, a regular expression.
        kept: Tensors of other uses, a regular expression, which we leave alone and write back.
        aliases: Names of old files, regular expressions and what to put instead.
    """

    renames: tuple[tuple[str, str], ...]
    unused: str = ""
    ties: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
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
    """Return a model whose parameters are `tensors`, in their own types or all in `dtype`. Raises as `place`."""
    leaves, structure = jax.tree.flatten(place(config, tensors, table))
    for index, leaf in enumerate(leaves):  # in turn, so that what had to be gathered for `place` is given back at once
        # Copies: an array of a mapped file would change with the file, and a transposed one be copied at every call.
        leaves[index] = jnp.array(leaf, dtype or leaf.dtype)
    return jax.tree.unflatten(structure, leaves)


def place(config: TransformerConfig, tensors: Arrays, table: WeightTable) -> Transformer:
    """Return a model of `config` with the tensors, or views of them, where its parameters are.

    Linear maps, whose parameter is called "weight", are [inputs, outputs] here.

    Raises:
        InputError: Names the first missing, surplus and misshapen tensors, and how many more there are.
    """
    model = abstract_model(config)
    graphdef, state = nnx.split(model)
    shapes: dict[tuple, Any] = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    parts: dict[str, list[tuple]] = {}
    for path in sorted(shapes, key=place_among_fused):
        parts.setdefault(table.name(path), []).append(path)
    names = {name: numbered(name, shapes[paths[0]].shape[0]) for name, paths in parts.items()}
    problems = surplus(tensors, set(chain(*names.values())), table)
    filled: dict[tuple, np.ndarray] = {}
    for name, paths in parts.items():
        wanted = {path: shapes[path].shape for path in paths}
        expected = file_shape(model, name, wanted, table)
        if wrong := unfit(tensors, name, names[name], expected):
            problems.append(wrong)
        else:
            tensor = stacked(name, [tensors[each] for each in names[name]], table)
            filled |= split(turned(tensor, name, paths[0], table), wanted, name, table)
    if problems:
        raise InputError(f"the weights do not fit config.json: {listed(problems)}")
    return nnx.merge(graphdef, traverse_util.unflatten_dict(filled))


def surplus(tensors: Arrays, used: set[str], table: WeightTable) -> list[str]:
    """Return what is wrong with the tensors that are no parameters: those of no known use, and repetitions that differ.

    What repeats a tensor is not read, so that it must be the same, or the answer would silently be another one.
    """
    problems = []
    for name in sorted(tensors.keys() - used):
        repeated = next((source for pattern, source in table.ties if re.fullmatch(pattern, name)), None)
        if repeated is not None and repeated in tensors:
            if not np.array_equal(tensors[name], tensors[repeated]):
                problems.append(f"{name} differs from {repeated}, which it should repeat")
        elif repeated is not None or not re.fullmatch(f"{table.unused}|{table.kept}", name):
            problems.append(f"surplus {name}")
    return problems


def unfit(tensors: Arrays, name: str, each: list[str], expected: tuple[int, ...]) -> str | None:
    """Return why the tensors of one parameter cannot be used, None if they can."""
    if missing := [one for one in each if one not in tensors]:
        experts = f" of {len(missing)} of {len(each)} experts" if "*" in name else ""
        return f"missing {name}{experts}"
    for one in each:
        if tensors[one].shape != expected:
            return f"{one} has shape {tensors[one].shape}, expected {expected}"
        if not jnp.issubdtype(tensors[one].dtype, jnp.floating):
            return f"{one} holds {tensors[one].dtype}, expected floating-point numbers"
    return None


def file_shape(
    model: Transformer, name: str, shapes: dict[tuple, tuple[int, ...]], table: WeightTable
) -> tuple[int, ...]:
    """Return the shape in the file of the tensor that holds the parameters of these shapes (of one of its experts)."""
    wholes = list(shapes.values())
    path = next(iter(shapes))
    if re.fullmatch(table.by_head, name):
        *inputs, heads, _ = wholes[0]
        shape = (*inputs, heads * sum(whole[-1] for whole in wholes))
    elif re.fullmatch(table.alternating, name):
        shape = (*wholes[0][:-1], len(wholes) * wholes[0][-1])
    else:
        matrices = [matrix_shape(whole, owner(model, path), path) for path, whole in shapes.items()]
        shape = (*matrices[0][:-1], sum(matrix[-1] for matrix in matrices))
    if is_turned(name, path, table, len(shape)):
        shape = (*shape[:-2], shape[-1], shape[-2])
    shape = shape[1:] if "*" in name else shape
    return (1, *shape) if re.fullmatch(table.rows, name) else shape


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


def stacked(name: str, tensors: list[np.ndarray], table: WeightTable) -> np.ndarray:
    """Return the tensors of all experts as one, or the only tensor of a name."""
    if "*" in name:
        return np.stack(tensors)
    return tensors[0][0] if re.fullmatch(table.rows, name) else tensors[0]


def turned(tensor: np.ndarray, name: str, path: tuple[Any, ...], table: WeightTable) -> np.ndarray:
    """Return a linear map as the other side has it, [inputs, outputs] or [outputs, inputs]; anything else as it is."""
    return np.swapaxes(tensor, -1, -2) if is_turned(name, path, table, tensor.ndim) else tensor


def is_turned(name: str, path: tuple[Any, ...], table: WeightTable, axes: int) -> bool:
    """Return whether the file holds the transpose of a parameter."""
    return path[-1] == "weight" and axes >= 2 and not re.fullmatch(table.as_is, name)


def owner(model: Transformer, path: tuple[Any, ...]) -> Any:
    """The module that a parameter belongs to."""
    module: Any = model
    for part in path[:-1]:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    return module


def as_matrix(array: np.ndarray, module: Any, path: tuple[Any, ...]) -> np.ndarray:
    """Return a parameter of a linear map without the axes that its inputs and outputs are split into."""
    return array.reshape(matrix_shape(array.shape, module, path))


def matrix_shape(shape: tuple[int, ...], module: Any, path: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the shape of `as_matrix`; that of any other parameter as it is."""
    if not isinstance(module, Linear):
        return shape
    inputs = module.inputs if path[-1] == "weight" else ()
    experts = shape[: len(shape) - len(inputs) - len(module.outputs)]
    return (*experts, *[prod(inputs)] * bool(inputs), prod(module.outputs))


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
) -> dict[tuple, np.ndarray]:
    """Return the parameters of these shapes, which lie side by side along the last axis of a tensor of their size.

    Or within each head, so that the axis is heads x parts x width, or taking turns, so that it is width x parts.
    """
    if len(shapes) == 1:
        ((path, shape),) = shapes.items()
        return {path: tensor.reshape(shape)}
    if re.fullmatch(table.by_head, name):
        widths = [shape[-1] for shape in shapes.values()]
        *inputs, heads, _ = next(iter(shapes.values()))
        pieces = np.split(tensor.reshape(*inputs, heads, -1), np.cumsum(widths)[:-1], axis=-1)
    elif re.fullmatch(table.alternating, name):
        pieces = np.moveaxis(tensor.reshape(*next(iter(shapes.values())), len(shapes)), -1, 0)
    else:
        outputs = [prod(shape[tensor.ndim - 1 :]) for shape in shapes.values()]
        pieces = np.split(tensor, np.cumsum(outputs)[:-1], axis=-1)
    return {path: piece.reshape(shape) for (path, shape), piece in zip(shapes.items(), pieces, strict=True)}
