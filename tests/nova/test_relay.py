"""The relay writes into the registry what Nova says, and only who has the office does."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootlockd.config import Nova, NovaScope
from bootlockd.fleet.wire import Term
from bootlockd.relay import PLACED_BY, Plan, Relay, Standing, plan
from bootlockd.sources.base import Known, Observation, Order, Reading, Said, SourceError
from bootlockd.sources.nova import NovaSource, ref_of
from bootlockd.sources.reconcile import Limits
from lockdb.values import Kind, Retention
from nova.fakenova import START, FakeNova, FakeServer

LIMITS = Limits(most=10, percent=100, window=3600)


def uuid(number: int) -> str:
    return f"{number:08x}-1111-4222-8333-555555555555"


A, B = uuid(10), uuid(11)


def order(instance: str, by: str = PLACED_BY) -> Order:
    return Order(instance, Kind.BOOT_LOCK, "bootlock: 1", placed_by=by)


def standing(count: int) -> list[Standing]:
    return [Standing(f"id{n}", order(uuid(n))) for n in range(count)]


def ref(instance: str) -> str:
    return ref_of(instance, Kind.BOOT_LOCK)


def held(instance: str) -> Observation:
    return Observation(ref(instance), Said.HELD, order(instance, "nova"))


def released(instance: str, evidence: str = "unlocked") -> Observation:
    return Observation(ref(instance), Said.RELEASED, evidence=evidence)


def whole(*observations: Observation) -> Reading:
    return Reading(observations, whole=True)


def planned(there: list[Standing], *said: Observation, limits: Limits = LIMITS) -> Plan:
    return plan(there, whole(*said), limits=limits, now=START)


# -- what is written ----------------------------------------------------------------------------


def test_a_lock_that_is_no_hold_yet_is_placed_as_the_relays_own() -> None:
    assert planned([], held(A)) == Plan((order(A),))


def test_a_hold_that_stands_is_left_alone() -> None:
    other = replace(held(A), order=replace(order(A), reason="bootlock: 2"))
    assert planned([Standing("id", order(A))], other) == Plan()


def test_a_hold_that_ended_or_expired_is_placed_again_while_nova_says_so() -> None:
    """Nova is where it is decided: what an admin ends by hand here, he must unlock there."""
    over = [
        Standing("id", order(A), ended_at=START - 1, ended_by="root"),
        Standing("id", replace(order(A), until=START)),
    ]
    for there in over:
        assert planned([there], held(A)).place == (order(A),)


def test_an_absence_ends_nothing() -> None:
    unknown = Observation(ref(A), Said.UNKNOWN, problem="its cell is down")
    for said in ([], [unknown], [released(A, "")], [released(A, " ")]):
        assert planned([Standing("id", order(A))], *said) == Plan()


def test_a_release_ends_all_of_the_relays_holds_with_that_name_and_no_others() -> None:
    there = [
        Standing("one", order(A)),
        Standing("two", order(A)),  # of a relay that lost the office in between
        Standing("admin's", order(A, "root")),
        Standing("gone", order(A), ended_at=START, ended_by="root"),
        Standing("other", order(B)),
    ]
    assert planned(there, released(A)).release == (("one", "unlocked"), ("two", "unlocked"))


def test_what_is_retained_in_the_registry_goes_after_its_date_and_stops_nothing_else() -> None:
    until = START + 86400
    kept = replace(order(A), retain_until=until, retention=Retention.COMPLIANCE)
    there = [*(Standing(f"kept{n}", kept) for n in range(20)), Standing("free", order(B))]
    said = whole(released(A), released(B))
    made = plan(there, said, limits=LIMITS, now=until - 1)
    assert made == Plan(release=(("free", "unlocked"),))
    there = [Standing("kept", kept), Standing("free", order(B))]
    assert len(plan(there, said, limits=LIMITS, now=until).release) == 2


def test_more_endings_than_the_limits_allow_end_nothing_and_placing_goes_on() -> None:
    there = standing(20)
    ten = [released(uuid(n)) for n in range(10)]
    assert len(planned(there, *ten).release) == 10
    stopped = planned(there, *ten, released(uuid(10)), held(uuid(99)))
    assert (stopped.release, len(stopped.place)) == ((), 1)
    assert stopped.stopped == "11 of 20 holds would end, where 10 may within 3600 s"


def test_what_a_relay_before_this_one_ended_counts_and_what_admins_ended_does_not() -> None:
    before = [Standing(f"r{n}", order(B), START - 60, PLACED_BY) for n in range(6)]
    earlier = [Standing(f"e{n}", order(B), START - 3600, PLACED_BY) for n in range(6)]
    by_hand = [Standing(f"a{n}", order(B), START - 60, "root") for n in range(6)]
    five = [released(uuid(n)) for n in range(5)]
    there = standing(20)
    assert planned([*there, *earlier, *by_hand], *five).stopped == ""
    assert "where 10 may" in planned([*there, *before], *five).stopped


SAYINGS = st.sampled_from(Said)


@given(st.lists(st.tuples(st.integers(0, 5), SAYINGS), max_size=12), st.integers(0, 6))
def test_nothing_is_written_without_a_word_for_it(
    sayings: list[tuple[int, Said]], count: int
) -> None:
    said = [
        {Said.HELD: held(uuid(n)), Said.RELEASED: released(uuid(n))}.get(
            what, Observation(ref(uuid(n)), what, problem="?")
        )
        for n, what in sayings
    ]
    there = standing(count)
    made = planned(there, *said)
    told = set(sayings)
    for placed in made.place:
        number = int(placed.instance[:8], 16)
        assert (number, Said.HELD) in told
        assert number >= count
    for hold_id, _ in made.release:
        assert (int(hold_id[2:]), Said.RELEASED) in told


# -- a relay at work ----------------------------------------------------------------------------


class FakeRegistry:
    """Keeps holds in memory; ``fails_after`` writes it can't be had."""

    def __init__(self) -> None:
        self.holds: dict[str, Standing] = {}
        self.terms: list[Term] = []
        self.ids: list[str] = []
        self.writes = 0
        self.fails_after = 1_000_000

    def begin(self, term: Term) -> None:
        self.terms.append(term)

    def standing(self) -> list[Standing]:
        return list(self.holds.values())

    def place(self, hold_id: str, order: Order, *, now: int) -> None:
        self.ids.append(hold_id)
        self._write()
        self.holds.setdefault(hold_id, Standing(hold_id, order))

    def release(self, hold_id: str, *, reason: str, by: str, now: int) -> None:
        self._write()
        self.holds[hold_id] = replace(self.holds[hold_id], ended_at=now, ended_by=by)

    def in_force(self) -> list[str]:
        return sorted(h.order.instance for h in self.holds.values() if h.ended_at is None)

    def _write(self) -> None:
        self.writes += 1
        if self.writes > self.fails_after:
            raise SourceError("etcd: no answer")


