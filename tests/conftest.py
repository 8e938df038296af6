"""Settings of every test: no implicit broadcasting between ranks, one compilation for all workers, seeded arrays."""

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


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs() -> Iterator[None]:
    """Keep the memory of a long run bounded: what a module of tests has compiled, the next one seldom needs."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(0)
