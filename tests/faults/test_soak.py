"""A process that lives long: a sample of what `make faults` makes two thousand calls of."""

import pytest
from soak import soak

from jaxformer.generation import compiling


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "most"), [(8, 2), (200, 16)])
def test_memory_stays_bounded(cases: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more programs are asked for than are kept, alone and by three threads at once."""
    monkeypatch.setattr(compiling.PROGRAMS, "most", most)
    tally = soak(cases, seed=cases, every=max(cases // 10, 4), growth=1.5)  # caches of JAX are not full yet
    assert not tally.failures, str(tally)
    assert len(compiling.PROGRAMS.kept) <= most
