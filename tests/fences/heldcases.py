"""Holds and cases to hand to a fence: an instance held on this host, off unless said otherwise."""

from dataclasses import replace
from typing import Any

from bootlockd.values import Case, Guest, Power
from lockdb.enforcements import Enforcement, State
from lockdb.values import Hold, Kind, OnRunning, Operation, Permit

UUID = "5da5dc1c-b82d-46d6-adc1-e33e9c1636ea"
HOLD = "0" * 16
#: The worst that libvirt takes.
NAME = "we ird'\"<&>\n-rf"
NOW = 1_800_000_000

PERMIT = Permit("1" * 16, UUID, Operation.START, "x", NOW, "a test", NOW + 60, None, None)


def hold(kind: Kind = Kind.BOOT_LOCK, order: OnRunning = OnRunning.LEAVE) -> Hold:
    return Hold(
        id=HOLD,
        instance=UUID,
        kind=kind,
        source="local",
        reason="unpaid",
        notice="",
        case="",
        on_running=order,
        grace=60,
        isolate=False,
        was_running=None,
        placed_at=NOW,
        placed_by="a test",
        until=None,
        released_at=None,
        released_by=None,
        release_reason=None,
    )


def guest(power: Power = Power.OFF, name: str = NAME) -> Guest:
    run = None if power is Power.OFF else 1
    return Guest("qemu:///system", name, UUID, power, run, True, False)


def case(power: Power | None = Power.OFF, **more: Any) -> Case:
    """``power`` None: libvirt here does not know it."""
    known = Case(instance=UUID, now=NOW, holds=[hold()], guest=guest(power) if power else None)
    return replace(known, **more)


def row(
    fence: str, state: State, detail: str = "", since: int = NOW
) -> dict[tuple[str, str], Enforcement]:
    """The only row of the case."""
    return {(HOLD, fence): Enforcement(HOLD, fence, UUID, state, detail, since, since)}
