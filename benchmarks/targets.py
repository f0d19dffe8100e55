"""What must come out: ratios of medians, with their limits."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.measure import Group

_RESAMPLES = 1000


@dataclass(frozen=True)
class Target:
    """The median of row ``of`` is at most ``limit`` times that of row ``to``, in the same group."""

    title: str
    of: str
    to: str
    limit: float


@dataclass(frozen=True)
class Outcome:
    """A target and what was measured. ``range``: where the ratio is with 95 % confidence."""

    target: Target
    ratio: float
    range: tuple[float, float]

    @property
    def is_met(self) -> bool:
        """Not more than the limit."""
        return self.ratio <= self.target.limit


TARGETS = (
    Target("an allowed start, to an empty hook", "call.allow", "call.empty", 4.0),
    Target("any other operation, to an empty hook", "call.other", "call.empty", 1.4),
    Target("all holds, to 100 holds", "call.allow", "call.allow-few", 1.2),
    Target("all holds, to 100 holds, process alone", "alone.allow", "alone.allow-few", 1.2),
    Target("virsh start with the hook, to without", "start.bootlock", "start.none", 1.05),
)


def outcomes(groups: Iterable[Group]) -> list[Outcome]:
    """The targets whose rows were measured."""
    seconds = {row.key: row.seconds for group in groups for row in group.rows}
    return [
        _outcome(target, seconds[target.of], seconds[target.to])
        for target in TARGETS
        if {target.of, target.to} <= seconds.keys()
    ]


def _outcome(target: Target, of: Sequence[float], to: Sequence[float]) -> Outcome:
    """Compare; the range is a bootstrap's: the ratios of rounds drawn again and again."""
    dice = random.Random(0)
    pairs = list(zip(of, to, strict=True))
    drawn = sorted(_ratio(dice.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES))
    low, high = drawn[_RESAMPLES // 40], drawn[-_RESAMPLES // 40]
    return Outcome(target, _ratio(pairs), (low, high))


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(of for of, _ in pairs) / statistics.median(to for _, to in pairs)
