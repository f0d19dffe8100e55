"""Holds in the registry, as an admin or a relay writes and reads them.

An answer may be lost when the write has landed, and the same question then goes to another member.
So every write is a compare-and-swap, and what stands there instead is looked at: if it is what was
to be written, it was.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING

from bootlockd.fleet import hosts, records, relays
from bootlockd.fleet.errors import Compacted, EtcdError
from bootlockd.fleet.hosts import Report
from bootlockd.fleet.keys import Keys, is_hold_id
from bootlockd.fleet.records import BadRecord, FutureRecord, PermitRecord, Record, Release
from bootlockd.fleet.relays import RelayReport
from bootlockd.fleet.wire import Header, KeyValue
from bootlockd.sources.base import Order
from lockdb import retention
from lockdb.errors import AlreadyEnded, AmbiguousPrefix, InvalidValue, NotFound
from lockdb.values import ACTOR_MAX, REASON_MAX, Hold, Permit, Retention, required_line
from lockdb.when import iso

if TYPE_CHECKING:
    # What only names a registry's records loads nothing that speaks to a network.
    from bootlockd.fleet.client import Client

#: What only one relay at a time may do, and what it says of itself.
OFFICE = "relay-nova"
RELAY = "nova"

#: How often a release is tried that others got in between of.
_TRIES = 10


@dataclass(frozen=True)
class Entry:
    """One hold's key. ``record`` is missing if ``problem`` says why it can't be read."""

    id: str
    #: The revision that wrote it.
    revision: int
    record: Record | None
    problem: str = ""


@dataclass(frozen=True)
class PermitEntry:
    """One permit's key. ``record`` is missing if ``problem`` says why it can't be read."""

    id: str
    #: The revision that wrote it.
    revision: int
    record: PermitRecord | None
    problem: str = ""


@dataclass(frozen=True)
class Seen:
    """A host as the registry has it. ``alive``: it gave a sign of life a moment ago."""

    report: Report
    alive: bool


class Registry:
    """The registry behind ``client``. All raise EtcdError when it can't be asked."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    # -- holds --------------------------------------------------------------------------------

    def place(self, order: Order, *, now: int, hold_id: str = "") -> Entry:
        """Place a hold for all hosts; with ``hold_id``, at most once.

        One that is there already, held or released, is returned as it is.
        """
        record = Record(hold_id or secrets.token_hex(8), order, now)
        key, value = self._keys.hold(record.id), records.encoded(record)
        header, written, there = self._client.write(key, value, mod=0)
        if written or there is None:
            return Entry(record.id, header.revision, record)
        return self._entry(there)

    def release(
        self, hold_id: str, *, reason: str, by: str, now: int, override: bool = False
    ) -> Entry:
        """End the hold with exactly this id. ``override``: though it is retained, if that may be.

        Raises InvalidValue, NotFound, AlreadyEnded or Retained. That it is retained is each host's
        to judge, which has seen time pass; here it is only told at once, by this host's clock.
        """
        end = replace(_release(reason=reason, by=by, now=now), override=override)
        key = self._keys.hold(hold_id)
        _, there = self._client.get(key)
        tried = False
        for _ in range(_TRIES):
            if there is None:
                raise NotFound(f"no hold {hold_id!r:.80} in the registry", _HINT)
            entry = self._entry(there)
            ended = entry.record.released if entry.record else None
            if ended and not (tried and ended == end):
                raise AlreadyEnded(
                    f"hold {hold_id} was released at {iso(ended.at)} by {ended.by}", _HINT
                )
            if ended:
                return entry
            _check_retention(entry, override, now)
            record = replace(entry.record or self._unreadable(there, entry), released=end)
            value = records.encoded(record)
            try:
                header, written, there = self._client.write(key, value, mod=there.mod)
            finally:
                tried = True
            if written:
                return Entry(hold_id, header.revision, record)
        raise EtcdError(f"hold {hold_id} is written to by others all the time", "try again")

    def retain(self, hold_id: str, until: int | None, mode: Retention | None, *, now: int) -> Entry:
        """Have the hold with exactly this id last until a date, or longer.

        Raises InvalidValue, NotFound, AlreadyEnded or Retained (it would be less than it is).
        """
        key = self._keys.hold(hold_id)
        _, there = self._client.get(key)
        for _ in range(_TRIES):
            if there is None:
                raise NotFound(f"no hold {hold_id!r:.80} in the registry", _HINT)
            entry = self._entry(there)
            before = entry.record.order if entry.record else None
            if entry.record is None or before is None:
                raise InvalidValue(hold_id, entry.problem or "it can't be read")
            if entry.record.released:
                raise AlreadyEnded(f"hold {hold_id} was released in the registry", _HINT)
            more = retention.extended(hold_id, before, until, mode, now=now)
            record = replace(entry.record, order=replace(before, **more))
            if record == entry.record:
                return entry
            value = records.encoded(record)
            header, written, there = self._client.write(key, value, mod=there.mod)
            if written:
                return Entry(hold_id, header.revision, record)
        raise EtcdError(f"hold {hold_id} is written to by others all the time", "try again")

    def restate(self, record: Record) -> bool:
        """Write a record that the registry has lost; whether it was missing."""
        key = self._keys.hold(record.id)
        _, written, _ = self._client.write(key, records.encoded(record), mod=0)
        return written

    # -- permits ------------------------------------------------------------------------------

    def grant(self, permit: Permit) -> PermitEntry:
        """Let it through on all hosts. Its id must be new."""
        record = PermitRecord(permit.id, permit)
        key, value = self._keys.permit(permit.id), records.encoded_permit(record)
        header, _, there = self._client.write(key, value, mod=0)
        # What is there already was written by this question, when there was no answer.
        return PermitEntry(permit.id, there.mod if there else header.revision, record)

    def permits(self) -> list[PermitEntry]:
        """All that were granted or revoked, by id."""
        return [self._permit_entry(item) for item in self._all(self._keys.permits)[1]]

    def revoke(self, prefix: str, *, reason: str, by: str, now: int) -> PermitEntry:
        """End the one permit whose id begins so, before its time.

        Raises InvalidValue, NotFound, AmbiguousPrefix or AlreadyEnded.
        """
        end = _release(reason=reason, by=by, now=now)
        there = self._found("permit", self._keys.permits, prefix)
        permit_id = self._keys.name_of(there.key)
        for _ in range(_TRIES):
            record = self._permit(permit_id, there.value)
            if record.revoked == end:
                return PermitEntry(permit_id, there.mod, record)
            if record.revoked or (record.permit and record.permit.until <= now):
                raise AlreadyEnded(f"permit {permit_id} has ended in the registry")
            revoked = replace(record, revoked=end)
            value = records.encoded_permit(revoked)
            header, written, other = self._client.write(there.key, value, mod=there.mod)
            if written:
                return PermitEntry(permit_id, header.revision, revoked)
            if other is None:
                raise NotFound(f"no permit {permit_id} in the registry any more")
            there = other
        raise EtcdError(f"permit {permit_id} is written to by others all the time", "try again")

    def _permit(self, permit_id: str, value: bytes) -> PermitRecord:
        """What stands there. One that nobody can read may be revoked, but not a newer one."""
        try:
            return records.decoded_permit(permit_id, value)
        except FutureRecord as error:
            raise InvalidValue(permit_id, str(error)) from error
        except BadRecord as error:
            if not is_hold_id(permit_id):
                raise NotFound(
                    f"{permit_id!r} is no id of a permit", "remove it with etcdctl"
                ) from error
            return PermitRecord(permit_id, None)

    def _permit_entry(self, item: KeyValue) -> PermitEntry:
        name = self._keys.name_of(item.key)
        try:
            return PermitEntry(name, item.mod, records.decoded_permit(name, item.value))
        except BadRecord as error:
            return PermitEntry(name, item.mod, None, str(error))

    # -- more of holds ------------------------------------------------------------------------

    def holds(self) -> list[Entry]:
        """All that are held or were released, by id."""
        return [self._entry(item) for item in self._all(self._keys.holds)[1]]

    def newest(self) -> int:
        """The revision at which some hold was written last."""
        return self._client.newest(*self._keys.holds)

    def find(self, prefix: str) -> Entry:
        """The one hold whose id begins so. Raises NotFound or AmbiguousPrefix."""
        return self._entry(self._found("hold", self._keys.holds, prefix))

    def _found(self, what: str, span: tuple[bytes, bytes], prefix: str) -> KeyValue:
        prefix = prefix.strip().lower()
        hint = _HINTS[what]
        if not prefix or set(prefix) - set("0123456789abcdef"):
            raise NotFound(f"no {what} {prefix!r:.80} in the registry", hint)
        begin = span[0] + prefix.encode()
        page = self._client.page(begin, begin + b"g", limit=3)
        if not page.items:
            raise NotFound(f"no {what} {prefix!r:.80} in the registry", hint)
        if len(page.items) > 1:
            raise AmbiguousPrefix(f"{what} {prefix!r} is ambiguous", "write more of the id")
        return page.items[0]

    # -- hosts --------------------------------------------------------------------------------

    def hosts(self) -> tuple[str, list[Seen]]:
        """The cluster's id, and all hosts that ever said something, by name."""
        header, said = self._all(self._keys.hosts)
        _, living = self._all(self._keys.living)
        names = {self._keys.name_of(item.key) for item in living}
        reports = [hosts.decoded(self._keys.name_of(item.key), item.value) for item in said]
        return header.cluster, [Seen(report, report.name in names) for report in reports]

    def host(self, name: str) -> Report:
        """What one host says. Raises NotFound."""
        _, there = self._client.get(self._keys.host(name))
        if there is None:
            raise NotFound(f"the registry has no host {name!r}", "see 'bootlock fleet hosts'")
        return hosts.decoded(name, there.value)

    # -- the relay ----------------------------------------------------------------------------

    def relay(self) -> RelayReport | None:
        """How far the relay is that leads, or the last one that did; None: there never was one."""
        _, said = self._client.get(self._keys.relay(RELAY))
        _, office = self._client.get(self._keys.lead(OFFICE))
        if said is None and office is None:
            return None
        report = relays.decoded(said.value) if said else RelayReport()
        # Of who has it now: the report may still be that of who had it before.
        name = relays.holder(office.value) if office else report.name
        return replace(report, name=name, leads=office is not None)

    def note_relay(self, report: RelayReport) -> None:
        """Say how far the relay is."""
        key = self._keys.relay(RELAY)
        _, there = self._client.get(key)
        # Who writes in a term of the office is alone, so this is not for others' sake.
        self._client.write(key, relays.encoded(report), mod=there.mod if there else 0)

    # -- how ----------------------------------------------------------------------------------

    def _all(self, span: tuple[bytes, bytes]) -> tuple[Header, list[KeyValue]]:
        for _ in range(_TRIES):
            try:
                pages = list(self._client.pages(*span))
            except Compacted:
                continue
            return pages[0].header, [item for page in pages for item in page.items]
        raise EtcdError("the registry is compacted faster than it can be read")

    def _entry(self, item: KeyValue) -> Entry:
        name = self._keys.name_of(item.key)
        try:
            return Entry(name, item.mod, records.decoded(name, item.value))
        except BadRecord as error:
            return Entry(name, item.mod, None, str(error))

    def _unreadable(self, item: KeyValue, entry: Entry) -> Record:
        """What to release where nobody can read what is held: hosts keep what they last read."""
        try:
            records.decoded(entry.id, item.value)
        except FutureRecord as error:
            raise InvalidValue(entry.id, str(error)) from error
        except BadRecord as error:
            if not is_hold_id(entry.id):
                raise NotFound(f"{entry.id!r} is no id of a hold", "remove it with etcdctl") from (
                    error
                )
        return Record(entry.id, None, 0)


