"""How searches are compiled."""

from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp

# XLA gives matrix products on CPUs to YNNPACK, whose kernels for a few rows, beams or a small batch, can take 1.8 times
# as long as those of Eigen, which it falls back to without. Eigen has none for integers: without YNNPACK, products of
# these are loops, which take three times as long for one row and far longer for more.
FEW_ROWS = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Compiled:
    """`jax.jit(function, **options)` for the few rows of a search, where the compiler knows how, see FEW_ROWS.

    It is asked at the first call: to import a package must not choose the backend.
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        self.function, self.options = function, options
        self.__doc__ = function.__doc__

    @cached_property
    def program(self) -> Any:
        """The function under `jax.jit`, for weights that are no integers."""
        return jax.jit(self.function, compiler_options=for_few_rows(), **self.options)

    @cached_property
    def program_of_integers(self) -> Any:
        """The function under `jax.jit`, for weights of 8 bits."""
        return jax.jit(self.function, **self.options)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """What the function returns."""
        integers = any(getattr(leaf, "dtype", None) == jnp.int8 for leaf in jax.tree.leaves((arguments, keywords)))
        return (self.program_of_integers if integers else self.program)(*arguments, **keywords)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Compiled]:
    """A decorator: `Compiled` with options of `jax.jit`."""
    return lambda function: Compiled(function, **options)


@cache
def for_few_rows() -> dict[str, str] | None:
    """FEW_ROWS on CPUs, unless this version of XLA does not know it."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=FEW_ROWS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return FEW_ROWS
