"""How long something took, counted into buckets: what Prometheus calls a histogram."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

#: Seconds; the last bucket is what took longer.
BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)


class Durations:
    """Counted by one thread."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types: each bound with how many took no longer, and the sum of all."""
        names = [*map(str, BOUNDS), "+Inf"]
        up_to = [sum(self._counts[: place + 1]) for place in range(len(names))]
        return {"buckets": [list(bucket) for bucket in zip(names, up_to, strict=True)]} | {
            "sum": self._sum
        }
