"""Arrangements of devices with named axes."""

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxformer.errors import InputError
from jaxformer.parallel.rules import RULES, Rules, rules_context

# From the slowest network to the fastest: what is farthest to the right talks most.
AXES = {
    "data": "rows of the batch; parameters are whole on each device",
    "fsdp": "rows of the batch; parameters, gradients and optimizer are divided",
    "expert": "rows of the batch outside, experts inside mixtures of experts",
    "context": "positions of long sequences",
    "tensor": "heads, inner width and vocabulary",
}


def make_mesh(spec: str, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of a description such as "data=2,fsdp=4" or "fsdp=-1".

    It has all of `AXES`; those that are not named have size 1.

    Args:
        spec: Sizes of axes; one may be -1, for all devices that are left.
        devices: The devices. None: all of all processes.

    Raises:
        InputError: The description cannot be read, or asks for another number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dict.fromkeys(AXES, 1) | read_sizes(spec)
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise InputError(f"mesh {spec!r}: only one axis may be -1, not {' and '.join(open_axes)}")
    named = math.prod(size for size in sizes.values() if size != -1)
    for name in open_axes:
        if len(devices) % named:
            raise InputError(f"mesh {spec!r}: {named} does not divide the {len(devices)} devices")
        sizes[name] = len(devices) // named
    if math.prod(sizes.values()) != len(devices):
        raise InputError(f"mesh {spec!r} is for {math.prod(sizes.values())} devices, and there are {len(devices)}")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def read_sizes(spec: str) -> dict[str, int]:
    """Return the sizes that a description names. Raises InputError where it cannot be read."""
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        size = int(number) if number.lstrip("-").isdecimal() else 0
        if name not in AXES or not equals or (size < 1 and size != -1):
            raise InputError(f"mesh {spec!r}: {part.strip()!r} must be AXIS=SIZE, AXIS one of {', '.join(AXES)}")
        if name in sizes:
            raise InputError(f"mesh {spec!r} names {name} twice")
        sizes[name] = size
    return sizes


@contextmanager
def using(mesh: Mesh | None, rules: Rules = RULES) -> Generator[None]:
    """Divide what is computed inside over a mesh; programs compiled elsewhere are compiled anew.

    Args:
        mesh: The mesh. None: nothing is divided.
        rules: Which axes of arrays lie along which axes of the mesh.
    """
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh), rules_context(rules):
        yield


def current_mesh() -> Mesh | None:
    """Return the mesh of the innermost `using`; None outside of one."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def mesh_of(leaves: Iterable[Any]) -> Mesh | None:
    """Return the mesh that the first array among some leaves is divided over; None for one that is on one device."""
    for leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
            return sharding.mesh
        if isinstance(leaf, jax.Array):
            return None
    return None
