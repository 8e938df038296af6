"""Compiled programs: how they are made, and which of them a process keeps."""

import contextlib
import threading
from collections.abc import Callable, Hashable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import backends, parallel
from jaxformer.backends.cpu import few_rows_options
from jaxformer.generation.arrays import is_traced

MOST_PROGRAMS = 64  # a search of a tiny BART takes some 35 MB and 520 memory maps, one of GPT-2 small 75 MB and 600
MOST_TRACES = 4096  # of inner functions: what most of JAX's own caches are bounded to


class Signature:
    """Key of a compiled program: the structure of a pytree, and the shape and type of its leaves.

    What else selects one, such as a sharding, JAX sees to: programs that differ in this alone are kept as one.
    """

    __slots__ = ("hashed", "kinds", "structure")

    def __init__(self, structure: Any, leaves: list[Any]):
        self.structure, self.kinds = structure, tuple(map(kind_of, leaves))
        self.hashed = hash((self.structure, self.kinds))

    def __hash__(self) -> int:
        return self.hashed

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Signature):
            return NotImplemented
        return self.hashed == other.hashed and self.kinds == other.kinds and self.structure == other.structure


def kind_of(leaf: Any) -> Hashable:
    """Return what a program depends on in an array, a tracer or a Python number."""
    if type(leaf) is np.ndarray or isinstance(leaf, np.generic):
        return leaf.shape, leaf.dtype
    return getattr(leaf, "aval", type(leaf))


class Flat:
    """A pytree as its leaves, with its signature: to be made once where many calls are given the same."""

    __slots__ = ("leaves", "signature")

    def __init__(self, tree: Any):
        self.leaves, structure = jax.tree.flatten(tree)
        self.signature = Signature(structure, self.leaves)

    @property
    def structure(self) -> Any:
        """The pytree without its leaves."""
        return self.signature.structure

    @property
    def tree(self) -> Any:
        """The pytree."""
        return jax.tree.unflatten(self.structure, self.leaves)


class Program:
    """One compiled program, how many threads run it now, and the memory maps that it has taken."""

    __slots__ = ("maps", "run", "running")

    def __init__(self, run: Callable[..., Any]):
        self.run, self.running, self.maps = run, 0, 0


class Programs:
    """The programs of this process by signature, the least recently used first: see `make_room`.

    What JAX keeps of a program, in several caches, lives as long as the function that it was made of. So each has a
    function of its own, and goes with it. made: how many have been compiled so far.
    """

    def __init__(self, most: int):
        self.most, self.made, self.lock = most, 0, threading.Lock()
        self.kept: dict[tuple[Any, ...], Program] = {}

    def call(self, key: tuple[Any, ...], function: "Compiled", leaves: list[list[Any]]) -> Any:
        """Return what the program `key` of the function returns; it is compiled if it is not there."""
        with self.lock:
            program = self.kept.pop(key, None)
            if program is not None:
                self.kept[key] = program  # now the last
                program.running += 1
        if program is None:
            return self.call_first(key, function.program(key, leaves), leaves)
        try:
            return program.run(*leaves)
        finally:
            with self.lock:
                program.running -= 1

    def call_first(self, key: tuple[Any, ...], run: Callable[..., Any], leaves: list[list[Any]]) -> Any:
        """Compile a program by calling it. Those that could not be compiled are not kept."""
        maps = maps_in_use()
        with self.lock:
            dropped = self.make_room(maps)
            program = self.kept.setdefault(key, Program(run))  # another thread may have been faster
            program.running += 1
            self.made += 1
        if dropped:
            dropped.clear()  # outside of the lock: it may take its time
            forget_traces()
            maps = maps_in_use()
        try:
            result = program.run(*leaves)
            program.maps = max(program.maps, maps_in_use() - maps)
        except BaseException:
            with self.lock:
                self.kept.pop(key, None)
            raise
        finally:
            with self.lock:
                program.running -= 1
        return result

    def make_room(self, maps: int) -> list[Program]:
        """Take out programs until there is room for another, and return them.

        There are at most `most` programs. Linux allows a process a limited number of memory maps: programs take no more
        than half of it, and where `maps` in use, by whatever, are three quarters, as few as possible. The least
        recently used ones go; those that run stay.
        """
        limit, dropped = most_maps(), []
        ours = sum(program.maps for program in self.kept.values())
        for key, program in list(self.kept.items()):
            if len(self.kept) < self.most and ours <= limit / 2 and maps <= limit * 3 / 4:
                break
            if not program.running:
                ours, maps = ours - program.maps, maps - program.maps
                dropped.append(self.kept.pop(key))
        return dropped


