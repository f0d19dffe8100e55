"""The values that the parts of the daemon hand to each other: plain, frozen, never shared state.

Times are Unix seconds. A ``Case`` is everything a decision about one instance may depend on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum

from lockdb.enforcements import Enforcement, State
from lockdb.values import Hold, OnRunning, Operation, Permit


class Power(StrEnum):
    """What a guest's virtual CPUs do."""

    RUNNING = "running"
    PAUSED = "paused"
    #: Suspended to its own RAM by the guest (S3): a key press may wake it.
    ASLEEP = "asleep"
    OFF = "off"


@dataclass(frozen=True)
class Guest:
    """A domain as libvirt shows it at one moment."""

    uri: str
    name: str
    uuid: str
    power: Power
    #: libvirt's number of this run; None when off. Another number is another run.
    run: int | None
    persistent: bool
    has_managed_save: bool

    @property
    def is_active(self) -> bool:
        """It has a process."""
        return self.power is not Power.OFF


@dataclass(frozen=True)
class Case:
    """One instance: its holds and permits in force, its domain here, what was enforced so far."""

    instance: str
    now: int
    holds: Sequence[Hold] = ()
    permits: Sequence[Permit] = ()
    #: None: no libvirt of this host knows it.
    guest: Guest | None = None
    #: Keys of its own disks, see lockdb.disks; known as well when the domain is not.
    disks: Sequence[str] = ()
    rows: Mapping[tuple[str, str], Enforcement] = field(default_factory=dict)

    @property
    def boot_locks(self) -> list[Hold]:
        """The provider's holds, those that keep it from running."""
        return [hold for hold in self.holds if hold.bars_start]

    @property
    def is_permitted(self) -> bool:
        """Somebody may start it now; a permit for a migration ends in a start."""
        return self.permits_any({Operation.START, Operation.MIGRATE})

    def permits_any(self, operations: Set[Operation]) -> bool:
        """A permit for one of these is in force."""
        return any(permit.operation in operations for permit in self.permits)

    def row(self, hold: Hold, fence: str) -> Enforcement | None:
        """What this fence did last for this hold."""
        return self.rows.get((hold.id, fence))


@dataclass(frozen=True)
class Outcome:
    """What a fence found or did for one instance.

    ``next_try``: when to come back, for what is pending or failed. ``detail`` is for staff: what
    was proven, or why not and what to do.
    """

    state: State
    detail: str = ""
    next_try: int | None = None

    @property
    def is_enforced(self) -> bool:
        """It was just proven true."""
        return self.state is State.ENFORCED


@dataclass(frozen=True)
class Wake:
    """Why the cycle should look: at one instance, or, without one, at everything."""

    reason: str
    instance: str | None = None


#: From the mildest to the strictest: of several orders for one instance the last one counts.
STRICTNESS = (
    OnRunning.LEAVE,
    OnRunning.PAUSE,
    OnRunning.MANAGED_SAVE,
    OnRunning.SHUTDOWN,
    OnRunning.DESTROY,
)


def strictest(holds: Sequence[Hold]) -> OnRunning:
    """The order that is carried out where several holds give different ones."""
    return max((hold.on_running for hold in holds), key=STRICTNESS.index, default=OnRunning.LEAVE)