_HINT = "see 'bootlock list --fleet --all'"
_HINTS = {"hold": _HINT, "permit": "see 'bootlock fleet permits'"}


def _release(*, reason: str, by: str, now: int) -> Release:
    by, reason = required_line("by", by, ACTOR_MAX), required_line("reason", reason, REASON_MAX)
    return Release(by, now, reason)


def _check_retention(entry: Entry, override: bool, now: int) -> None:
    order = entry.record.order if entry.record else None
    if order is None or not retention.is_retained(order, now):
        return
    if not (override and order.retention is Retention.GOVERNANCE):
        raise retention.refusal(entry.id, order, now, now)


def record_of(hold: Hold) -> Record:
    """What the registry had of a hold, from what this host has of it."""
    fields = {item.name: getattr(hold, item.name) for item in fields_of(Order)}
    end = None
    if hold.released_at is not None:
        reason = hold.release_reason or "?"
        end = Release(hold.released_by or "?", hold.released_at, reason, hold.overridden)
    return Record(hold.id, Order(**fields), hold.placed_at, end)


def in_force(entry: Entry, now: int) -> bool:
    """Held, or perhaps so."""
    record = entry.record
    if record is None or record.order is None:
        return record is None
    until = record.order.until
    return record.released is None and (until is None or until > now)


