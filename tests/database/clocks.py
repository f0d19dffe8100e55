"""Time as a test has it pass: the true one, a wall clock that may be wrong, and reboots."""

from __future__ import annotations

from dataclasses import dataclass

from lockdb.witness import Sight
from samples import NOW


@dataclass
class Clocks:
    """``see`` is what the host sees but for the wall clock, which is ``now``."""

    true: int = NOW
    #: By how much the wall clock is ahead.
    ahead: int = 0
    boot: int = 1
    booted: int = NOW - 1000
    #: Whether something disciplines the clock while it is right.
    ntp: bool = False

    @property
    def now(self) -> int:
        return self.true + self.ahead

    def pass_by(self, seconds: int) -> None:
        self.true += seconds

    def reboot(self, off: int = 60) -> None:
        """Off for so long."""
        self.true += off
        self.booted = self.true
        self.boot += 1

    def see(self) -> Sight:
        return Sight(f"boot-{self.boot}", self.true - self.booted, self.ntp and self.ahead == 0)
