"""Measure which kernel multiplies few rows faster on this processor, once, and keep the answer in a file.

The loop over outputs of `backends.cpu` reaches 87 % of the memory's speed on an AMD processor with AVX2, and 52 % on an
Intel one with AVX512, where XLA's own products are faster. Kernels round differently, so the choice is remembered: the
answers of a machine do not change from run to run. The variable JAXFORMER_FEW_ROWS of the environment replaces the
measurement, 0 by XLA's own products alone.
"""

import json
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from jaxformer import schema
from jaxformer.errors import InputError
from jaxformer.machine import cache_folder

MOST = 4  # rows; the loop has never been faster for more
VARIABLE = "JAXFORMER_FEW_ROWS"
WIDTH, LAYERS = 512, 12  # of feed-forward layers, 4 * WIDTH inside: 100 MB in float32, more than most caches hold
ROUNDS = 9
SLOWER = 1.05  # a loop that takes so much longer is not used; where both are alike, noise must not decide
# What /proc/cpuinfo says of a processor, the latter three on ARM.
ABOUT = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU variant", "CPU part")
Product = Callable[[jax.Array, jax.Array], jax.Array]
READ: dict[tuple[Path | None, str, str], int] = {}  # answers that this process has read or measured
READING = threading.Lock()  # one measurement at a time: two would disturb each other


def few_rows(dtype: jnp.dtype, loop: Product, plain: Product, options: dict[str, str] | None) -> int:
    """Return for up to how many rows the loop is faster: 0 to `MOST`, on this machine always the same.

    Args:
        dtype: Type of the numbers.
        loop: Product of rows [1, R, I] and transposed weights [1, O, I].
        plain: Product of rows [R, I] and a weight [I, O].
        options: Options of the compiler in programs of few rows.

    Raises:
        InputError: JAXFORMER_FEW_ROWS is no number from 0 to `MOST`.
    """
    fixed = os.environ.get(VARIABLE)
    if fixed is not None:
        if fixed not in map(str, range(MOST + 1)):
            raise InputError(f"{VARIABLE}={fixed!r} must be a number from 0 to {MOST}: leave it out to measure")
        return int(fixed)
    return remembered(jnp.dtype(dtype).name, lambda: measure(jnp.dtype(dtype), loop, plain, options))


def remembered(dtype: str, measured: Callable[[], int]) -> int:
    """Return what the file has for this processor; measure and write it where it has nothing."""
    path, processor = file(), processor_name()
    with READING:
        if (path, processor, dtype) in READ:
            return READ[path, processor, dtype]
        rows = read(path).get(processor, {}).get(dtype)
        if rows is None:
            rows = measured()
            known = read(path)
            rows = known.get(processor, {}).get(dtype, rows)  # keep the answer that another process has written
            write(path, known | {processor: known.get(processor, {}) | {dtype: rows}})
        READ[path, processor, dtype] = rows
        return rows


def measure(dtype: jnp.dtype, loop: Product, plain: Product, options: dict[str, str] | None) -> int:
    """Return for up to how many rows the loop is faster than the plain product, by trying both.

    Each is tried in a program of many layers, as a model is. Products that are called one by one differ by a third from
    one moment to the next, and by another amount than in a model. The median of the ratios of neighbouring calls also
    holds while other programs keep the processor busy.
    """
    plainly = (jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False))
    with ExitStack() as stack:  # also while something else is traced or debugged
        stack.enter_context(jax.ensure_compile_time_eval())
        for setting in plainly:
            stack.enter_context(setting)
        shapes = LAYERS * [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
        weights = [jnp.full(shape, 0.001 * number, dtype) for number, shape in enumerate(shapes)]
        transposed = [weight.T.copy() for weight in weights]
        looped = layers(lambda x, weight: loop(x[None], weight[None])[0], options)
        normal = layers(plain, options)
        for rows in range(1, MOST + 1):
            x = jnp.ones((rows, WIDTH), dtype)
            rounds = [(seconds(looped, x, weights), seconds(normal, x, transposed)) for _ in range(ROUNDS + 1)]
            times = np.array(rounds[1:])  # the first one compiles
            if np.median(times[:, 0] / times[:, 1]) > SLOWER:
                return rows - 1
    return MOST


def layers(product: Product, options: dict[str, str] | None) -> Callable[[jax.Array, list[jax.Array]], jax.Array]:
    """Return a compiled program that multiplies rows by one weight after the other."""

    def run(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
        for weight in weights:
            x = product(x, weight).astype(x.dtype)
        return x

    return jax.jit(run, compiler_options=options)


def seconds(program: Callable[..., jax.Array], x: jax.Array, weights: list[jax.Array]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    program(x, weights).block_until_ready()
    return time.perf_counter() - start


@cache
def processor_name() -> str:
    """Return what tells processors with different kernels apart: model, number of cores, version of XLA."""
    found = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()]
        about = {name.strip(): value.strip() for name, _, value in lines}
        found = " ".join(about[name] for name in ABOUT if name in about) or found
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{found}, {cores} cores, jaxlib {jaxlib.__version__}"


def file() -> Path | None:
    """Return the file, None for a user without a home."""
    try:
        return cache_folder() / "few_rows.json"
    except InputError:
        return None


def read(path: Path | None) -> dict[str, dict[str, int]]:
    """Return the numbers of rows by processor and type; nothing where the file is missing or damaged."""
    try:
        found = schema.load_json(path) if path else {}
    except InputError:
        return {}
    valid = schema.integer(0, 0, MOST).accepts
    return {
        processor: {dtype: rows for dtype, rows in types.items() if valid(rows)}
        for processor, types in found.items()
        if isinstance(types, dict)
    }


def write(path: Path | None, known: dict[str, dict[str, int]]) -> None:
    """Replace the file in one step; where it cannot be written, the next process measures again."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder, path.name)
            new.write_text(json.dumps(known, indent=2) + "\n")
            os.replace(new, path)
    except OSError as error:
        logging.getLogger(__name__).info("%s cannot be written: %s", path, error.strerror)
