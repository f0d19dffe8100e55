"""Whatever sources say, in whatever order, however often everything is started anew.

The model knows nothing of how it is done, only what may be: a hold ends in a reading that says so
about it with evidence and says nothing else of it, or by an admin's word. And a permit is granted
once, as it was said, and whoever ends it ends it for good.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bootlockd.sources.base import Observation, Order, Reading, Revocation, Said
from bootlockd.sources.reconcile import Limits, plan, preview, reconcile
from database.soundness import assert_whole, log
from lockdb import database, holds, permits, sources
from lockdb.values import Hold, Kind, NewHold, Operation, Permit
from samples import NOW
from sources.said import UNGUARDED, uuid

SOURCES = ("file", "nova")
GUARD = Limits(most=2, percent=50, window=10)
ORDERS = st.builds(
    Order,
    instance=st.sampled_from([uuid(1), uuid(2), uuid(3), "junk"]),
    kind=st.sampled_from(Kind),
    reason=st.sampled_from(["unpaid", "abuse", ""]),
    until=st.sampled_from([None, None, NOW + 3, NOW + 10**6]),
)
REFS = st.sampled_from(["a", "b", "c", "d"])
#: Most of what is said is in order; without that little would ever be held.
SOUND = st.builds(
    Observation,
    ref=REFS,
    said=st.just(Said.HELD),
    order=st.builds(
        Order,
        instance=st.sampled_from([uuid(1), uuid(1), uuid(2)]),
        kind=st.sampled_from(Kind),
        reason=st.sampled_from(["unpaid", "abuse"]),
        until=st.sampled_from([None, None, None, NOW + 3]),
    ),
)
RELEASES = st.builds(Observation, ref=REFS, said=st.just(Said.RELEASED), evidence=st.just("paid"))
ANYTHING = st.builds(
    Observation,
    ref=REFS,
    said=st.sampled_from(Said),
    order=st.none() | ORDERS,
    evidence=st.sampled_from(["", "paid"]),
    hold_id=st.sampled_from(["", "", "", "0123456789abcdef"]),
)
OBSERVATIONS = st.one_of(SOUND, SOUND, RELEASES, ANYTHING)
PERMITS = st.builds(
    Permit,
    id=st.sampled_from(["a" * 16, "b" * 16, "c" * 16]),
    instance=st.sampled_from([uuid(1), uuid(1), uuid(1), uuid(2)]),
    operation=st.sampled_from([Operation.START, Operation.START, Operation.MIGRATE]),
    reason=st.just("court"),
    granted_at=st.just(NOW),
    granted_by=st.just("alice"),
    until=st.sampled_from([NOW - 1, NOW + 9, NOW + 10**5, NOW + 10**5, NOW + 10**5]),
    revoked_at=st.none(),
    revoked_by=st.none(),
)
REVOCATIONS = st.builds(
    Revocation,
    permit_id=st.sampled_from(["a" * 16, "b" * 16]),
    by=st.sampled_from(["bob", "eve"]),
    evidence=st.just("done"),
)
READINGS = st.builds(
    Reading,
    observations=st.lists(OBSERVATIONS, max_size=6).map(tuple),
    whole=st.booleans(),
    revision=st.sampled_from(["1", "2"]),
    faults=st.sampled_from([(), ("no answer",)]),
    permits=st.lists(PERMITS, max_size=2).map(tuple),
    revocations=st.just(()) | st.lists(REVOCATIONS, max_size=2).map(tuple),
)


class Reconciled(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="bootlock-model"))
        self.path = self.directory / "lock.db"
        database.create(self.path, now=1, host="test")
        self.now = NOW
        self.local = self._place_local()
        self.local_permit = self._permit_local()
        #: (source, ref): evidence was given, some time.
        self.evidence: set[tuple[str, str]] = set()

    def _place_local(self) -> str:
        with database.open_db(self.path) as lock_db:
            new = NewHold(instance=uuid(1), reason="mine", placed_by="admin")
            return holds.place(lock_db, new, now=NOW).id

    def _permit_local(self) -> Permit:
        until = NOW + 10**5
        with database.open_db(self.path) as lock_db:
            return permits.grant(
                lock_db, uuid(1), Operation.START, until=until, reason="mine", by="admin", now=NOW
            )

    def teardown(self) -> None:
        # Each from the start is whole: pages, journal, and what the two say of each other.
        assert_whole(self.path)
        shutil.rmtree(self.directory)

    @rule(source=st.sampled_from(SOURCES), reading=READINGS, guarded=st.booleans())
    def read(self, source: str, reading: Reading, guarded: bool) -> None:
        before, permits_before = self._holds(), self._permits()
        self.evidence |= {
            (source, one.ref)
            for one in reading.observations
            if one.said is Said.RELEASED and one.evidence
        }
        with database.open_db(self.path) as lock_db:
            turn = sources.stored(lock_db, source).turn
            limits = GUARD if guarded else UNGUARDED
            foreseen = preview(lock_db, source, reading, limits=limits, now=self.now)
            made = reconcile(lock_db, source, reading, turn=turn, limits=limits, now=self.now)
            assert made == foreseen
            # Said again it changes no hold, and writes no entry.
            entries = log(lock_db)
            again = reconcile(lock_db, source, reading, turn=turn + 1, limits=limits, now=self.now)
            assert not again.changes_holds, again.steps
            assert log(lock_db) == entries
        after = self._holds()
        self._nothing_else_happened(before, after, source, reading)
        self._what_is_held_is_held(after, source, reading)
        self._permits_are_as_said(permits_before, self._permits(), reading)
        mine = [one for one in before.values() if one.source == source and one.is_active(self.now)]
        ended = [one for one in mine if after[one.id].released_at is not None]
        assert not guarded or len(ended) <= max(1, min(2, (len(mine) + 2) // 2))

    def _nothing_else_happened(
        self, before: dict[str, Hold], after: dict[str, Hold], source: str, reading: Reading
    ) -> None:
        assert before.keys() <= after.keys(), "no row is ever lost"
        for hold_id, hold in before.items():
            now = after[hold_id]
            if hold.source != source:
                assert now == hold, "no other source is touched"
            if hold.released_at is not None:
                assert now == hold, "what has ended stays ended"
            elif now.released_at is not None:
                said = [one for one in reading.observations if one.ref == hold.ref]
                assert said
                assert all(one.said is Said.RELEASED for one in said)
                assert now.release_reason == "paid"
            assert now.instance == hold.instance, "no hold moves to another instance"

    def _what_is_held_is_held(self, after: dict[str, Hold], source: str, reading: Reading) -> None:
        refs = [one.ref for one in reading.observations]
        active = [one for one in after.values() if one.released_at is None]
        by_ref = {one.ref: one for one in active if one.source == source}
        for one in reading.observations:
            order = one.order
            if one.said is not Said.HELD or not order or one.hold_id or refs.count(one.ref) > 1:
                continue
            if order.instance != "junk" and order.reason and (order.until or 10**10) > self.now:
                assert by_ref[one.ref].instance == order.instance

    def _permits_are_as_said(
        self, before: dict[str, Permit], after: dict[str, Permit], reading: Reading
    ) -> None:
        assert before.keys() <= after.keys(), "no row is ever lost"
        ended = {one.permit_id for one in reading.revocations}
        for permit_id, permit in after.items():
            ways = {one for one in reading.permits if one.id == permit_id}
            if permit_id not in before:
                assert ways == {permit}, "it is granted as it was said, and said in one way"
                assert permit_id not in ended
                assert permit.until > self.now
                continue
            was = before[permit_id]
            assert replace(permit, revoked_at=None, revoked_by=None) == replace(
                was, revoked_at=None, revoked_by=None
            ), "it is never made longer, nor anything else"
            if was.revoked_at is not None or permit_id not in ended or was.until <= self.now:
                assert permit == was, "who revoked it, and when, stays; nobody else ends it"
            else:
                assert permit.revoked_at == self.now
                said = {one.by for one in reading.revocations if one.permit_id == permit_id}
                assert permit.revoked_by in said
        for permit in reading.permits:
            alone = all(one == permit for one in reading.permits if one.id == permit.id)
            if alone and permit.id not in ended and permit.until > self.now:
                assert permit.id in after, "no guard and no fault keeps it from being granted"

    @rule()
    def admin_accepts(self) -> None:
        for source in SOURCES:
            with database.open_db(self.path) as lock_db:
                waiting = sources.waiting(lock_db, source)
                if not waiting:
                    continue
                before = self._holds()
                token = sources.token_of(waiting)
                ended = sources.accept(lock_db, source, token, by="chief", now=self.now)
                assert ended == waiting
            after = self._holds()
            changed = {hold_id for hold_id in before if after[hold_id] != before[hold_id]}
            assert changed <= {ending.hold_id for ending in ended}

    @rule(pick=st.integers(0, 9))
    def admin_releases(self, pick: int) -> None:
        active = [hold for hold in self._holds().values() if hold.released_at is None and hold.ref]
        if active:
            with database.open_db(self.path) as lock_db:
                hold = sorted(active, key=lambda one: one.id)[pick % len(active)]
                holds.release(lock_db, hold.id, reason="mine", by="admin", now=self.now)

    @rule(pick=st.integers(0, 9))
    def admin_revokes(self, pick: int) -> None:
        with database.open_db(self.path) as lock_db:
            active = permits.active(lock_db, now=self.now)
            theirs = sorted(one.id for one in active if one.id != self.local_permit.id)
            if theirs:
                one = theirs[pick % len(theirs)]
                permits.revoke(lock_db, one, reason="mine", by="admin", now=self.now)

    @rule(source=st.sampled_from(SOURCES))
    def fail(self, source: str) -> None:
        before = self._holds()
        with database.open_db(self.path) as lock_db:
            sources.failed(lock_db, source, "no answer", now=self.now)
        assert self._holds() == before

    @rule(seconds=st.integers(-5, 20))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def local_holds_are_as_they_were(self) -> None:
        hold = self._holds()[self.local]
        assert (hold.released_at, hold.reason, hold.ref) == (None, "mine", None)
        assert self._permits()[self.local_permit.id] == self.local_permit

    @invariant()
    def what_waits_is_held_and_has_its_evidence(self) -> None:
        with database.open_db(self.path, read_only=True) as lock_db:
            for source in SOURCES:
                for ending in sources.waiting(lock_db, source):
                    hold = holds.find(lock_db, ending.hold_id)
                    assert (hold.source, hold.released_at) == (source, None)
                    assert ending.change or (source, _original(hold)) in self.evidence

    @invariant()
    def a_ref_names_one_hold_at_a_time(self) -> None:
        active = [
            (hold.source, hold.ref)
            for hold in self._holds().values()
            if hold.released_at is None and hold.ref
        ]
        assert len(active) == len(set(active))

    def _holds(self) -> dict[str, Hold]:
        with database.open_db(self.path, read_only=True) as lock_db:
            return {hold.id: hold for hold in holds.history(lock_db)}

    def _permits(self) -> dict[str, Permit]:
        with database.open_db(self.path, read_only=True) as lock_db:
            ids = ["a" * 16, "b" * 16, "c" * 16, self.local_permit.id]
            found = [permits.stored(lock_db, one) for one in ids]
        return {permit.id: permit for permit in found if permit}


def _original(hold: Hold) -> str:
    """The ref that a hold was placed under, before another took it."""
    return str(hold.ref).partition("@")[0]


TestReconciled = Reconciled.TestCase
TestReconciled.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@settings(max_examples=200)
@given(
    st.lists(OBSERVATIONS, max_size=8),
    st.randoms(use_true_random=False),
    st.lists(OBSERVATIONS, max_size=5),
    st.lists(PERMITS, max_size=4),
    st.lists(REVOCATIONS, max_size=3),
    st.lists(PERMITS, max_size=2),
)
def test_the_order_in_which_things_are_said_and_stored_does_not_matter(
    said: list[Observation],
    chance: Any,
    before: list[Observation],
    granted: list[Permit],
    ended: list[Revocation],
    stored: list[Permit],
) -> None:
    state, known = sources.State("file"), {permit.id: permit for permit in stored}
    made = []
    told: list[list[Any]] = [_stored(before), said, granted, ended]
    for _ in range(2):
        rows, *one = told
        reading = Reading(tuple(one[0]), True, permits=tuple(one[1]), revocations=tuple(one[2]))
        made.append(plan(state, rows, [], reading, limits=GUARD, now=NOW, permit_of=known.get))
        told = [each[:] for each in told]
        for each in told:
            chance.shuffle(each)
    assert made[0] == made[1]


def _stored(observations: list[Observation]) -> list[sources.Row]:
    """Rows as the database would have them after these."""
    made = plan(
        sources.State("file"), [], [], Reading(tuple(observations), True), limits=GUARD, now=NOW
    )
    return [
        (one.ref, f"{number:016x}", *(getattr(one.new, name) for name in sources.FIELDS))
        for number, one in enumerate(made.steps.place)
    ]
