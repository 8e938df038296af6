"""Odd command lines: a few in every run of the tests, of the kinds that need no model; more in the slow tests."""

import pytest
from command_cases import QUICK
from command_lines import fuzz


def test_odd_command_lines_are_refused_in_one_line() -> None:
    tally = fuzz(12, seed=1, kinds=dict.fromkeys(QUICK, 1))
    assert not tally.failures, tally


@pytest.mark.slow
@pytest.mark.long
def test_many_odd_command_lines_are_carried_out_or_refused_in_one_line() -> None:
    tally = fuzz(40, seed=2)
    assert not tally.failures, tally
