"""Cases, run in turns, and what the times amount to.

A machine gets slower and faster while a benchmark runs. So each round runs every case once, in an
order of its own so that none always follows the same other one, and cases are compared by the
medians of the same rounds.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One thing to measure. ``run`` does it once and returns the seconds that it took."""

    key: str
    title: str
    run: Callable[[], float]


@dataclass(frozen=True)
class Row:
    """A case with its times, and how it compares with the first case of its group."""

    key: str
    title: str
    seconds: tuple[float, ...]
    ratio: float

    @property
    def median(self) -> float:
        """In seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of all runs took between these two; in seconds."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Group:
    """Rows that were measured in turns."""

    title: str
    rows: tuple[Row, ...]


def measure(title: str, cases: Sequence[Case], rounds: int) -> Group:
    """Run all cases ``rounds`` times in turns, after once without taking the time."""
    order = random.Random(0)
    taken: dict[str, list[float]] = {case.key: [] for case in cases}
    for case in cases:
        case.run()
    for _ in range(rounds):
        for case in order.sample(cases, len(cases)):
            taken[case.key].append(case.run())
    base = statistics.median(taken[cases[0].key])
    return Group(
        title,
        tuple(
            Row(
                case.key,
                case.title,
                tuple(taken[case.key]),
                statistics.median(taken[case.key]) / base,
            )
            for case in cases
        ),
    )