TERM = Term(b"leads/relay-nova", 7, 1)


class FakeOffice:
    """Is had for so many questions, and then, if it ``comes_back``, once more."""

    def __init__(self, questions: int = 1_000_000, *, comes_back: bool = False) -> None:
        self.questions = questions
        self._after = replace(TERM, mod=8) if comes_back else None

    @property
    def term(self) -> Term | None:
        self.questions -= 1
        return TERM if self.questions >= 0 else self._after


class Once:
    """A source that has one thing to say."""

    name = "nova"

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def read(self, known: Known) -> Reading:
        return self._reading

    def follow(self, known: Known, stop: threading.Event) -> Iterator[Reading]:
        yield self._reading


def relay(fake: FakeNova, registry: FakeRegistry, office: FakeOffice | None = None) -> Relay:
    settings = Nova(cloud="test", scope=NovaScope.CLOUD)
    source = NovaSource(settings, interval=0.001, connect=fake.connect)
    return Relay(source, registry, office or FakeOffice(), LIMITS, now=lambda: START)


def takes(reading: Reading, registry: FakeRegistry, office: FakeOffice | None = None) -> Relay:
    """A relay that has written what one reading comes to."""
    made = Relay(Once(reading), registry, office or FakeOffice(), LIMITS, now=lambda: START)
    made.serve(threading.Event())
    return made


