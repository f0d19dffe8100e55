"""power: a boot-locked instance does what its holds order for a running one, and stays so.

The orders are those of ``on_running``; of several, the strictest. Whatever makes a held instance
run again without asking the hook (resume, a guest's wake-up, the end of a migration, a start that
slipped in while the hold was placed) ends the same way, at once and without a grace.

The row's detail is this fence's memory: it tells "left running, as ordered" from a new run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import libvirt

from bootlockd import hypervisor
from bootlockd.errors import FenceError, Unreachable
from bootlockd.fences.base import Quiet
from bootlockd.values import Case, Guest, Outcome, Power, strictest
from lockdb.enforcements import Enforcement, State
from lockdb.values import Hold, OnRunning

log = logging.getLogger(__name__)

OFF = "off"
SAVED = "off, its RAM saved"
PAUSED = "paused"
ALREADY_PAUSED = "paused before the hold came"
ASKED = "asked to shut down"

#: Seconds that pausing may take before destroying begins: a hung QEMU never answers.
SUSPEND_LIMIT = 2.0


class PowerFence(Quiet):
    """Stops, saves or pauses guests through libvirt."""

    name = "power"

    def asks(self, hold: Hold) -> bool:
        """A state lock is the customer's protection: it stops nothing."""
        return hold.bars_start

    def wanted(self, case: Case) -> bool:
        """A permitted instance may run."""
        return bool(case.boot_locks) and not case.is_permitted

    def reaches(self, case: Case) -> bool:
        """There is a domain."""
        return case.guest is not None

    def verify(self, case: Case) -> Outcome:
        """Whether the guest, as just seen, is as ordered."""
        guest, order = case.guest, strictest(case.boot_locks)
        if guest is None:
            # Nova undefines a domain after each refused start: that ends nothing.
            return Outcome(State.ENFORCED, OFF) if self._was_here(case) else Outcome(State.NOT_HERE)
        if not guest.is_active:
            return Outcome(State.ENFORCED, SAVED if guest.has_managed_save else OFF)
        if order is OnRunning.PAUSE and guest.power is not Power.RUNNING:
            known = {row.detail for row in self._rows(case)} & {PAUSED, ALREADY_PAUSED}
            return Outcome(State.ENFORCED, known.pop() if known else ALREADY_PAUSED)
        if order is OnRunning.LEAVE and self._may_stay(case, guest):
            return Outcome(State.ENFORCED, _left(guest))
        return Outcome(State.FAILED, "it runs")

    def apply(self, case: Case) -> Outcome:
        """Carry out the strictest order."""
        seen = self.verify(case)
        guest = case.guest
        if seen.state is not State.FAILED or guest is None:
            return seen
        order = strictest(case.boot_locks)
        log.info("instance=%s guest=%r runs: %s", case.instance, guest.name, order)
        if order is OnRunning.PAUSE:
            return self._pause(guest)
        if order is OnRunning.MANAGED_SAVE:
            return self._save(guest)
        if order is OnRunning.SHUTDOWN and not self._was_off(case):
            return self._shut_down(case, guest)
        return self._destroy(guest)

    def lift(self, case: Case) -> Outcome:
        """Let go on what this fence paused; what is off stays off until somebody starts it."""
        paused = any(row.detail == PAUSED for row in self._all_rows(case))
        guest = case.guest
        if paused and not case.boot_locks and guest and guest.power is Power.PAUSED:
            _act(guest, lambda domain: domain.resume())
            return Outcome(State.LIFTED, "resumed")
        return Outcome(State.LIFTED)

    def _pause(self, guest: Guest) -> Outcome:
        _act(guest, lambda domain: domain.suspend())
        return _proven(guest, PAUSED, lambda now: now.power is not Power.RUNNING)

    def _save(self, guest: Guest) -> Outcome:
        if not guest.persistent:
            _act(guest, lambda domain: domain.suspend())
            raise FenceError(
                f"{guest.name} is transient: libvirt can't save it; it is paused",
                "place a hold with --on-running destroy",
            )
        _act(guest, lambda domain: domain.managedSave())
        return _proven(guest, SAVED, lambda now: not now.is_active and now.has_managed_save)

    def _shut_down(self, case: Case, guest: Guest) -> Outcome:
        asked = [row.since for row in self._rows(case) if row.detail == ASKED]
        grace = min(hold.grace for hold in case.boot_locks if hold.on_running is OnRunning.SHUTDOWN)
        deadline = min(asked, default=case.now) + grace
        # Set back, the clock must not make the grace longer than it was.
        if asked and not case.now < deadline <= case.now + grace:
            return self._destroy(guest)
        if not asked:
            _act(guest, lambda domain: domain.shutdown())
        return Outcome(State.PENDING, ASKED, deadline)

    def _destroy(self, guest: Guest) -> Outcome:
        try:
            # Effective in milliseconds; destroy first gives QEMU time to end by itself.
            hypervisor.bounded(
                lambda: _act(guest, lambda d: d.suspend()), SUSPEND_LIMIT, f"suspend {guest.uuid}"
            )
        except (FenceError, Unreachable) as error:
            log.info("instance=%s is not paused before it is destroyed: %s", guest.uuid, error)
        _act(guest, lambda domain: domain.destroy())
        return _proven(guest, OFF, lambda now: not now.is_active)

    def _rows(self, case: Case) -> list[Enforcement]:
        """Of the holds in force: what was noted for one that has ended says nothing of this run."""
        current = {hold.id for hold in case.boot_locks}
        return [row for row in self._all_rows(case) if row.hold in current]

    def _all_rows(self, case: Case) -> list[Enforcement]:
        return [row for (_, fence), row in case.rows.items() if fence == self.name]

    def _was_here(self, case: Case) -> bool:
        return any(row.state is not State.NOT_HERE for row in self._rows(case))

    def _was_off(self, case: Case) -> bool:
        return any(
            row.state is State.NOT_HERE or row.detail in {OFF, SAVED} for row in self._rows(case)
        )

    def _may_stay(self, case: Case, guest: Guest) -> bool:
        rows = [row for row in self._rows(case) if row.state is not State.LIFTED]
        # Another run than the one that was left is a start that the hook did not see.
        return not rows or all(row.detail == _left(guest) for row in rows)


def _left(guest: Guest) -> str:
    return f"left running, as ordered (run {guest.run})"


def _act(guest: Guest, action: Callable[[Any], object]) -> None:
    """Do something to the domain; that it is gone or off meanwhile is for the proof to see."""
    with hypervisor.connection(guest.uri, read_only=False) as opened:
        try:
            domain = hypervisor.look_up(opened, guest.uuid)
            if domain:
                action(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise FenceError(f"{guest.name}: {hypervisor.one_line(error)}") from error


def _proven(guest: Guest, detail: str, holds: Callable[[Guest], bool]) -> Outcome:
    """ENFORCED if libvirt now shows what was to be brought about. Raises FenceError."""
    now = hypervisor.observe([guest.uri], guest.uuid)
    if now is None:
        return Outcome(State.ENFORCED, OFF)
    if not holds(now):
        raise FenceError(f"{guest.name} is {now.power} still")
    return Outcome(State.ENFORCED, detail)
