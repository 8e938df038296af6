"""What a processor wants and the mathematics does not: kernels, layouts of caches, options of the compiler.

`cpu` and `gpu` say why each of theirs is there; `default` is plain XLA, which TPUs use.
"""

import contextlib
from collections.abc import Generator
from contextvars import ContextVar
from typing import Literal

import jax

from jaxformer.backends import cpu
from jaxformer.backends.cpu import PackedKVCache
from jaxformer.backends.default import KVCache
from jaxformer.errors import InputError

__all__ = ["KVCache", "PackedKVCache", "kv_cache", "pack", "using"]

CHOSEN: ContextVar[Literal["cpu", "default"] | None] = ContextVar("backend", default=None)


@contextlib.contextmanager
def using(name: Literal["cpu", "default"]) -> Generator[None]:
    """Lay caches out and mix experts as the named backend does, in programs that are made meanwhile.

    A cache that is sharded over several devices wants "default", where rows and heads are axes of their own. Raises
    InputError for another name.
    """
    if name not in ("cpu", "default"):
        raise InputError(f"there is no backend {name!r}: choose cpu or default")
    token = CHOSEN.set(name)
    try:
        yield
    finally:
        CHOSEN.reset(token)


def layout() -> Literal["cpu", "default"]:
    """Return the name of the layout of caches, which programs depend on."""
    return "cpu" if is_cpu() else "default"


def is_cpu() -> bool:
    """Return whether layouts are those of CPUs."""
    return (CHOSEN.get() or jax.default_backend()) == "cpu"


def kv_cache(key: jax.Array, value: jax.Array) -> KVCache | PackedKVCache:
    """Return a full cache of keys and values [B, S, K, H], laid out as this backend reads it fastest."""
    return PackedKVCache.of(key, value) if is_cpu() else KVCache.of(key, value)


def pack(x: jax.Array) -> jax.Array:
    """Return states [B, S, R] as this backend reads them fastest, see `cpu.pack`."""
    return cpu.pack(x) if is_cpu() else x
