"""Settings of every test: no implicit broadcasting between ranks, how programs are compiled, seeded arrays."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from compilation import XLA_FLAGS
from hearing import restore_signals

os.environ.setdefault("JAXFORMER_FEW_ROWS", "4")  # the same kernels on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads of several workers would wait for each other
jax.config.update("jax_numpy_rank_promotion", "raise")
# Workers compile the same small programs: what one of them has compiled, the others read.
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID")
if RUN:
    jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / f"jaxformer-tests-{RUN}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


# A collection walks over all that tracing has left, and runs hundreds of times a minute with Python's own thresholds.
gc.set_threshold(200_000, 20, 20)


# Tests compile small programs for much longer than they run them. Without most optimisations, of which these programs
# need none, without what fuses loops, and each in one piece, tests of whole models take a fifth of the time. Processes
# that tests start inherit this. `pytest -m optimised` compiles as users do.
QUICKLY = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": XLA_FLAGS,
}


# The tier `pytest -m smoke` runs where these are not installed, and does not import them where they are.
NOT_FOR_SMOKE = ("torch", "transformers")


class WithoutThem:
    """Refuse the imports of packages that the smoke tier does without."""

    @classmethod
    def find_spec(cls, fullname: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for these packages; others are found by the next finder."""
        if fullname.partition(".")[0] in NOT_FOR_SMOKE:
            raise ModuleNotFoundError(f"{fullname} is imported by the smoke tier", name=fullname)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files without a smoke test where only those are run: they may import what is not installed."""
    if config.option.markexpr != "smoke" or collection_path.suffix != ".py":
        return None
    return "pytest.mark.smoke" not in collection_path.read_text() or None


def pytest_configure(config: pytest.Config) -> None:
    """Choose how programs are compiled, before the first one is; let processes that tests start hear signals."""
    restore_signals()
    if config.option.markexpr == "smoke":
        sys.meta_path.insert(0, WithoutThem)
    if config.option.markexpr != "optimised":
        os.environ.update(QUICKLY)
        jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
    """Forget compiled programs behind each module, so that the memory of a long run stays bounded.

    What a module has compiled, the next one seldom needs.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(0)
