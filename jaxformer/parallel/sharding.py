"""Trees of arrays on a mesh: parameters, optimizer states, batches."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer.parallel.mesh import current_mesh
from jaxformer.parallel.rules import RULES, Rules, current_rules, partition

Letters = Mapping[tuple[str, ...], str]


def letters_of(model: nnx.Module) -> Letters:
    """Return the letters of the axes of each variable of a model, by its path of names and numbers, as texts."""
    return {
        tuple(map(str, path)): variable.axes
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if "axes" in variable.get_metadata()
    }


def shardings(tree: Any, mesh: Mesh, rules: Rules = RULES, letters: Letters | None = None) -> Any:
    """Return where each array of a tree lies on a mesh.

    Vectors stay whole, and so does what has no letters: both are small.

    Args:
        tree: A module, whose variables have letters; or any tree of arrays, or of their shapes and types.
        mesh: The mesh.
        rules: Which letters lie along which axes of the mesh.
        letters: Those of parameters by their paths, for trees whose leaves do not have them. A leaf has those of the
            parameter at the end of its path, so that an optimizer's state is divided as its parameters are.
    """
    known = letters_of(tree) if letters is None and isinstance(tree, nnx.Module) else (letters or {})

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value").split("/"))
        found = next((known[names[start:]] for start in range(len(names)) if names[start:] in known), "")
        fits = len(found) == len(leaf.shape) > 1
        spec = partition(found, leaf.shape, mesh.shape, rules) if fits else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def shard(tree: Any, mesh: Mesh, rules: Rules = RULES, letters: Letters | None = None) -> Any:
    """Return a tree of arrays divided over a mesh; arguments as of `shardings`."""
    return jax.tree.map(put, tree, shardings(tree, mesh, rules, letters))


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Return an array where a sharding says; of a NumPy array each device receives its part alone."""
    if isinstance(leaf, jax.Array):
        return jax.device_put(leaf, sharding)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def shard_batch(batch: Any, mesh: Mesh | None = None) -> Any:
    """Return a batch with its rows divided over a mesh, and its positions where that has an axis for them.

    Args:
        batch: Arrays [B, ...] or [B, T]: those of this process, which together with those of all others are the batch.
        mesh: The mesh. None: that of the innermost `using`; outside of one, the batch as it is.
    """
    mesh = mesh or current_mesh()
    if mesh is None:
        return batch

    def divided(rows: np.ndarray) -> jax.Array:
        count = jax.process_count()
        shape = (len(rows) * count, *rows.shape[1:])
        letters = ("B" + "T" * (rows.ndim == 2)).ljust(rows.ndim, "_")
        sharding = NamedSharding(mesh, partition(letters, shape, mesh.shape, current_rules()))
        if count == 1:
            return jax.device_put(rows, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(rows), shape)

    return jax.tree.map(divided, batch)