def missing(entry: Entry, cluster: str, seen: Sequence[Seen]) -> dict[str, str]:
    """The hosts on which this hold is not proven to be in force, and why."""
    reasons = {host.report.name: _why_not(entry, cluster, host) for host in seen}
    return {name: why for name, why in reasons.items() if why}


def pending(entry: Entry, cluster: str, seen: Sequence[Seen]) -> dict[str, str]:
    """The living hosts that have not answered for this hold yet, and what for."""
    reasons = {
        host.report.name: _not_yet(entry, cluster, host.report) for host in seen if host.alive
    }
    return {name: why for name, why in reasons.items() if why}


def not_taken(entry: PermitEntry, cluster: str, seen: Sequence[Seen]) -> dict[str, str]:
    """The hosts that have not said that they have this permit as it stands there, and why."""
    reasons = {host.report.name: _not_taken(entry, cluster, host) for host in seen}
    return {name: why for name, why in reasons.items() if why}


def here(entry: Entry, seen: Sequence[Seen]) -> dict[str, dict[str, str]]:
    """The hosts that have the instance, with what each fence did."""
    return {
        host.report.name: dict(host.report.here[entry.id])
        for host in seen
        if entry.id in host.report.here
    }


def not_applied(entry: Entry, cluster: str, report: Report) -> str:
    """Why a host does not have this hold as it stands there, as far as it says; "" if it has."""
    if report.problem:
        return report.problem
    if report.cluster != cluster or report.applied < entry.revision:
        return "has not applied it"
    if entry.id in report.unread:
        return "can't read it"
    if entry.id in report.waiting:
        return "keeps it until an admin accepts that so many end"
    return ""


