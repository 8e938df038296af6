"""Weights of checkpoints into our models and back, strictly: every tensor is used, every parameter is filled."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.sharding import Mesh, NamedSharding

from jaxformer import parallel
from jaxformer.config import TransformerConfig
from jaxformer.errors import InputError, listed
from jaxformer.layers import Linear, LinearMap
from jaxformer.model import Transformer, abstract_model
from jaxformer.pretrained.files import Arrays
from jaxformer.pretrained.layout import Layout, StoredTensor

ParameterPath = tuple[Any, ...]  # names, and the numbers of blocks
LEAVES = {"weight": "weight", "bias": "bias", "scale": "weight"}  # the parameters of a module, and their names there


class Row(NamedTuple):
    """Says which tensor of a checkpoint contains which parameters, for reading and for writing.

    Attributes:
        ours: A module, "decoder.blocks.#.attention.query" with "#" for the number of the block, of which weight, bias
            and scale are meant; or a single parameter, "embedding.embedding". Several that share a tensor: in their
            order in it.
        theirs: The name of the module or the tensor there. "#" is the number of the block. "*" is the number of an
            expert: each has a tensor there, where we have one parameter for all.
        layout: The layout of the tensor, see `jaxformer.pretrained.layout`. None: linear maps are [outputs, inputs], as
            in `torch.nn.Linear`, one after the other where they share a tensor; everything else has our axes.
    """

    ours: str | tuple[str, ...]
    theirs: str
    layout: str | None = None


def nested(ours: str, theirs: str, *rows: Row) -> tuple[Row, ...]:
    """Return rows of the parts of a module under its names in the model.

    Args:
        ours: Our name of the module.
        theirs: Its name in the checkpoint.
        rows: Rows of its parts.
    """
    return tuple(
        Row(tuple(f"{ours}.{name}" for name in names_in(row)), f"{theirs}.{row.theirs}", row.layout) for row in rows
    )


def names_in(row: Row) -> tuple[str, ...]:
    """Return all of our names in a row."""
    return (row.ours,) if isinstance(row.ours, str) else row.ours


@dataclass(frozen=True)
class WeightTable:
    """Describes the checkpoints of a family, for reading and for writing.

    Attributes:
        rows: Which tensor contains which parameters.
        unused: Tensors of no use in old files, a regular expression.
        ties: Tensors that repeat another one: a regular expression, and the name of that other one.
        prefix: What checkpoints of the bare model leave out at the start of names.
        kept: Tensors of other uses, a regular expression: they are not read, and written back.
        aliases: Names in old files, regular expressions, and what to put instead.
        buffers: Tensors that transformers does not train, a regular expression.
    """

    rows: tuple[Row, ...]
    unused: str = ""
    ties: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    kept: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    buffers: str = ""

    @cached_property
    def places(self) -> dict[str, tuple[Row, int]]:
        """The row of each of our names, and the place of the name in it."""
        return {name: (row, place) for row in self.rows for place, name in enumerate(names_in(row))}

    def find(self, path: ParameterPath) -> tuple[str, Row, int] | None:
        """Return the name of the tensor that contains a parameter, its row and the place of the parameter in it.

        None: the checkpoints of the family have no such parameter.
        """
        names = ["#" if isinstance(part, int) else str(part) for part in path]
        found, leaf = self.places.get(".".join(names)), ""
        if found is None and names[-1] in LEAVES:
            found, leaf = self.places.get(".".join(names[:-1])), f".{LEAVES[names[-1]]}"
        if found is None:
            return None
        block = next((str(part) for part in path if isinstance(part, int)), "")
        return found[0].theirs.replace("#", block) + leaf, *found

    def name(self, path: ParameterPath) -> str | None:
        """Return the name of the tensor that contains a parameter, None if the family has no such parameter."""
        found = self.find(path)
        return found and found[0]


def stored_tensors(model: Transformer, table: WeightTable) -> Iterator[StoredTensor]:
    """Yield the tensors of a model's checkpoint.

    Args:
        model: The model, or its abstract form.
        table: The family of the checkpoint.

    Raises:
        InputError: The family has no tensor for a parameter, or weights are laid out for decoding.
    """
    variables: dict[ParameterPath, Any] = dict(nnx.to_flat_state(nnx.state(model)))
    members: dict[str, list[tuple[int, ParameterPath, Row]]] = {}
    for path in variables:
        found = table.find(path)
        if found is None:
            raise InputError(f"checkpoints of this family have no tensor for {'.'.join(map(str, path))}")
        name, row, place = found
        members.setdefault(name, []).append((place, path, row))
    for name, parts in members.items():
        paths = tuple(path for _, path, _ in sorted(parts, key=lambda part: part[0]))
        first, each = variables[paths[0]], int("*" in name)
        yield StoredTensor(
            name,
            first.shape[0] if each else None,
            paths,
            tuple(variables[path].shape[each:] for path in paths),
            layout_of(owner(model, paths[0]), paths[0][-1], first.axes[each:], parts[0][-1].layout),
        )


def owner(model: Transformer, path: ParameterPath) -> Any:
    """Return the module that a parameter belongs to."""
    module: Any = model
    for part in path[:-1]:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    return module


def layout_of(module: Any, leaf: str | int, axes: str, pattern: str | None) -> Layout:
    """Return the layout of a parameter.

    Args:
        module: The module that it belongs to.
        leaf: Its name there.
        axes: The letters of its axes, without the experts where each has a tensor.
        pattern: What its row says.
    """
    if isinstance(module, LinearMap) and not isinstance(module, Linear):
        raise InputError("weights laid out for decoding are not written: save the model that they were made of")
    if pattern is not None:
        return Layout.parse(pattern, axes)
    if isinstance(module, Linear):
        return Layout.linear(len(axes), len(module.inputs) if leaf == "weight" else 0, len(module.outputs))
    return Layout.plain(len(axes))


def build(
    config: TransformerConfig, tensors: Arrays, table: WeightTable, dtype: Any = None, mesh: Mesh | None = None
) -> Transformer:
    """Return a model whose parameters are `tensors`, in their own types or all in `dtype`. Raises as `place`.

    Args:
        config: The configuration.
        tensors: The tensors of the checkpoint, which may be views of mapped files.
        table: Where they are in the model.
        dtype: The type of the parameters. None: that of the tensors.
        mesh: Devices that the parameters are divided over. None: the default device has them all.
    """
    model = place(config, tensors, table)
    where = None if mesh is None else parallel.shardings(model, mesh, parallel.current_rules())
    shardings = jax.tree.leaves(where)
    leaves, structure = jax.tree.flatten(model)
    del model
    for index, leaf in enumerate(leaves):  # one at a time, so that experts stacked by `place` are freed early
        # Copies: an array of a mapped file would change with the file, and a transposed one be copied at every call.
        leaves[index] = copied(leaf, dtype or leaf.dtype, shardings[index] if shardings else None)
    return jax.tree.unflatten(structure, leaves)


def copied(tensor: np.ndarray, dtype: Any, sharding: NamedSharding | None) -> jax.Array:
    """Return a copy of a tensor, of which each device reads its part where a sharding divides it."""
    if sharding is None:
        return jnp.array(tensor, dtype)
    return jax.make_array_from_callback(
        tensor.shape, sharding, lambda index: np.array(tensor[index], jax.dtypes.canonicalize_dtype(dtype))
    )


def place(config: TransformerConfig, tensors: Arrays, table: WeightTable) -> Transformer:
    """Return a model of `config` with the tensors, or views of them, where its parameters are.

    Raises:
        InputError: Names the first missing, surplus and misshapen tensors, and how many more there are.
    """
    model = abstract_model(config)
    expected = list(stored_tensors(model, table))
    problems = surplus(tensors, set(chain(*(one.names for one in expected))), table)
    problems += [wrong for one in expected if (wrong := unfit(tensors, one))]
    if problems:
        raise InputError(f"the weights do not fit config.json: {listed(problems)}")
    filled: dict[ParameterPath, np.ndarray] = {}
    for one in expected:
        filled |= zip(one.paths, one.read(tensors), strict=True)
    return nnx.merge(nnx.graphdef(model), traverse_util.unflatten_dict(filled))


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


def unfit(tensors: Arrays, expected: StoredTensor) -> str | None:
    """Return why the tensors of some parameters cannot be used, None if they can."""
    names, shape = expected.names, expected.shape
    if missing := [name for name in names if name not in tensors]:
        experts = "" if expected.experts is None else f" of {len(missing)} of {expected.experts} experts"
        return f"missing {expected.name}{experts}"
    for name in names:
        if tensors[name].shape != shape:
            return f"{name} has shape {tensors[name].shape}, expected {shape}"
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            return f"{name} holds {tensors[name].dtype}, expected floating-point numbers"
    return None


def tensors_of(model: Transformer, table: WeightTable) -> Arrays:
    """Return the parameters of a model as the tensors of a checkpoint. Raises as `stored_tensors`."""
    values = {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(model))}
    tensors: Arrays = {}
    for one in stored_tensors(model, table):
        tensors |= one.write([np.asarray(values[path]) for path in one.paths])
    return tensors


def named(tensors: Arrays, table: WeightTable) -> Arrays:
    """Return the tensors of a file under the names that they have today in a whole model."""
    if not any(name.startswith(table.prefix) for name in tensors):
        tensors = {table.prefix + name: tensor for name, tensor in tensors.items()}
    for pattern, replacement in table.aliases:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    return tensors
