"""What Nova says becomes holds, and what it does not say releases none."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootlockd.config import LockMeans, Nova, NovaScope
from bootlockd.sources import nova
from bootlockd.sources.base import Known, Observation, Order, Reading, Said, SourceError
from bootlockd.sources.nova import ASKS, NovaSource
from bootlockd.sources.novaapi import Answer
from lockdb.values import Kind, NewHold, OnRunning
from nova.fakenova import HOST, START, FakeNova, FakeServer, iso, refusing, unreachable

SETTINGS = Nova(cloud="test")
A, B, C = (f"0000000{n}-1111-4222-8333-444444444444" for n in (1, 2, 3))
BOOT, STATE = Kind.BOOT_LOCK, Kind.STATE_LOCK


def uuid(number: int) -> str:
    return f"{number:08x}-1111-4222-8333-555555555555"


def source(fake: FakeNova, settings: Nova = SETTINGS, **more: Any) -> NovaSource:
    return NovaSource(settings, connect=fake.connect, host=HOST, now=lambda: 5.0, **more)


def known(*refs: str) -> Known:
    """What is held already; by what order matters to the reconciler only."""
    orders = {ref: Order(ref.partition("/")[0], Kind(ref.partition("/")[2]), "x") for ref in refs}
    return Known(held=orders)


def said(reading: Reading) -> dict[str, Observation]:
    found = {observation.ref: observation for observation in reading.observations}
    assert len(found) == len(reading.observations), "each hold is spoken of once"
    return found


def sayings(reading: Reading) -> dict[str, Said]:
    return {ref: observation.said for ref, observation in said(reading).items()}


# -- what a lock means --------------------------------------------------------------------------


def test_an_admins_lock_with_the_prefix_is_a_boot_lock() -> None:
    fake = FakeNova(FakeServer(A, "admin", "bootlock: case 4711"))
    settings = replace(SETTINGS, on_running=OnRunning.SHUTDOWN, grace=30, isolate=True)
    reading = source(fake, settings).read(Known())
    assert reading == Reading(
        (
            Observation(
                f"{A}/boot_lock",
                Said.HELD,
                Order(
                    A,
                    BOOT,
                    "bootlock: case 4711",
                    case="case 4711",
                    on_running=OnRunning.SHUTDOWN,
                    grace=30,
                    isolate=True,
                    placed_by="nova",
                ),
            ),
        ),
        whole=True,
        revision=iso(START),
    )


def test_a_customers_lock_is_a_state_lock_whatever_its_reason_says() -> None:
    fake = FakeNova(FakeServer(A, "owner", "bootlock: I know how this works"))
    (seen,) = source(fake).read(Known()).observations
    assert seen.ref == f"{A}/state_lock"
    assert seen.order
    assert seen.order.kind is STATE
    assert seen.order.on_running is OnRunning.LEAVE


@pytest.mark.parametrize(
    ("by", "reason", "settings", "kind"),
    [
        ("admin", "maintenance", {}, None),
        ("admin", None, {}, None),
        ("admin", "maintenance", {"other_admin_locks": LockMeans.STATE_LOCK}, STATE),
        ("admin", None, {"reason_prefix": ""}, BOOT),
        ("admin", "due: 4711", {"reason_prefix": "due:"}, BOOT),
        ("admin", "bootlock: 4711", {"reason_prefix": "due:"}, None),
        ("owner", None, {}, STATE),
        ("owner", "mine", {"customer_locks": LockMeans.NOTHING}, None),
        ("owner", "mine", {"reason_prefix": ""}, STATE),
        (None, None, {"reason_prefix": ""}, None),
    ],
)
def test_the_settings_say_what_a_lock_means(
    by: str | None, reason: str | None, settings: dict[str, Any], kind: Kind | None
) -> None:
    fake = FakeNova(FakeServer(A, by, reason))
    reading = source(fake, replace(SETTINGS, **settings)).read(Known())
    assert [o.order.kind for o in reading.observations if o.order] == ([kind] if kind else [])
    assert not reading.faults


def test_only_servers_of_this_host_count_unless_all_do() -> None:
    fake = FakeNova(
        FakeServer(A, "admin", "bootlock: a"),
        FakeServer(B, "admin", "bootlock: b", host="elsewhere"),
    )
    assert sayings(source(fake).read(Known())) == {f"{A}/boot_lock": Said.HELD}
    assert fake.questions(locked_by="admin", host=HOST)
    named = replace(SETTINGS, compute_host="elsewhere")
    assert sayings(source(fake, named).read(Known())) == {f"{B}/boot_lock": Said.HELD}
    everywhere = replace(SETTINGS, scope=NovaScope.CLOUD)
    assert len(source(fake, everywhere).read(Known()).observations) == 2


@given(st.text(max_size=255))
def test_whatever_the_reason_is_the_order_is_one_that_can_be_placed(text: str) -> None:
    fake = FakeNova(FakeServer(A, "admin", "bootlock:" + text), FakeServer(B, "owner", text))
    observations = source(fake).read(Known()).observations
    assert len(observations) == 2
    for observation in observations:
        order = observation.order
        assert order
        NewHold(order.instance, order.reason, order.placed_by, order.kind, case=order.case)


# -- what ends a hold ---------------------------------------------------------------------------


def test_an_unlocked_server_is_released_by_what_nova_says_of_that_very_server() -> None:
    fake = FakeNova(FakeServer(A))
    (seen,) = source(fake).read(known(f"{A}/boot_lock")).observations
    assert seen.said is Said.RELEASED
    assert seen.evidence == (
        f"GET /servers/detail?uuid={A} at 2.75: locked: false,"
        f" updated {iso(START - 86400)}, on compute.test"
    )


def test_both_holds_of_an_unlocked_server_are_released() -> None:
    reading = source(FakeNova(FakeServer(A))).read(known(f"{A}/boot_lock", f"{A}/state_lock"))
    assert sayings(reading) == dict.fromkeys((f"{A}/boot_lock", f"{A}/state_lock"), Said.RELEASED)


def test_a_boot_lock_ends_where_the_lock_is_the_customers_now() -> None:
    fake = FakeNova(FakeServer(A, "owner", "mine"))
    expected = {f"{A}/boot_lock": Said.RELEASED, f"{A}/state_lock": Said.HELD}
    assert sayings(source(fake).read(known(f"{A}/boot_lock"))) == expected
    # Nor need the customers' locks mean anything here.
    ignoring = replace(SETTINGS, customer_locks=LockMeans.NOTHING)
    (seen,) = source(fake, ignoring).read(known(f"{A}/boot_lock")).observations
    assert seen.said is Said.RELEASED
    assert "locked_by=owner: the customer's lock" in seen.evidence


def test_a_state_lock_gives_way_to_a_boot_lock() -> None:
    fake = FakeNova(FakeServer(A, "admin", "bootlock: 1"))
    expected = {f"{A}/boot_lock": Said.HELD, f"{A}/state_lock": Said.RELEASED}
    assert sayings(source(fake).read(known(f"{A}/state_lock"))) == expected


def test_another_reason_is_no_release() -> None:
    fake = FakeNova(FakeServer(A, "admin", "maintenance"))
    (seen,) = source(fake).read(known(f"{A}/boot_lock")).observations
    assert seen.said is Said.UNKNOWN
    assert f"server {A} was locked by admin, but not as a boot_lock" in seen.problem


# -- what ends none -----------------------------------------------------------------------------


def gone(fake: FakeNova) -> None:
    del fake.servers[A]


def deleted(fake: FakeNova) -> None:
    fake.delete(A)


def cell_down(fake: FakeNova) -> None:
    fake.cell_is_down = True


def without_lock(fake: FakeNova) -> None:
    fake.servers[A].odd = {"locked": ...}


def of_an_older_microversion(fake: FakeNova) -> None:
    fake.servers[A].odd = {"locked_reason": ...}


def in_an_unknown_state(fake: FakeNova) -> None:
    fake.servers[A].status = "UNKNOWN"


def with_a_word_for_locked(fake: FakeNova) -> None:
    fake.servers[A].odd = {"locked": "false"}


def locked_by_who_knows(fake: FakeNova) -> None:
    fake.servers[A].odd = {"locked": True}


def answering_for_another(fake: FakeNova) -> None:
    fake.servers[A].odd = {"id": B}


def not_answered_for(fake: FakeNova) -> None:
    fake.before = lambda query: refusing(500) if "uuid" in query else None


def timed_out_for(fake: FakeNova) -> None:
    fake.before = lambda query: unreachable(query) if "uuid" in query else None


@pytest.mark.parametrize(
    "fault",
    [
        gone,
        deleted,
        cell_down,
        without_lock,
        of_an_older_microversion,
        in_an_unknown_state,
        with_a_word_for_locked,
        locked_by_who_knows,
        answering_for_another,
        not_answered_for,
        timed_out_for,
    ],
    ids=lambda fault: fault.__name__,
)
@pytest.mark.parametrize("ref", [f"{A}/boot_lock", f"{A}/state_lock"])
def test_what_nova_does_not_say_ends_no_hold(ref: str, fault: Callable[[FakeNova], None]) -> None:
    fake = FakeNova(FakeServer(A))
    fault(fake)
    (seen,) = source(fake).read(known(ref)).observations
    assert (seen.ref, seen.said) == (ref, Said.UNKNOWN)
    assert A in seen.problem


def of_any(answer: Answer) -> Callable[[Mapping[str, str]], Answer]:
    return lambda _query: answer


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (of_any(refusing(401)), "401"),
        (of_any(refusing(403, "Policy doesn't allow it")), "403: Policy doesn't allow it"),
        (of_any(refusing(406)), "406"),
        (of_any(refusing(500)), "500"),
        (of_any(Answer(503, None)), "503: nothing"),
        (of_any(Answer(200, None)), "200"),
        (of_any(Answer(200, [])), "200"),
        (of_any(Answer(200, {})), "no list"),
        (of_any(Answer(200, {"servers": {"id": A}})), "no list"),
        (of_any(Answer(302, None)), "302"),
        (unreachable, "timed out"),
    ],
)
@pytest.mark.parametrize("which", ["all", "admin", "owner"])
def test_a_list_that_can_not_be_had_is_an_error(
    which: str, before: Callable[[Mapping[str, str]], Answer | None], says: str
) -> None:
    fake = FakeNova(FakeServer(A))
    fake.before = lambda query: before(query) if which in ("all", query.get("locked_by")) else None
    with pytest.raises(SourceError, match=says) as caught:
        source(fake).read(known(f"{A}/boot_lock"))
    assert str(caught.value).startswith("nova: ")


def test_dropped_filters_are_an_error_even_where_every_server_is_locked() -> None:
    fake = FakeNova(FakeServer(A, "owner", "bootlock: not an admin's"))
    fake.drops_filters = True
    with pytest.raises(SourceError, match="ignores the filters") as caught:
        source(fake).read(known(f"{B}/boot_lock"))
    assert "allow_all_filters" in caught.value.hint


def test_a_server_that_moved_away_locked_stays_held() -> None:
    fake = FakeNova(FakeServer(A, "admin", "bootlock: 1", host="elsewhere"))
    assert sayings(source(fake).read(known(f"{A}/boot_lock"))) == {f"{A}/boot_lock": Said.HELD}


@pytest.mark.parametrize("row", [None, 3, [], {}, {"id": 3}, {"id": "../x"}, {"id": A.upper()[:9]}])
def test_a_row_that_is_no_server_is_a_fault_and_the_others_count(row: Any) -> None:
    fake = FakeNova(FakeServer(A, "admin", "bootlock: 1"))
    listed = fake.get("/servers/detail", {"limit": "9", "locked_by": "admin"})
    listed.body["servers"].insert(0, row)
    fake.before = lambda query: listed if query.get("locked_by") == "admin" else None
    reading = source(fake).read(Known())
    assert sayings(reading) == {f"{A}/boot_lock": Said.HELD}
    assert len(reading.faults) == 1


# -- many ---------------------------------------------------------------------------------------


def many(count: int) -> list[FakeServer]:
    return [FakeServer(uuid(n), "admin", "bootlock: n") for n in range(count)]


@pytest.mark.parametrize("count", [0, 9, 10, 11, 20, 35])
def test_all_pages_are_read_however_short_nova_makes_them(count: int) -> None:
    fake = FakeNova(*many(count), max_limit=10)
    assert len(said(source(fake).read(Known()))) == count


def test_a_list_is_begun_anew_when_the_server_at_a_pages_end_is_deleted() -> None:
    fake = FakeNova(*many(25), max_limit=10)

    def deleting(query: Mapping[str, str]) -> None:
        if query.get("marker") == uuid(9):
            fake.delete(uuid(9))

    fake.before = deleting
    assert len(said(source(fake).read(Known()))) == 24


def test_a_list_that_never_ends_is_an_error() -> None:
    fake = FakeNova(*many(25), max_limit=10)
    gone = refusing(400, "marker [x] not found")
    fake.before = lambda query: gone if "marker" in query else None
    with pytest.raises(SourceError, match="changes faster"):
        source(fake).read(Known())
    same = FakeNova(*many(25), max_limit=10)
    page = same.get("/servers/detail", {"limit": "10"})
    same.before = lambda query: None if query["limit"] == "1" else page
    with pytest.raises(SourceError, match="order"):
        source(same).read(Known())


def test_servers_in_no_list_are_asked_for_a_few_at_a_time_until_all_were() -> None:
    count = ASKS * 2 + 5
    fake = FakeNova(*(FakeServer(uuid(n)) for n in range(count)))
    refs = {f"{uuid(n)}/boot_lock" for n in range(count)}
    reader = source(fake)
    released: set[str] = set()
    for expected in (ASKS, ASKS * 2, count):
        fake.asked.clear()
        reading = reader.read(known(*refs - released))
        assert reading.whole
        assert said(reading).keys() == refs - released
        assert sum("uuid" in asked for asked in fake.asked) <= ASKS
        released |= {ref for ref, what in sayings(reading).items() if what is Said.RELEASED}
        assert len(released) == expected


def test_of_servers_that_are_gone_for_good_each_is_asked_for_in_its_turn() -> None:
    count = ASKS + 10
    fake = FakeNova()
    reader = source(fake)
    refs = [f"{uuid(n)}/boot_lock" for n in range(count)]
    for _ in range(2):
        assert set(sayings(reader.read(known(*refs))).values()) == {Said.UNKNOWN}
    asked = [query["uuid"] for query in fake.asked if "uuid" in query]
    assert len(asked) == ASKS * 2
    assert set(asked) == {uuid(n) for n in range(count)}


@pytest.mark.parametrize("by", [None, "owner"])
def test_evidence_is_never_repeated_without_asking_again(by: str | None) -> None:
    """A release that the guard stopped waits; what was true then need not be when it is let go."""
    count = ASKS + 10
    fake = FakeNova(*(FakeServer(uuid(n), by) for n in range(count)))
    reader = source(fake, replace(SETTINGS, customer_locks=LockMeans.NOTHING))
    refs = [f"{uuid(n)}/boot_lock" for n in range(count)]
    first = sayings(reader.read(known(*refs)))
    for server in fake.servers.values():
        fake.lock(server.uuid, "admin", "bootlock: again")
        server.host = "elsewhere"
    second = sayings(reader.read(known(*refs)))
    assert Said.RELEASED in first.values()
    assert Said.RELEASED not in second.values()


def test_when_nobody_answers_the_rest_is_not_asked_for() -> None:
    fake = FakeNova()
    fake.before = lambda query: unreachable(query) if "uuid" in query else None
    reading = source(fake).read(known(*(f"{uuid(n)}/boot_lock" for n in range(40))))
    assert sum("uuid" in asked for asked in fake.asked) == nova.PATIENCE
    assert len(sayings(reading)) == 40
    assert set(sayings(reading).values()) == {Said.UNKNOWN}
    assert len(reading.faults) == nova.PATIENCE


def test_a_nova_that_is_slow_is_not_asked_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "ASKING", 0)
    fake = FakeNova(FakeServer(A))
    (seen,) = source(fake).read(known(f"{A}/boot_lock")).observations
    assert (seen.said, seen.problem) == (Said.UNKNOWN, f"server {A}: not asked for yet")


def test_after_a_fault_the_accounts_are_read_again() -> None:
    fake = FakeNova()
    reader = source(fake)
    reader.read(Known())
    reader.read(Known())
    assert fake.connections == 1
    fake.before = of_any(refusing(401))
    with pytest.raises(SourceError):
        reader.read(Known())
    fake.before = lambda _query: None
    reader.read(Known())
    assert fake.connections == 2


# -- changes ------------------------------------------------------------------------------------


class Follower:
    """A source that is followed, one look at a time, and what it knows by then."""

    def __init__(self, fake: FakeNova, settings: Nova = SETTINGS, *refs: str) -> None:
        self.fake = fake
        self.held = dict(known(*refs).held)
        self._readings = source(fake, settings, interval=0.001).follow(
            Known(held=self.held), threading.Event()
        )

    def look(self) -> Reading:
        self.fake.asked.clear()
        reading = next(self._readings)
        for ref, seen in said(reading).items():
            if seen.order:
                self.held[ref] = seen.order
            elif seen.said is Said.RELEASED:
                self.held.pop(ref, None)
        return reading


def test_between_two_full_looks_only_what_changed_is_asked_for() -> None:
    fake = FakeNova(*many(30), FakeServer(A), FakeServer(B))
    follower = Follower(fake)
    assert len(follower.look().observations) == 30
    fake.now += 60
    assert follower.look() == Reading((), False, iso(fake.now))
    assert len(fake.asked) == 1
    fake.now += 60
    fake.lock(A, "admin", "bootlock: 1")
    fake.lock(B, "owner", "mine")
    fake.unlock(uuid(7))
    assert sayings(follower.look()) == {
        f"{A}/boot_lock": Said.HELD,
        f"{B}/state_lock": Said.HELD,
        f"{uuid(7)}/boot_lock": Said.RELEASED,
    }
    assert fake.questions(locked_by="admin", limit="1000") == 0, "no full look"
    fake.now += 60
    assert follower.look().observations == ()
    assert len(fake.asked) == 1, "what was seen in the overlap is not asked for again"


def test_the_clocks_of_novas_machines_may_differ_by_the_overlap() -> None:
    fake = FakeNova(FakeServer(A))
    follower = Follower(fake)
    follower.look()
    fake.now += 60
    fake.lock(A, "admin", "bootlock: 1")
    fake.servers[A].updated -= 350  # written by a machine whose clock is behind
    assert sayings(follower.look()) == {f"{A}/boot_lock": Said.HELD}


def test_novas_clock_counts_and_not_this_hosts() -> None:
    fake = FakeNova(FakeServer(A))
    follower = Follower(fake)  # its host thinks that it is 1970
    assert follower.look().revision == iso(START)
    follower.look()
    assert fake.questions(**{"changes-since": iso(START - 300)})


def test_a_change_that_could_not_be_asked_for_is_not_lost() -> None:
    fake = FakeNova(FakeServer(A, "admin", "bootlock: 1"))
    reader = source(fake)
    first = reader.read(Known())
    held = known(f"{A}/boot_lock")
    fake.now += 60
    fake.unlock(A)
    fake.before = lambda query: refusing(503) if "uuid" in query else None
    with pytest.raises(SourceError, match="503"):
        reader.changes(held, first.revision)
    fake.before = lambda _query: None
    second = reader.changes(held, first.revision)
    assert second
    assert sayings(second) == {f"{A}/boot_lock": Said.RELEASED}


def test_a_deleted_server_keeps_its_hold() -> None:
    fake = FakeNova(FakeServer(A, "admin", "bootlock: 1"))
    follower = Follower(fake)
    follower.look()
    fake.now += 60
    fake.delete(A)
    assert follower.look().observations == ()
    assert fake.questions(uuid=A) == 0


def test_very_many_changes_are_a_full_look() -> None:
    fake = FakeNova()
    follower = Follower(fake)
    follower.look()
    fake.now += 60
    for server in many(ASKS + 1):
        fake.servers[server.uuid] = server
        server.updated = fake.now
    reading = follower.look()
    assert reading.whole
    assert len(reading.observations) == ASKS + 1
    assert not follower.look().whole, "the overlap brings the same changes again, and no full look"


def test_everything_is_looked_at_again_after_a_while() -> None:
    fake = FakeNova(FakeServer(A, "admin", "bootlock: 1"))
    follower = Follower(fake, replace(SETTINGS, full_interval=0))
    assert [follower.look().whole for _ in range(3)] == [True] * 3


def test_following_ends_when_told_to() -> None:
    stop = threading.Event()
    readings = source(FakeNova(), interval=60).follow(Known(), stop)
    next(readings)
    stop.set()
    assert list(readings) == []


# -- openstacksdk -------------------------------------------------------------------------------


def test_openstacksdk_is_loaded_by_nobody_who_has_not_set_nova_up() -> None:
    """It is large, and it may be absent: this test knows it by its absence or by its name."""
    loaded = "import sys, bootlockd.sources.registry; print('openstack' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_without_openstacksdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openstack", None)
    monkeypatch.setitem(sys.modules, "openstack.config", None)
    with pytest.raises(SourceError, match="openstacksdk is not installed") as caught:
        NovaSource(SETTINGS, host=HOST).read(Known())
    assert "bootlock[nova]" in caught.value.hint
