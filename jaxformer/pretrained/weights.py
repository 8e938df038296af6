"""Weights from a checkpoint into our models, strictly: every tensor is used, every parameter is filled."""

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from jaxformer.config import TransformerConfig
from jaxformer.errors import InputError
from jaxformer.layers import Linear
from jaxformer.model import Transformer
from jaxformer.pretrained.files import Arrays

FUSED = ("query", "key", "value", "gate", "up")  # the order in which checkpoints lay linear maps side by side


@dataclass(frozen=True)
class WeightTable:
    """Where checkpoints of a family keep what we call "decoder.blocks.0.attention.query.weight" and so on.

    renames: regular expressions on our names and what to put instead, applied in order. Parameters that end up with
    the same name are parts of one tensor, side by side along its outputs, in the order of `FUSED`. ignorable: tensors
    that may stay unused, a regular expression. prefix: what checkpoints of the bare model leave out in front of names.
    as_is: linear maps that are [inputs, outputs] in the file too, a regular expression; all others are transposed, as
    `torch.nn.Linear` has them. rows: vectors that are [1, n] in the file, a regular expression. by_head: tensors whose
    parts lie side by side within each head, a regular expression. kept: tensors of other uses, which we leave alone and
    write back. aliases: names of old files, regular expressions and what to put instead.
    """

    renames: tuple[tuple[str, str], ...]
    ignorable: str
    prefix: str
    as_is: str = ""
    rows: str = ""
    by_head: str = ""
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
    # Copies: an array of a mapped file would change with the file, and a transposed one be copied at every call.
    return jax.tree.map(lambda array: jnp.array(array, dtype or array.dtype), place(config, tensors, table))


def place(config: TransformerConfig, tensors: Arrays, table: WeightTable) -> Transformer:
    """The tensors, or views of them, where the parameters of a model of `config` are.

    Linear maps, whose parameter is called "weight", are [inputs, outputs] here. Raises InputError listing all missing,
    surplus and misshapen tensors at once.
    """
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    shapes: dict[tuple, Any] = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    parts: dict[str, list[tuple]] = {}
    for path in shapes:
        parts.setdefault(table.name(path), []).append(path)
    known = f"{table.ignorable}|{table.kept}"
    surplus = [name for name in tensors.keys() - parts.keys() if not re.fullmatch(known, name)]
    problems = [f"surplus {name}" for name in sorted(surplus)]
    filled: dict[tuple, np.ndarray] = {}
    for name, paths in parts.items():
        if name not in tensors:
            problems.append(f"missing {name}")
            continue
        whole = {path: shapes[path].shape for path in sorted(paths, key=place_among_fused)}
        transposed = paths[0][-1] == "weight" and not re.fullmatch(table.as_is, name)
        found = split(tensors[name].T if transposed else tensors[name], whole, bool(re.fullmatch(table.by_head, name)))
        if found is None:
            wanted = " + ".join(map(str, whole.values()))
            problems.append(f"{name} has shape {tensors[name].shape}, which does not fit {wanted}")
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
            tensor = np.stack(arrays, axis=-2)
            tensor = tensor.reshape(*tensor.shape[:-3], -1)
        else:
            pieces = [as_matrix(array, owner(model, path)) for array, path in zip(arrays, paths, strict=True)]
            tensor = np.concatenate(pieces, axis=-1)
        if paths[0][-1] == "weight" and not re.fullmatch(table.as_is, name):
            tensor = tensor.T
        tensors[name] = np.ascontiguousarray(tensor[None] if re.fullmatch(table.rows, name) else tensor)
    return tensors


def owner(model: Transformer, path: tuple[Any, ...]) -> Any:
    """The module that a parameter belongs to."""
    module: Any = model
    for part in path[:-1]:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    return module


def as_matrix(array: np.ndarray, module: Any) -> np.ndarray:
    """A parameter of a linear map without the axes that its inputs and outputs are split into; any other as it is."""
    if not isinstance(module, Linear):
        return array
    return array.reshape(prod(module.inputs), -1) if array.ndim > len(module.outputs) else array.reshape(-1)


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
    tensor: np.ndarray, shapes: dict[tuple, tuple[int, ...]], by_head: bool = False
) -> dict[tuple, np.ndarray] | None:
    """The parameters of these shapes that lie side by side along the last axis of a tensor; None if they do not.

    by_head: within each head, so that the axis is heads x parts x width.
    """
    if len(shapes) == 1:
        ((path, shape),) = shapes.items()
        return {path: tensor.reshape(shape)} if same_matrix(tensor.shape, shape) else None
    if by_head:
        *inputs, heads, width = next(iter(shapes.values()))
        if (*inputs, heads * len(shapes) * width) != tensor.shape or len(set(shapes.values())) > 1:
            return None
        pieces = np.moveaxis(tensor.reshape(*inputs, heads, len(shapes), width), -2, 0)
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