def _why_not(entry: Entry, cluster: str, host: Seen) -> str:
    report = host.report
    waits = _unheard(host) or _not_yet(entry, cluster, report)
    if waits:
        return waits
    if not report.is_armed:
        return "not proven to be armed"
    failed = [fence for fence, state in report.here.get(entry.id, {}).items() if state == "failed"]
    return f"not enforced: {', '.join(failed)}" if failed else ""


def _not_yet(entry: Entry, cluster: str, report: Report) -> str:
    waits = not_applied(entry, cluster, report)
    if waits:
        return waits
    if entry.id in report.unlooked or (report.more and entry.id not in report.here):
        return "its daemon has not looked at it"
    fences = report.here.get(entry.id, {})
    waiting = [fence for fence, state in fences.items() if state == "pending"]
    return f"under way: {', '.join(waiting)}" if waiting else ""


def _not_taken(entry: PermitEntry, cluster: str, host: Seen) -> str:
    report = host.report
    unheard = _unheard(host)
    if unheard:
        return unheard
    if report.cluster != cluster or report.permits < entry.revision:
        return "has not taken it"
    return "can't read it" if entry.id in report.unread else ""


def _unheard(host: Seen) -> str:
    """Why what a host says can't be gone by."""
    if host.report.problem:
        return host.report.problem
    return "" if host.alive else f"silent since {iso(host.report.at)}"
