"""Counting what a fuzzer tries and what fails, and running it from the command line."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from hearing import restore_signals


@dataclass
class Tally:
    """How many cases a fuzzer has tried, and the description of each that failed."""

    name: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def record(self, case: str, problem: str | None) -> None:
        """Count one case; `problem` says what went wrong, None that nothing did."""
        self.tried += 1
        if problem is not None:
            self.failures.append(f"{case}: {problem}")

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.tried} tried, {len(self.failures)} failed", *self.failures[:20]]
        return "\n  ".join(lines)


def main(fuzz: Callable[[int, int], Tally], cases: int) -> None:
    """Run `fuzz(cases, seed)` as the command line says; exit status 1 if a case failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=cases)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    restore_signals()
    tally = fuzz(arguments.cases, arguments.seed)
    print(tally)
    sys.exit(bool(tally.failures))