PROGRAMS = Programs(MOST_PROGRAMS)


class Compiled:
    """`jax.jit(function)`, of whose programs PROGRAMS keeps the most recent ones.

    Positional arguments are pytrees, which may be given as `Flat`; those given by name are static.

    Args:
        donated: The numbers of arguments whose memory a program may take over.
        few_rows: Compiled for the few rows of a search, where the compiler knows how, see `backends.cpu`. It is asked
            at the first call: an import must not choose the backend.
    """

    def __init__(self, function: Callable[..., Any], *, donated: tuple[int, ...] = (), few_rows: bool = True):
        self.function, self.donated, self.few_rows = function, donated, few_rows
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        """Return what the function returns. Inside a transformation of JAX it becomes part of that program.

        Gradients do not flow through it there.
        """
        flat = [argument if type(argument) is Flat else Flat(argument) for argument in arguments]
        if is_traced([each.leaves for each in flat]):
            # There is no reverse derivative of a loop whose length is not known.
            return self.function(*(jax.lax.stop_gradient(each.tree) for each in flat), **static)
        key = (self, backends.layout(), *static.items(), *[each.signature for each in flat])
        leaves = [each.leaves for each in flat]
        with parallel.using(None if parallel.current_mesh() else parallel.mesh_of(chain.from_iterable(leaves))):
            return PROGRAMS.call(key, self, leaves)

    def program(self, key: tuple[Any, ...], leaves: list[list[Any]]) -> Callable[..., Any]:
        """Return a new function under `jax.jit` for arguments of the signatures in the key: it takes their leaves."""
        structures = [part.structure for part in key if isinstance(part, Signature)]
        static = dict(part for part in key[2:] if not isinstance(part, Signature))

        def function(*leaves: list[Any]) -> Any:
            return self.function(*map(jax.tree.unflatten, structures, leaves), **static)

        function.__name__ = function.__qualname__ = self.function.__name__  # the program's in profiles and caches
        integers = any(getattr(leaf, "dtype", None) == jnp.int8 for leaf in chain.from_iterable(leaves))
        options = few_rows_options() if self.few_rows and not integers else None
        return jax.jit(function, donate_argnums=self.donated, compiler_options=options)

    @property
    def kept(self) -> int:
        """How many of its programs are kept."""
        with PROGRAMS.lock:
            return sum(key[0] is self for key in PROGRAMS.kept)

    def clear(self) -> None:
        """Clear its programs."""
        with PROGRAMS.lock:
            dropped = [PROGRAMS.kept.pop(key) for key in list(PROGRAMS.kept) if key[0] is self]
        dropped.clear()


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Compiled]:
    """Return a decorator: `Compiled` with these options."""
    return lambda function: Compiled(function, **options)


@cache
def most_maps() -> float:
    """Return how many memory maps this process may have: infinitely many, where no system says."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return float("inf")


def maps_in_use() -> int:
    """Return how many memory maps this process has, 0 where no system says."""
    try:
        with Path("/proc/self/maps").open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**16), b""))
    except OSError:
        return 0


def forget_traces() -> None:
    """Clear the one cache of JAX that has no bound, if it has grown large.

    It keeps each inner function, such as `jnp.where`, as traced for each shape: a program of new shapes adds some two
    hundred, 3 MB in all. Compiled programs do not need them.
    """
    with contextlib.suppress(ImportError, AttributeError):  # JAX has no public name for it
        from jax._src.interpreters.partial_eval import trace_to_jaxpr

        if trace_to_jaxpr.cache_info().currsize > MOST_TRACES:
            trace_to_jaxpr.cache_clear()
