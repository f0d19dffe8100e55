"""What a source said, turned into what changes: the one place where rule R3 is kept.

``plan`` is pure: the holds of one source as they are stored, and one reading of it, become steps.
The rules:

- A hold ends only if the source says RELEASED, with evidence, about that very hold. What is
  missing from a whole reading has vanished: it stays, and the source is marked. What is UNKNOWN,
  malformed or said in two ways stays as it is, and the source is marked.
- What is HELD and not known is placed; what is HELD otherwise than stored is changed, not placed
  again. A ref that now names another instance holds both: nobody said that the first is free.
- A hold that was given its id by the source is never placed twice: once ended here, it stays so.
- A permit is granted once, as it was said first, and never longer; one that was revoked stays so.
  What is said of it in two ways grants nothing.
- A hold that is retained ends at its date, not before; what would have ended it waits until then. A
  source can put the date off, never bring it forward.
- More endings at once than ``Limits`` allow end nothing: all of them wait for an admin, and what
  would end after them waits too, until it is accepted or taken back.

``reconcile`` plans while others may write, and carries the steps out in one transaction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from bootlockd.errors import BootlockdError
from bootlockd.sources.base import (
    Known,
    Observation,
    Order,
    Reading,
    Revocation,
    Said,
    printable_line,
)
from lockdb import holds, journal, operations, permits, retention, sources, witness
from lockdb.database import LockDB, open_db
from lockdb.errors import InvalidValue
from lockdb.sources import Changing, Ending, Marks, Placing, Revoking, Row, State, Steps
from lockdb.values import (
    DEFAULT_NOTICE,
    REASON_MAX,
    Kind,
    NewHold,
    OnRunning,
    Permit,
    Retention,
    required_line,
)

#: A source's own name of a hold: at most so long.
REF_MAX = 500

_HOLD_ID = re.compile(r"[0-9a-f]{16,64}")
#: What stays as it is of a hold that is retained; the table's triggers know it too.
_RETAINED = {"kind", "blocks", "preserve"}
_fields_of = attrgetter(*sources.FIELDS)


class Overtaken(BootlockdError):
    """Another process reconciled this source after the reading had begun: read again."""


@dataclass(frozen=True)
class Limits:
    """How many holds of one source may end within ``window`` seconds without an admin's word.

    The smaller of ``most`` and ``percent`` of its active holds; but one always may, or a source
    with fewer than five could release nothing.
    """

    most: int = 10
    percent: int = 20
    window: int = 3600

    def allowed(self, active: int) -> int:
        """Of so many active holds."""
        return max(1, min(self.most, active * self.percent // 100))

    @property
    def enough(self) -> int:
        """Of more active holds than that, no more may end."""
        return -(-self.most * 100 // self.percent) if self.percent else 0


@dataclass(frozen=True)
class Plan:
    """What one reading of a source comes to."""

    steps: Steps
    after: State
    unchanged: int = 0
    #: All that waits, were the steps taken.
    waiting: Sequence[Ending] = ()
    #: Why, if anything waits.
    stopped: str = ""
    #: All that waits for the end of a retention.
    retained: Sequence[Ending] = ()

    @property
    def changes_holds(self) -> bool:
        """Some hold would be another afterwards."""
        return bool(self.steps.place or self.steps.change or self.steps.end)


class LiveHeld(Mapping[str, Order]):
    """The holds of one source, each looked up when it is asked for: ``Known.held``."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name

    def __getitem__(self, ref: str) -> Order:
        with open_db(self._path, read_only=True) as lock_db:
            row = sources.row(lock_db, self._name, ref)
        if row is None:
            raise KeyError(ref)
        return _order(row)

    def __iter__(self) -> Iterator[str]:
        with open_db(self._path, read_only=True) as lock_db:
            return iter(sources.refs(lock_db, self._name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def known(path: Path, name: str) -> Known:
    """What the database knows of a source. Raises DatabaseError."""
    with open_db(path, read_only=True) as lock_db:
        state = sources.stored(lock_db, name)
    return Known(state.revision, LiveHeld(path, name), state.turn)


def reconcile(
    lock_db: LockDB, name: str, reading: Reading, *, turn: int, limits: Limits, now: int
) -> Plan:
    """Make the holds of this source what ``reading`` says. Raises Overtaken, DatabaseError.

    ``turn``: from the ``Known`` that was handed to the source. Comparing takes as long as the
    reading is large; others can write meanwhile, and if one did, it is compared again.
    """
    with lock_db.read() as db:
        head = journal.head(db)
        made = _plan_of(lock_db, name, reading, turn=turn, limits=limits, now=now)
    with lock_db.write() as db:
        # Each change of a hold is an entry; the turn changes without one.
        if journal.head(db) != head or sources.stored(lock_db, name).turn != turn:
            made = _plan_of(lock_db, name, reading, turn=turn, limits=limits, now=now)
        sources.carry_out(db, made.after, made.steps, now=now)
    return made


def preview(lock_db: LockDB, name: str, reading: Reading, *, limits: Limits, now: int) -> Plan:
    """What ``reconcile`` would do. Changes nothing."""
    turn = sources.stored(lock_db, name).turn
    return _plan_of(lock_db, name, reading, turn=turn, limits=limits, now=now)


def _plan_of(
    lock_db: LockDB, name: str, reading: Reading, *, turn: int, limits: Limits, now: int
) -> Plan:
    with lock_db.read() as db:
        state = sources.stored(lock_db, name)
        if state.turn != turn:
            raise Overtaken(f"the source {name} was read by another process meanwhile")
        named = (observation.ref for observation in reading.observations)
        return plan(
            state,
            sources.rows(db, name) if reading.whole else sources.rows_of(db, name, named),
            sources.waiting(lock_db, name),
            reading,
            limits=limits,
            now=now,
            is_taken=lambda hold_id: holds.exists(lock_db, hold_id),
            permit_of=lambda permit_id: permits.stored(lock_db, permit_id),
            active=lambda most: sources.active(db, name, now=now, most=most),
            proven=witness.proven(db, now),
        )


def plan(
    state: State,
    rows: Iterable[Row],
    waiting: Sequence[Ending],
    reading: Reading,
    *,
    limits: Limits,
    now: int,
    is_taken: Callable[[str], bool] = lambda _hold_id: False,
    active: Callable[[int | None], int] = lambda _most: 0,
    permit_of: Callable[[str], Permit | None] = lambda _permit_id: None,
    proven: int | None = None,
) -> Plan:
    """The steps from what is stored to what was said.

    ``rows``: as ``lockdb.sources.rows``, for a whole reading all of them, else those that it names:
    what one change costs does not depend on how many holds there are. Each is looked at once and
    none is kept. ``is_taken``: whether a hold with that id is or ever was there. ``active``: how
    many of the source's holds are active, counted up to so many; of a whole reading not asked.
    ``permit_of``: the permit that is stored with an id. ``proven``: the present by which retention
    is judged, ``now`` if it is not another.
    """
    waits = {ending.hold_id: ending for ending in waiting}
    proven = now if proven is None else proven
    findings = _Findings(state.name, now, proven, waits, reading.faults)
    said = findings.by_ref(reading.observations)
    silent = set() if reading.whole else set(waits)
    for row in rows:
        silent.discard(row[1])
        findings.compare(row, said.pop(row[0], None))
    findings.still |= silent
    # Of two that claim the same id, it is the same one that gets it, whatever their order.
    for ref in sorted(said):
        findings.add(said[ref], is_taken)
    findings.permissions(reading, permit_of)
    count = (lambda _most: findings.active) if reading.whole else active
    return findings.plan(state, reading, limits, count)


@dataclass
class _Findings:
    """What is found on the way through the rows; ``plan`` makes the whole of it."""

    source: str
    now: int
    proven: int
    waiting: dict[str, Ending]
    #: What the reading itself says went wrong; a hold that is unknown for it is no fault more.
    general: Sequence[str]
    place: list[Placing] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    change: list[Changing] = field(default_factory=list)
    #: What may end now and bars nothing: expired holds.
    expired: list[Ending] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    #: What may not end before its date.
    kept: list[Ending] = field(default_factory=list)
    #: Of the holds whose ending waits, those for which it still does.
    still: set[str] = field(default_factory=set)
    vanished: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    grant: list[Permit] = field(default_factory=list)
    revoke: list[Revoking] = field(default_factory=list)
    active: int = 0
    unchanged: int = 0

    def by_ref(self, observations: Sequence[Observation]) -> dict[str, Observation]:
        """One observation for each ref, whatever their order."""
        found = {observation.ref: observation for observation in observations}
        if len(found) == len(observations):
            return found
        several: dict[str, set[Observation]] = {}
        for observation in observations:
            several.setdefault(observation.ref, set()).add(observation)
        for ref, said in several.items():
            if len(said) > 1:
                self.faults.append(f"{_shown(ref)}: it is said in {len(said)} ways")
                found[ref] = _one_of(said)
        return found

    def compare(self, row: Row, seen: Observation | None) -> None:
        """One stored hold and what was said about it."""
        hold_id, until = row[1], row[10]
        is_active = until is None or until > self.now
        self.active += is_active
        if seen is None:
            self._missing(row[0], hold_id, is_active)
        elif seen.hold_id and seen.hold_id != hold_id:
            self._doubt(row, f"it is hold {_shown(seen.hold_id)} now, and {hold_id} did not end")
        elif seen.said is Said.HELD and seen.order is not None:
            if row[2:] == self._as_stored(seen.order):
                self.unchanged += 1
            else:
                self._held_otherwise(row, seen.order, is_active, bool(seen.hold_id))
        elif seen.said is Said.RELEASED and (evidence := printable_line(seen.evidence, REASON_MAX)):
            override = seen.override and row[sources.RETENTION] == Retention.GOVERNANCE
            until = row[sources.RETAIN_UNTIL]
            ending = Ending(hold_id, row[2], evidence, override=override, retain_until=until)
            self._ends(ending, is_active)
        else:
            self._doubt(row, seen.problem or f"it is said to be {seen.said}, and no more")

    def _ends(self, ending: Ending, is_active: bool) -> None:
        if not is_active:
            self.expired.append(ending)
        elif sources.is_retained(ending, self.proven):
            self.kept.append(replace(ending, kept=True))
        else:
            self.endings.append(ending)

    def add(self, observation: Observation, is_taken: Callable[[str], bool]) -> None:
        """What was said about a hold that is not stored."""
        ref, hold_id, order = observation.ref, observation.hold_id, observation.order
        if observation.said is Said.RELEASED:
            return
        if observation.said is Said.UNKNOWN or order is None:
            self._fault(ref, observation.problem or "it can't be told what it is")
            return
        try:
            required_line("ref", ref, REF_MAX)
            new = new_hold(order, self.source)
            if new.retain_until is not None:
                retention.check_date(new.retain_until, self.now)
        except InvalidValue as error:
            self._fault(ref, str(error))
            return
        if hold_id and not _HOLD_ID.fullmatch(hold_id):
            self._fault(ref, f"{_shown(hold_id)} is no id of a hold")
        elif hold_id and (hold_id in self.ids or is_taken(hold_id)):
            self._fault(ref, f"hold {hold_id} has ended here, or is another's: it is not placed")
        elif new.until is None or new.until > self.now:
            self.place.append(Placing(ref, new, hold_id))
            self.ids.add(hold_id)

    def permissions(self, reading: Reading, stored: Callable[[str], Permit | None]) -> None:
        """All that was said of permits. In doubt, one is not granted."""
        ended = {one.permit_id: one for one in sorted(reading.revocations, key=repr)}
        granted: dict[str, set[Permit]] = {}
        for permit in reading.permits:
            granted.setdefault(permit.id, set()).add(permit)
        for permit_id, ways in granted.items():
            if len(ways) > 1:
                self._fault(f"permit {permit_id}", f"it is said in {len(ways)} ways")
            elif permit_id not in ended:
                self._grant(next(iter(ways)), stored(permit_id))
        for permit_id, revocation in ended.items():
            self._revocation(revocation, stored(permit_id))

    def _grant(self, permit: Permit, stored: Permit | None) -> None:
        """One that was granted, and what is stored with its id."""
        if permit.until <= self.now:
            return
        if stored is None:
            self.grant.append(permit)
        elif replace(stored, revoked_at=None, revoked_by=None) != permit:
            self._fault(f"permit {permit.id}", "it is another here, and stays as it was granted")

    def _revocation(self, revocation: Revocation, stored: Permit | None) -> None:
        """One that was ended, and what is stored with its id."""
        if stored and stored.revoked_at is None and stored.until > self.now:
            by, evidence = revocation.by, printable_line(revocation.evidence, REASON_MAX)
            self.revoke.append(Revoking(stored.id, stored.instance, by, evidence))

    def _as_stored(self, order: Order) -> tuple[Any, ...]:
        """The fields of a hold in good form, as ``new_hold`` would make them, only faster."""
        fields: tuple[Any, ...] = _fields_of(order)
        if order.notice and order.placed_by:
            return fields
        notice = order.notice or DEFAULT_NOTICE[order.kind]
        return (
            *fields[:3],
            notice,
            *fields[4:9],
            order.placed_by or f"source {self.source}",
            *fields[10:],
        )

    def _held_otherwise(self, row: Row, order: Order, is_active: bool, has_id: bool) -> None:
        ref, hold_id, instance = row[:3]
        try:
            new = new_hold(order, self.source)
            stored = (row[sources.RETAIN_UNTIL], row[sources.RETENTION])
            until, mode = retention.stronger(new.retain_until, new.retention, stored)
            new = replace(new, retain_until=until, retention=mode)
            if until is not None and until != stored[0]:
                retention.check_date(until, self.now)
        except InvalidValue as error:
            self._doubt(row, str(error))
            return
        after = dict(zip(sources.FIELDS, _fields_of(new), strict=True))
        before = dict(zip(sources.FIELDS, row[2:], strict=True))
        after = {name: value for name, value in after.items() if value != before[name]}
        if not after:
            self.unchanged += 1
        elif "instance" in after and has_id:
            self._doubt(row, f"hold {hold_id} is on {instance}, not on {new.instance}")
        elif "instance" in after:
            # Under a name of its own the first goes on, and vanishes, or is released like any.
            orphan = f"{ref}@{hold_id}"
            self.change.append(Changing(hold_id, instance, {"ref": ref}, {"ref": orphan}))
            if new.until is None or new.until > self.now:
                self.place.append(Placing(ref, new))
            self._missing(orphan, hold_id, is_active)
        else:
            changed = {name: before[name] for name in after}
            changing = Changing(hold_id, instance, changed, after)
            what = "the source made it a state lock, has it block less, or let it expire"
            ending = Ending(hold_id, instance, what, changing, retain_until=stored[0])
            # Whether it is less or more: as long as it is retained it stays what it is.
            is_fixed = sources.is_retained(ending, self.proven) and after.keys() & _RETAINED
            if is_active and (is_fixed or self._loosens(before, new)):
                self._ends(ending, is_active)
            else:
                self.change.append(changing)

    def _loosens(self, before: Mapping[str, Any], new: NewHold) -> bool:
        blocked = operations.blocked(before["kind"], before["blocks"])
        weaker = not blocked <= operations.blocked(new.kind, new.blocks)
        return weaker or (new.until is not None and new.until <= self.now)

    def _missing(self, ref: str, hold_id: str, is_active: bool) -> None:
        self._keep(hold_id)
        if is_active and hold_id not in self.waiting:
            self.vanished.append(ref)

    def _doubt(self, row: Row, problem: str) -> None:
        self._fault(row[0], problem)
        self._keep(row[1])

    def _keep(self, hold_id: str) -> None:
        """Nothing new was said: what waits goes on to wait."""
        if hold_id in self.waiting:
            self.still.add(hold_id)

    def _fault(self, ref: str, problem: str) -> None:
        if problem in self.general:
            return
        shown = _shown(ref)
        line = printable_line(problem, REASON_MAX)
        self.faults.append(line if line.startswith(f"{shown}:") else f"{shown}: {line}")

    def plan(
        self,
        state: State,
        reading: Reading,
        limits: Limits,
        active: Callable[[int | None], int],
    ) -> Plan:
        """All of it."""
        since = self.now - limits.window
        # Set back, the clock would make what was to be forgotten in an hour last for years.
        ended = [(min(at, self.now), count) for at, count in state.ended]
        ended = [(at, count) for at, count in ended if at > since]
        before = sum(count for _, count in ended)
        left, kept = self._waiting_on()
        said_again = {ending.hold_id: replace(ending, kept=False) for ending in self.endings}
        stopped = ""
        # They are counted for an ending alone, and no further than it matters.
        ends = left or self.endings
        allowed = limits.allowed(active(limits.enough) + before) if ends else 0
        if ends and (left or before + len(self.endings) > allowed):
            stopped = (
                f"{len({one.hold_id for one in left} | set(said_again))} of {active(None)} holds "
                f"would end, where {allowed} may within {limits.window} s"
            )
        all_waiting = {one.hold_id: one for one in left} | (said_again if stopped else {})
        ending_now = [] if stopped else self.endings
        if ending_now:
            ended.append((self.now, len(ending_now)))
        loosened = [one.change for one in ending_now if one.change]
        released = [one for one in ending_now if not one.change]
        waiting = sorted(all_waiting.values(), key=lambda one: one.hold_id)
        all_waiting |= kept
        steps = Steps(
            place=sorted(self.place, key=lambda one: one.ref),
            change=sorted([*self.change, *loosened], key=lambda one: one.hold_id),
            end=sorted([*self.expired, *released], key=lambda one: one.hold_id),
            wait=[one for one in all_waiting.values() if self.waiting.get(one.hold_id) != one],
            withdraw=sorted(self.waiting.keys() - all_waiting.keys()),
            grant=sorted(self.grant, key=lambda one: one.id),
            revoke=sorted(self.revoke, key=lambda one: one.permit_id),
        )
        after = self._state(state, reading, tuple(ended))
        retained = sorted(kept.values(), key=lambda one: one.hold_id)
        return Plan(steps, after, self.unchanged, waiting, stopped, retained)

    def _waiting_on(self) -> tuple[list[Ending], dict[str, Ending]]:
        """Of what waited before and still does: what needs an admin, and what needs its date.

        What waited for its date, which has come, is as if it was said now.
        """
        said = {ending.hold_id for ending in self.endings}
        left = []
        kept = {ending.hold_id: ending for ending in self.kept}
        for hold_id in sorted(self.still):
            one = self.waiting[hold_id]
            if sources.is_retained(one, self.proven):
                kept[hold_id] = replace(one, kept=True)
            elif one.kept:
                self.endings.append(one)
            else:
                left.append(one)
        left += [one for one in self.waiting.values() if one.hold_id in said and not one.kept]
        return left, kept

    def _state(self, state: State, reading: Reading, ended: tuple[tuple[int, int], ...]) -> State:
        faults = [*(printable_line(fault, REASON_MAX) for fault in reading.faults), *self.faults]
        return replace(
            state,
            turn=state.turn + 1,
            revision=reading.revision,
            tried_at=self.now,
            read_at=self.now,
            whole_at=self.now if reading.whole else state.whole_at,
            error="",
            error_since=None,
            # Only who sees all can say that there are no more.
            faults=Marks.of(faults) if reading.whole else state.faults.and_also(faults),
            vanished=Marks.of(self.vanished) if reading.whole else state.vanished,
            ended=ended,
        )


def new_hold(order: Order, source: str) -> NewHold:
    """The hold that a source orders. Raises InvalidValue."""
    return NewHold(
        instance=order.instance,
        reason=order.reason,
        placed_by=order.placed_by or f"source {source}",
        kind=order.kind,
        source=source,
        notice=order.notice,
        case=order.case,
        on_running=order.on_running,
        grace=order.grace,
        isolate=order.isolate,
        preserve=order.preserve,
        until=order.until,
        blocks=order.blocks,
        retain_until=order.retain_until,
        retention=order.retention,
    )


def _order(row: Row) -> Order:
    values = dict(zip(sources.FIELDS, row[2:], strict=True))
    return Order(
        **values
        | {
            "kind": Kind(values["kind"]),
            "on_running": OnRunning(values["on_running"]),
            "isolate": bool(values["isolate"]),
            "retention": Retention(values["retention"]) if values["retention"] else None,
            "preserve": bool(values["preserve"]),
        }
    )


def _one_of(said: set[Observation]) -> Observation:
    """Of several statements about one hold: what is held stays, what is not held becomes so."""
    held = [one for one in said if one.said is Said.HELD and one.order is not None]
    orders = sorted(held, key=lambda one: (repr(one.order), one.hold_id))
    ref = next(iter(said)).ref
    return orders[0] if orders else Observation(ref, Said.UNKNOWN, problem="it can't be told")


def _shown(text: str) -> str:
    return printable_line(text[:REF_MAX].encode("utf-8", "backslashreplace").decode(), REF_MAX)
