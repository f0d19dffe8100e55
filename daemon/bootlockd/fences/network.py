"""network: nothing passes to or from an instance whose boot lock says ``isolate``.

Each of its devices on the host is cut in both directions by nftables (see ``nft``) and, unless
configured otherwise, set down as well, which also blinds what reads a device ahead of nftables. A
permit does not lift that: it allows a start, and what starts is isolated. Kinds of NIC that have
no device on the host can't be cut; the enforcement then fails and names them, with all others cut.

What is cut is the kernel's to remember; which links were up before, a file's (see ``downed``). A
thread listens to netlink and cuts again what came back or came anew, before any job could:
it looks at the process's descriptors, not at libvirt, which may hang. After a boot libvirt answers
only when its autostarts are done: what it has not shown yet is found by its UUID in /proc.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bootlockd import guestnics, links, netwatch, nft, nics
from bootlockd.downed import Downed
from bootlockd.errors import FenceError
from bootlockd.links import Link
from bootlockd.nft import Cut
from bootlockd.nics import Nics
from bootlockd.values import Case, Guest, Outcome, Wake
from lockdb import holds
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.errors import LockDBError
from lockdb.values import Hold, Kind

log = logging.getLogger(__name__)

OFF = "off: no network devices"
NONE = "no network devices"

#: Seconds after which what failed is tried again, if nothing happens before.
RETRY = 15


@dataclass(frozen=True)
class Target:
    """An instance that is to be isolated, as last seen."""

    guest: Guest
    #: Plain device names that its definition fixes; None: not read yet.
    names: frozenset[str] | None = None


class NetworkFence:
    """Cuts devices by nftables and by setting them down."""

    name = "network"

    def __init__(self, database: Path, *, link_down: bool = True) -> None:
        self._database = database
        self._link_down = link_down
        self._downed = Downed(database.parent / "network")
        # One at a time writes rules: jobs of all instances, and the watcher.
        self._lock = threading.RLock()
        self._targets: dict[str, Target] = {}
        #: By instance: the devices that were cut last, by index.
        self._cut: dict[str, dict[int, str]] = {}
        self._watch: netwatch.NetWatch | None = None
        self._wake: Callable[[Wake], None] = lambda _wake: None
        self._left_alone: set[str] = set()
        #: To be isolated, but libvirt shows no guest, or does not answer. The watcher's own.
        self._unseen: set[str] = set()

    # -- as every fence -----------------------------------------------------------------------

    def asks(self, hold: Hold) -> bool:
        """Only the provider isolates."""
        return hold.kind is Kind.BOOT_LOCK and hold.isolate

    def wanted(self, case: Case) -> bool:
        """A permit allows a start, not traffic."""
        return any(self.asks(hold) for hold in case.holds)

    def reaches(self, case: Case) -> bool:
        """There is a domain."""
        return case.guest is not None

    def apply(self, case: Case) -> Outcome:
        """Cut what there is; then have libvirt tell what else there should be."""
        if case.guest:
            self._guard(case.guest)
            # Before libvirt is asked, which may hang.
            self.cut([case.instance])
            self._learn_names(case.guest)
            self.cut([case.instance])
        return self.verify(case)

    def verify(self, case: Case) -> Outcome:
        """Look at the rules, the links, the process and libvirt's view of it."""
        guest = case.guest
        if guest is None:
            return self._absent(case)
        names = self._learn_names(guest)
        devices = links.links()
        found = guestnics.of_guest(guest, devices)
        faults = [*self._uncut(case.instance, found, devices, names), *found.faults]
        if self._watch and not self._watch.is_alive:
            faults.append("nobody watches for new devices: restart bootlockd")
        if guest.is_active:
            faults += guestnics.faults_of(guest, found)
        if faults:
            return Outcome(State.FAILED, "; ".join(dict.fromkeys(faults)), case.now + RETRY)
        if not guest.is_active:
            return Outcome(State.ENFORCED, OFF)
        cut = ", ".join(sorted(found.devices))
        return Outcome(State.ENFORCED, f"cut: {cut}" if cut else NONE)

    def lift(self, case: Case) -> Outcome:
        """Take our rules away, and set up what we set down."""
        self._undo(case.instance)
        return Outcome(State.LIFTED)

    def prepare(self, _case: Case) -> Outcome | None:
        """Nothing to wait for: the watcher guards it from the first ``follow`` on."""

    def start(self, wake: Callable[[Wake], None]) -> None:
        """Listen to netlink."""
        self._wake = wake
        self._watch = netwatch.NetWatch(self)
        self._watch.start()

    def follow(self, cases: Sequence[Case]) -> None:
        """Guard what is to be isolated, seen or not, and have looked for what was left over."""
        if self._watch:
            isolated = {case.instance: case.guest for case in cases if self.wanted(case)}
            self._watch.follow({case.instance for case in cases}, isolated)

    def stop(self) -> None:
        """Listen no longer. What is cut stays cut."""
        if self._watch:
            self._watch.stop()
        self._watch = None

    # -- for the watcher ----------------------------------------------------------------------

    def targets(self) -> dict[str, Guest]:
        """The instances that are guarded."""
        with self._lock:
            return {instance: target.guest for instance, target in self._targets.items()}

    def owners(self, link: Link) -> set[str]:
        """The instances that this link belongs to, by its index or its name."""
        with self._lock:
            return {
                instance
                for instance, target in self._targets.items()
                if link.index in (cut := self._cut.get(instance, {}))
                or link.name in {*cut.values(), *(target.names or ())}
            }

    def knows(self, instance: str, link: Link) -> bool:
        """Whether this very link was cut for the instance."""
        with self._lock:
            return self._cut.get(instance, {}).get(link.index) == link.name

    def has_cut(self, instance: str, devices: set[str | int]) -> bool:
        """Whether all these devices, by name or index, were cut for the instance."""
        with self._lock:
            cut = self._cut.get(instance, {})
            return devices <= {*cut, *cut.values()}

    def cut(self, instances: Iterable[str]) -> set[str]:
        """Make it so that all devices of these are cut. Those that were not. Raises FenceError."""
        with self._lock:
            targets = {name: self._targets[name] for name in instances if name in self._targets}
            try:
                return self._cut_now(targets)
            except FenceError as error:
                log.info("cut once more, one by one: %s", error)
            changed: set[str] = set()
            failure: FenceError | None = None
            for instance, target in targets.items():
                # A device that went meanwhile fails the rules of all.
                try:
                    changed |= self._cut_now({instance: target})
                except FenceError as error:
                    failure = error
            if failure:
                raise failure
            return changed

    def set_down(self, instance: str, found: Iterable[Link]) -> bool:
        """Set links down, if that is configured, and remember to undo it. Raises FenceError."""
        up = [link for link in found if link.is_up] if self._link_down else []
        with self._lock:
            self._downed.add(instance, [(link.name, link.index) for link in up])
            for link in up:
                links.set_up(link, False)
        return bool(up)

    def woken(self, instances: Iterable[str], reason: str) -> None:
        """Have the instances' jobs look."""
        for instance in instances:
            self._wake(Wake(reason, instance))

    def guard(self, isolated: Mapping[str, Guest | None]) -> None:
        """Guard these, and look out for those of which libvirt shows nothing."""
        for guest in isolated.values():
            if guest:
                self._guard(guest)
        unseen = {name for name, guest in isolated.items() if guest is None}
        # What was seen once is found by its name.
        self._unseen = unseen - self.targets().keys()

    def discover(self, *, search: bool = False) -> set[str]:
        """Guard those of the unseen that a QEMU runs. Who they are."""
        found = nics.running(self._unseen, search=search) if self._unseen else []
        for guest in found:
            self._guard(guest)
            self._unseen.discard(guest.uuid)
        return {guest.uuid for guest in found}

    def sweep(self, known: set[str]) -> None:
        """Undo what is cut for instances whose holds ended unseen. Raises FenceError."""
        left = nft.read().instances() | self._downed.instances()
        for instance in left - known - set(self.targets()):
            if self._has_ended(instance):
                log.warning("instance=%s was left isolated: its holds have ended", instance)
                self._undo(instance)
            elif instance not in self._left_alone:
                self._left_alone.add(instance)
                log.warning("instance=%s is isolated, but no hold is known: left so", instance)

    # -- how it is done -----------------------------------------------------------------------

    def _guard(self, guest: Guest) -> None:
        with self._lock:
            last = self._targets.get(guest.uuid)
            self._targets[guest.uuid] = replace(last, guest=guest) if last else Target(guest)

    def _learn_names(self, guest: Guest) -> frozenset[str]:
        own = nics.own_names(guestnics.interfaces_of(guest, inactive=True))
        names = frozenset(filter(nft.is_plain, own))
        with self._lock:
            self._targets[guest.uuid] = Target(guest, names)
        return names

    def _cut_now(self, targets: Mapping[str, Target]) -> set[str]:
        devices = links.links()
        found = {name: guestnics.of_guest(to.guest, devices) for name, to in targets.items()}
        changed: set[str] = set()
        failure: FenceError | None = None
        # First what takes a millisecond.
        for instance, its in found.items():
            present = [devices[device] for device in its.devices]
            self._cut[instance] = {link.index: link.name for link in present}
            try:
                if self.set_down(instance, present):
                    changed.add(instance)
            except FenceError as error:
                failure = error
        changed |= self._write_rules(targets, found)
        if failure:
            raise failure
        return changed

    def _write_rules(self, targets: Mapping[str, Target], found: Mapping[str, Nics]) -> set[str]:
        rules = nft.read()
        wanted = {
            name: _wanted(found[name], to.names, rules.named(name).names)
            for name, to in targets.items()
        }
        nft.run(nft.commands(rules, wanted))
        return {name for name, cut in wanted.items() if not _is_in(rules.effective(name), cut)}

    def _uncut(
        self, instance: str, found: Nics, devices: Mapping[str, Link], names: frozenset[str]
    ) -> list[str]:
        effective = nft.read().effective(instance)
        absent = names - found.devices - effective.names
        faults = [f"{name} would not be cut when it comes" for name in sorted(absent)]
        for device in sorted(found.devices):
            if not nft.is_plain(device):
                faults.append(f"{device!r} is no name for a rule: rename the device")
            elif device not in effective.devices or device not in effective.names:
                faults.append(f"{device} is not cut")
            if self._link_down and devices[device].is_up:
                faults.append(f"{device} is up")
        return faults

    def _absent(self, case: Case) -> Outcome:
        # An undefined domain ends nothing: Nova undefines after each refused start.
        rows = [row for (_, fence), row in case.rows.items() if fence == self.name]
        if any(row.state is not State.NOT_HERE for row in rows):
            return Outcome(State.ENFORCED, OFF)
        return Outcome(State.NOT_HERE)

    def _undo(self, instance: str) -> None:
        with self._lock:
            self._targets.pop(instance, None)
            self._cut.pop(instance, None)
            nft.run(nft.commands(nft.read(), {instance: Cut()}))
            if instance in nft.read().instances():
                raise FenceError(f"rules of instance {instance} are still there")
            devices = links.links()
            for name, index in self._downed.of(instance):
                link = devices.get(name)
                # Another of the same name was never set down by us.
                if link and link.index == index and not link.is_up:
                    links.set_up(link, True)
            self._downed.forget(instance)

    def _has_ended(self, instance: str) -> bool:
        """Whether the database says so of this very instance: its silence says nothing."""
        try:
            with open_db(self._database, read_only=True) as lock_db, lock_db.read():
                past = holds.history(lock_db, instance=instance)
                return bool(past) and not any(hold.is_active(int(time.time())) for hold in past)
        except LockDBError as error:
            log.warning("instance=%s holds cannot be read: %s", instance, error)
            return False


def _wanted(found: Nics, own: frozenset[str] | None, before: frozenset[str]) -> Cut:
    devices = frozenset(filter(nft.is_plain, found.devices))
    # Until the definition was read, what was armed stays so.
    return Cut(devices, devices | (before if own is None else own))


def _is_in(effective: Cut, wanted: Cut) -> bool:
    return wanted.devices <= effective.devices and wanted.names <= effective.names
