"""A few cases of the fuzzers of training runs; `make test-slow` tries more, `make faults` all."""

import damage
import disks
import kills
import pytest
from tally import Tally


def passed(tally: Tally) -> None:
    print(tally)
    assert not tally.failures, str(tally)


def test_damaged_checkpoints() -> None:
    passed(damage.fuzz(40, seed=0))


def test_saves_that_are_killed() -> None:
    passed(kills.fuzz_saves(4, seed=0))


@pytest.mark.slow
def test_more_damaged_checkpoints() -> None:
    passed(damage.fuzz(300, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", kills.RUNS)
def test_runs_that_are_killed(kind: str) -> None:
    passed(kills.fuzz(5, seed=1, kinds=(kind,)))


@pytest.mark.slow
def test_disks_that_fill_up() -> None:
    passed(disks.fuzz(6, seed=1))