def cloud(count: int) -> FakeNova:
    return FakeNova(
        *(FakeServer(uuid(n), "admin", "bootlock: 1", host=f"host{n}") for n in range(count))
    )


def test_the_locks_of_all_hosts_come_and_go() -> None:
    fake, registry = cloud(3), FakeRegistry()
    stop = threading.Event()
    looks = itertools.count()

    def changing(_query: object) -> None:
        # Each look begins with a question for changes, but the first.
        if next(looks) == 3:
            assert registry.in_force() == [uuid(0), uuid(1), uuid(2)]
            fake.now += 60
            fake.unlock(uuid(1))
        if registry.in_force() == [uuid(0), uuid(2)]:
            stop.set()

    fake.before = changing
    relay(fake, registry).serve(stop)
    assert registry.in_force() == [uuid(0), uuid(2)]
    assert registry.writes == 4


def test_who_has_not_the_office_reads_and_writes_nothing() -> None:
    fake, registry = cloud(3), FakeRegistry()
    relay(fake, registry, FakeOffice(0)).serve(threading.Event())
    assert (fake.asked, registry.writes) == ([], 0)


@pytest.mark.parametrize("questions", range(1, 6))
def test_who_loses_the_office_writes_no_more_and_the_next_goes_on(questions: int) -> None:
    fake, registry = cloud(3), FakeRegistry()
    first = relay(fake, registry, FakeOffice(questions))
    try:
        first.serve(threading.Event())
    except SourceError as error:
        assert "office" in str(error)  # noqa: PT017 - that it is raised depends on when
    assert registry.writes == max(0, questions - 2)
    takes(NovaSource(Nova(scope=NovaScope.CLOUD), connect=fake.connect).read(Known()), registry)
    assert registry.in_force() == [uuid(0), uuid(1), uuid(2)]
    assert registry.writes == 3


@pytest.mark.parametrize("writes", range(3))
def test_a_registry_that_fails_in_between_is_an_error_and_the_next_turn_mends_it(
    writes: int,
) -> None:
    fake, registry = cloud(3), FakeRegistry()
    registry.fails_after = writes
    with pytest.raises(SourceError, match="no answer"):
        relay(fake, registry).serve(threading.Event())
    registry.fails_after = 1_000_000
    reading = NovaSource(Nova(scope=NovaScope.CLOUD), connect=fake.connect).read(Known())
    takes(reading, registry)
    assert registry.in_force() == [uuid(0), uuid(1), uuid(2)]


def test_what_was_read_in_an_earlier_term_is_not_written_in_a_later_one() -> None:
    """Another may have written in between, of what Nova says since."""
    registry = FakeRegistry()
    takes(whole(held(A)), registry)
    for questions in range(1, 3):
        stale = FakeOffice(questions, comes_back=True)
        with suppress(SourceError):
            takes(whole(released(A), held(B)), registry, stale)
    assert registry.in_force() == [A]
    assert set(registry.terms) == {TERM}


def test_a_write_without_an_answer_is_tried_as_the_same_hold_until_it_is_seen() -> None:
    """It may arrive after a look that did not show it, and must not be a second one then."""
    registry = FakeRegistry()
    again = relay(cloud(1), registry)
    registry.fails_after = 0
    for _ in range(2):
        with pytest.raises(SourceError, match="no answer"):
            again.serve(threading.Event())
    (tried,) = set(registry.ids)
    # It arrives, and is ended by hand: what is placed after that is another hold.
    registry.holds[tried] = Standing(tried, order(uuid(0)), START, "root")
    with pytest.raises(SourceError, match="no answer"):
        again.serve(threading.Event())
    assert len(set(registry.ids)) == 2


def test_what_was_tried_in_an_earlier_term_is_not_tried_again() -> None:
    registry, office = FakeRegistry(), FakeOffice(3, comes_back=True)
    registry.fails_after = 0
    again = relay(cloud(1), registry, office)
    for _ in range(2):
        with pytest.raises(SourceError, match="no answer"):
            again.serve(threading.Event())
    assert len(set(registry.ids)) == 2
