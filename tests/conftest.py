"""Settings of every test: no implicit broadcasting between ranks, how programs are compiled, seeded arrays."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

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
# need none, this takes a third of the time; the processes that tests start inherit it.
UNOPTIMISED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
os.environ[UNOPTIMISED] = "1"
AS_USERS_RUN_IT = {"test_ledger", "test_torch_attention", "test_torch_transformer"}  # whose figures README shows


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile as the module wants it, and forget the programs behind each module.

    So the memory of a long run stays bounded: what a module has compiled, the next one seldom needs.
    """
    jax.config.update(UNOPTIMISED.lower(), request.path.stem not in AS_USERS_RUN_IT)
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs in processes that the test starts are compiled as users' are, because they run for long."""
    monkeypatch.delenv(UNOPTIMISED)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(0)
