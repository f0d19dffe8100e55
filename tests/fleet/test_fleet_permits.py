"""A permit in the registry lets one operation through on every host, for its time and no longer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootlock.main import main
from bootlockd.config import Fleet
from bootlockd.fleet.client import Client
from bootlockd.fleet.follower import Rows
from bootlockd.fleet.history import Standing, Suspicion
from bootlockd.fleet.hosts import Report, encoded
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.records import (
    BadRecord,
    FutureRecord,
    PermitRecord,
    Release,
    decoded_permit,
    encoded_permit,
)
from bootlockd.fleet.registry import Registry
from bootlockd.fleet.wire import Event, KeyValue
from bootlockd.sources.base import Order, Revocation
from database.soundness import assert_whole, log
from etcdcluster import Cluster
from fleet.follower import Follower
from lockdb import database, permits
from lockdb.decision import Verdict, decide, minimal_document
from lockdb.errors import AlreadyEnded, AmbiguousPrefix, InvalidValue, NotFound
from lockdb.values import PERMIT_MAX, Kind, Operation, Permit
from samples import HELD
from waiting import wait_until

DAY = 86400
ID = "0123456789abcdef"
PERMIT = Permit(ID, HELD, Operation.START, "for the court", 1000, "alice", 2000, None, None)
REVOKED = PermitRecord(ID, PERMIT, Release("bob", 1500, "done"))


def new(**fields: Any) -> Permit:
    now = int(time.time())
    made = permits.new(
        HELD, Operation.START, until=now + DAY, reason="for the court", by="alice", now=now
    )
    return replace(made, **fields)


def value(record: PermitRecord = REVOKED, **more: Any) -> bytes:
    fields = json.loads(encoded_permit(record))
    for name, put in more.items():
        at, _, last = name.rpartition("__")
        (fields[at] if at else fields)[last] = put
    return json.dumps(fields).encode()


# -- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record", [PermitRecord(ID, PERMIT), REVOKED, replace(REVOKED, permit=None)]
)
def test_a_record_is_read_as_it_was_written(record: PermitRecord) -> None:
    assert decoded_permit(ID, encoded_permit(record)) == record


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"state": "suspended"}, "neither granted nor revoked"),
        ({"permit__until": 1000 + PERMIT_MAX + 1}, "at most"),
        ({"permit__until": 1000}, "at most"),
        ({"permit__granted_at": True}, "granted_at"),
        ({"permit__operation": "destroy"}, "operation"),
        ({"permit__instance": "b00710c4-0000-4000-8000-000000000001"}, "canaries"),
        ({"permit__reason": ""}, "reason"),
        ({"permit__granted_by": "a\nb"}, "granted_by"),
        ({"permit": None}, "permit: missing"),
        ({"id": "0123456789abcdee"}, "not that of its key"),
    ],
)
def test_what_is_not_in_order_grants_nothing(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRecord, match=problem):
        decoded_permit(ID, value(PermitRecord(ID, PERMIT), **more))


def test_a_newer_schema_is_not_guessed_at_even_if_it_revokes() -> None:
    with pytest.raises(FutureRecord):
        decoded_permit(ID, value(schema=2))


@given(st.binary(max_size=200))
def test_junk_is_no_permit(junk: bytes) -> None:
    with suppress(BadRecord):
        raise AssertionError(decoded_permit(ID, junk))


def test_a_registry_under_suspicion_revokes_but_grants_nothing() -> None:
    keys = Keys("p/")
    granted = KeyValue(keys.permit(ID), encoded_permit(PermitRecord(ID, PERMIT)), 5)
    revoked = replace(granted, value=encoded_permit(REVOKED))
    trusted = Rows(keys, Standing(), set())
    suspected = Rows(keys, Standing(suspicion=Suspicion("s", "wiped", 1)), set())
    assert trusted.whole([], [granted], 5).permits == (PERMIT,)
    assert trusted.permits == 5
    for reading in (
        suspected.whole([], [granted], 5),
        suspected.changes([], [Event(granted, deleted=False)]),
    ):
        assert reading.permits == ()
        assert suspected.permits == 0, "nor does this host say that it took any"
    assert suspected.changes([], [Event(revoked, deleted=False)]).revocations == (
        Revocation(ID, "bob", REVOKED.evidence),
    )


def test_how_far_the_holds_are_is_not_told_by_a_permit() -> None:
    keys = Keys("p/")
    rows = Rows(keys, Standing(revision=3), set())
    item = KeyValue(keys.permit(ID), encoded_permit(PermitRecord(ID, PERMIT)), 9)
    rows.changes([], [Event(item, deleted=False)])
    assert rows.standing.revision == 3
    assert rows.permits == 0, "before everything was read"


# -- the registry ---------------------------------------------------------------------------------


def test_a_permit_is_revoked_once_by_a_beginning_of_its_id(registry: Registry) -> None:
    first, second = new(id="00000000000000aa"), new(id="00000000000000ab")
    for permit in (first, second):
        registry.grant(permit)
    now = int(time.time())
    with pytest.raises(AmbiguousPrefix):
        registry.revoke("0000", reason="done", by="bob", now=now)
    with pytest.raises(NotFound):
        registry.revoke("77", reason="done", by="bob", now=now)
    done = registry.revoke("00000000000000aa", reason="done", by="bob", now=now)
    assert done.record == PermitRecord(first.id, first, Release("bob", now, "done"))
    with pytest.raises(AlreadyEnded):
        registry.revoke(first.id, reason="again", by="eve", now=now + 1)
    with pytest.raises(AlreadyEnded):
        registry.revoke(second.id, reason="late", by="eve", now=second.until)


def test_what_nobody_can_read_can_be_revoked_but_not_what_is_from_the_future(
    registry: Registry, cluster: Cluster, keys: Keys
) -> None:
    cluster.put(keys.permit(ID).decode(), "garbage")
    done = registry.revoke(ID, reason="done", by="bob", now=1500)
    assert done.record == replace(REVOKED, permit=None)
    cluster.put(keys.permit(ID).decode(), value(schema=2))
    with pytest.raises(InvalidValue, match="upgrade"):
        registry.revoke(ID, reason="done", by="bob", now=1500)


# -- hosts ----------------------------------------------------------------------------------------


class Host(Follower):
    """A host, and what it knows of permits."""

    def permit(self, permit_id: str) -> Permit | None:
        with database.open_db(self.path, read_only=True) as lock_db:
            return permits.stored(lock_db, permit_id)

    def verdict(self, at: int) -> Verdict:
        with database.open_db(self.path, read_only=True) as lock_db:
            return decide(lock_db, minimal_document(HELD), "start", now=at).verdict

    def entries(self, event: str) -> list[dict[str, object]]:
        with database.open_db(self.path, read_only=True) as lock_db:
            return [entry for entry in log(lock_db) if entry["event"] == event]

    def until_it_has(self, permit: Permit) -> None:
        wait_until(lambda: self.permit(permit.id) == permit, f"{self.name} has {permit.id}")


@pytest.fixture
def hosts(tmp_path: Path, host_settings: list[Fleet]) -> Iterator[list[Host]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Host(tmp_path, settings)) for settings in host_settings]


Cli = Callable[..., int]


def alive(registry: Registry) -> dict[str, bool]:
    return {seen.report.name: seen.alive for seen in registry.hosts()[1]}


def until_all_follow(registry: Registry) -> None:
    wait_until(lambda: alive(registry) == {"h1": True, "h2": True}, "both say that they are there")


def held(registry: Registry, hosts: list[Host]) -> str:
    order = Order(HELD, Kind.BOOT_LOCK, "unpaid", placed_by="alice")
    hold = registry.place(order, now=int(time.time()))
    for host in hosts:
        host.until(hold.id)
    return hold.id


@pytest.fixture
def cli(settings_file: Path, tmp_path: Path) -> Cli:
    """The command on a host, or where there is none."""

    def run(host: Host | None, *words: str) -> int:
        path = host.path if host else tmp_path / "none.db"
        return main(["--database", str(path), "--config", str(settings_file), *words])

    return run


GRANT = ("permit", HELD, "--op", "start", "--for", "30m", "--reason", "court", "--fleet")


def test_by_the_cli_it_lets_a_start_through_on_all_hosts_until_its_end_or_revoked(
    hosts: list[Host], registry: Registry, cli: Cli, capfd: pytest.CaptureFixture[str]
) -> None:
    held(registry, hosts)
    assert [cli(host, "check", HELD) for host in hosts] == [1, 1]
    until_all_follow(registry)
    capfd.readouterr()
    assert cli(None, *GRANT, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["hosts"], said["taken"], said["missing"]) == (2, 2, {})
    # It has waited: nobody has to.
    permit = hosts[0].permit(said["id"])
    assert permit
    for host in hosts:
        assert host.permit(permit.id) == permit
        assert cli(host, "check", HELD) == 0
        assert host.verdict(permit.until - 1) is Verdict.ALLOW
        assert host.verdict(permit.until) is Verdict.REFUSE
        assert host.verdict(permit.granted_at - 1) is Verdict.REFUSE
    assert cli(None, "permit", "--revoke", permit.id[:8], "--reason", "done", "--fleet") == 0
    assert "taken by 2 of 2 hosts" in capfd.readouterr().out
    for host in hosts:
        assert cli(host, "check", HELD) == 1, "it is refused again"
        (entry,) = host.entries("permitted")
        assert (entry["id"], entry["source"]) == (permit.id, "etcd")
        (entry,) = host.entries("permit_revoked")
        assert str(entry["reason"]).startswith("revoked in the registry at ")
    assert cli(None, "permit", "--revoke", permit.id, "--reason", "again", "--fleet") == 3


def test_who_has_not_taken_it_is_named_and_whether_he_lives_decides(
    hosts: list[Host],
    registry: Registry,
    keys: Keys,
    client: Client,
    cli: Cli,
    capfd: pytest.CaptureFixture[str],
) -> None:
    until_all_follow(registry)
    hosts[1].stop()
    wait_until(lambda: not alive(registry)["h2"], "its sign of life ends")
    capfd.readouterr()
    assert cli(None, *GRANT) == 0
    said = capfd.readouterr()
    assert "taken by 1 of 2 hosts" in said.out
    assert "not by h2" in said.err
    # One that lives and takes none, like those that trust this registry no more.
    idle = Report("h3", at=1, cluster=registry.hosts()[0], applied=10**9, permits=0)
    client.write(keys.host("h3"), encoded(idle, run="r", nonce=1), mod=0)
    client.write(keys.alive("h3"), b"", mod=0)
    assert cli(None, *GRANT, "--timeout", "1", "--json") == 1
    said = json.loads(capfd.readouterr().out)
    assert said["missing"]["h3"] == "has not taken it"
    assert cli(None, *GRANT, "--no-wait", "--json") == 0
    last = json.loads(capfd.readouterr().out)
    assert cli(None, "permit", "--revoke", last["id"], "--reason", "r", "--fleet", "--no-wait") == 0


def test_the_registrys_permits_are_listed_with_what_became_of_each(
    registry: Registry,
    keys: Keys,
    cluster: Cluster,
    cli: Cli,
    capfd: pytest.CaptureFixture[str],
) -> None:
    now = int(time.time())
    active, over, ended = new(), new(granted_at=1000, until=2000), new()
    for permit in (active, over, ended):
        registry.grant(permit)
    registry.revoke(ended.id, reason="done", by="bob", now=now)
    cluster.put(keys.permit(ID).decode(), "garbage")
    capfd.readouterr()

    def listed(*words: str) -> dict[str, dict[str, Any]]:
        assert cli(None, "fleet", "permits", "--json", *words) == 0
        return {each["id"]: each for each in json.loads(capfd.readouterr().out)}

    assert {one: each["state"] for one, each in listed().items()} == {
        active.id: "active",
        ID: "unreadable",
    }
    found = listed("--all")
    assert {one: each["state"] for one, each in found.items()} == {
        active.id: "active",
        over.id: "expired",
        ended.id: "revoked",
        ID: "unreadable",
    }
    assert (found[ended.id]["revoked_by"], found[ended.id]["revoke_reason"]) == ("bob", "done")
    assert (found[active.id]["instance"], found[active.id]["operation"]) == (HELD, "start")
    assert cli(None, "fleet", "permits", "--all") == 0
    said = capfd.readouterr().out
    assert said.count("for the court") == 3
    assert "not JSON" in said


def test_a_replay_grants_nothing_anew_and_nothing_longer(
    hosts: list[Host], registry: Registry, keys: Keys, cluster: Cluster
) -> None:
    host = hosts[0]
    held(registry, hosts)
    permit, ended_here = new(), new()
    over = new(granted_at=1000, until=2000)
    for each in (permit, over, ended_here):
        registry.grant(each)
    host.until_it_has(ended_here)
    with database.open_db(host.path) as lock_db:
        now = int(time.time())
        for each in (permit, ended_here):
            permits.revoke(lock_db, each.id, reason="not on this host", by="carol", now=now)
    host.stop()
    longer = PermitRecord(permit.id, replace(permit, until=permit.until + DAY))
    cluster.put(keys.permit(permit.id).decode(), encoded_permit(longer))
    host.start()
    last = new(instance="00000000-0000-4000-8000-000000000001")
    registry.grant(last)
    host.until_it_has(last)
    wait_until(lambda: f"permit {permit.id}: it is another here" in host.faults(), "it is said")
    assert host.permit(over.id) is None
    assert host.verdict(now) is Verdict.REFUSE
    ids = [entry["id"] for entry in host.entries("permitted")]
    assert ids == [permit.id, ended_here.id, last.id]
    # Nor does it last longer where it was not ended.
    assert hosts[1].permit(permit.id) == permit
    assert_whole(host.path)


def test_garbage_grants_nothing_is_said_and_keeps_no_other_from_working(
    hosts: list[Host], registry: Registry, keys: Keys, cluster: Cluster
) -> None:
    host = hosts[0]
    hold = held(registry, hosts)
    future = replace(new(), id=ID)
    cluster.put(keys.permit(ID).decode(), value(PermitRecord(ID, future), schema=2))
    cluster.put(keys.permit("x" * 16).decode(), b"\xff{")
    wait_until(lambda: host.state().faults.count == 2, "both are said")
    assert f"permit {ID}: its value can't be read, it grants nothing: schema 2" in host.faults()
    assert host.verdict(int(time.time())) is Verdict.REFUSE
    wait_until(lambda: len(registry.host("h1").trouble) == 2, "the fleet is told")
    sound = new()
    registry.grant(sound)
    host.until_it_has(sound)
    assert host.permit(ID) is None
    assert host.holds() == {hold}
    # Mended, it grants; deleted, it is no fault any more, and what was granted goes on.
    cluster.put(keys.permit(ID).decode(), encoded_permit(PermitRecord(ID, future)))
    host.until_it_has(future)
    cluster.ctl("del", keys.permit("x" * 16).decode())
    cluster.ctl("del", keys.permit(ID).decode())
    wait_until(lambda: not host.faults(), "nothing is wrong")
    assert host.permit(ID) == future
