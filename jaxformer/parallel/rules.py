"""The table of letters and mesh axes, and what follows from it for an array."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
from jax.sharding import AxisType, PartitionSpec

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """Axes of a mesh for each letter, in the order in which they are taken; one serves a single axis of an array.

    Other letters stay whole. H, the width of a head, is among them: the output projection merges it with N.

    Attributes:
        B: Rows of the batch.
        T: Positions of activations.
        D: Width of the model, in parameters.
        N: Query heads.
        K: Key-value heads.
        F: Inner width.
        V: Vocabulary.
        E: Experts.
    """

    B: Axes = ("data", "fsdp", "expert")
    T: Axes = ("context",)
    D: Axes = ("fsdp",)
    N: Axes = ("tensor",)
    K: Axes = ("tensor",)
    F: Axes = ("tensor",)
    V: Axes = ("tensor",)
    E: Axes = ("expert", "tensor")


RULES = Rules()
rules_context = jax.make_user_context(RULES)


def current_rules() -> Rules:
    """Return the rules of the innermost `using`."""
    return rules_context.value


def partition(letters: str, shape: Sequence[int], sizes: Mapping[str, int], rules: Rules) -> PartitionSpec:
    """Return how an array is divided. What a mesh axis does not divide evenly stays whole along it.

    Args:
        letters: A letter for each axis of the array.
        shape: Its shape.
        sizes: Sizes of the axes of the mesh.
        rules: Mesh axes of each letter.
    """
    assert len(letters) == len(shape), f"{letters} for an array of shape {tuple(shape)}"
    taken: set[str] = set()
    axes: list[tuple[str, ...] | None] = []
    for letter, size in zip(letters, shape, strict=True):
        chosen: list[str] = []
        for axis in getattr(rules, letter, ()):
            if axis not in taken and sizes.get(axis, 1) > 1 and size % sizes[axis] == 0:
                chosen.append(axis)
                size //= sizes[axis]
        taken.update(chosen)
        axes.append(tuple(chosen) or None)
    return PartitionSpec(*axes)


def mesh_axes(spec: PartitionSpec, axis: int) -> tuple[str, ...]:
    """Return the axes of the mesh along which an axis of an array lies."""
    found = spec[axis]
    return (found,) if isinstance(found, str) else tuple(found or ())


def divided_by(axis: str) -> int:
    """Return the size of an axis of the current mesh; 1 where there is no mesh, or its axes are taken by hand."""
    return jax.sharding.get_abstract_mesh().shape[axis] if divided() else 1


def divided() -> bool:
    """Return whether there is a mesh of several devices here, whose axes are not taken by hand."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and AxisType.Manual not in mesh.axis_types


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Return the array, divided over the current mesh as its letters say; as it is where there is none.

    Args:
        x: Any array, at the points of a model where the compiler is told: what lies between follows.
        letters: A letter for each axis, "_" for one that stays whole.
    """
    if not divided():
        return x
    sizes = jax.sharding.get_abstract_mesh().shape
    return jax.lax.with_sharding_constraint(x, partition(letters, x.shape, sizes, current_rules()))
