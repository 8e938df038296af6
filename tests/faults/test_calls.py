"""Python calls with odd arguments: a sample of what `make faults` draws."""

import pytest
from calls import calls


@pytest.mark.parametrize("cases", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_odd_calls_return_or_say_what_is_wrong(cases: int) -> None:
    tally = calls(cases, seed=cases)
    assert not tally.failures, str(tally)
