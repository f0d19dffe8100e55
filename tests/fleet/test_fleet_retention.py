"""Retention in the registry: what place, retain and release write there, and what a host makes
of it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from bootlock.main import main
from bootlockd.fleet.client import Client
from bootlockd.fleet.facts import Facts
from bootlockd.fleet.follower import Follower
from bootlockd.fleet.history import Standing
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.lease import Office, TermClient
from bootlockd.fleet.records import BadRecord, Record, Release, decoded, encoded
from bootlockd.fleet.registry import Registry, record_of
from bootlockd.relayservice import RegistryWriter
from bootlockd.sources.base import Order
from etcdcluster import Cluster
from lockdb.errors import AlreadyEnded, InvalidValue, Retained
from lockdb.values import Kind, Retention
from samples import HELD, NOW, OTHER
from sources.said import in_force, take

DAY = 86400
COMPLIANCE, GOVERNANCE = Retention.COMPLIANCE, Retention.GOVERNANCE
A_HOLD_ID = "0123456789abcdef"


def order(mode: Retention = COMPLIANCE, days: int = 30) -> Order:
    return Order(
        HELD, Kind.BOOT_LOCK, "court", "no", placed_by="a", retain_until=NOW + days * DAY,
        retention=mode, preserve=True,
    )  # fmt: skip


@pytest.mark.parametrize("mode", Retention)
def test_a_record_has_it_and_comes_back_as_it_was(mode: Retention) -> None:
    record = Record(A_HOLD_ID, order(mode), NOW)
    assert decoded(A_HOLD_ID, encoded(record)) == record
    ended = Record(A_HOLD_ID, order(mode), NOW, Release("a", NOW, "x", override=True))
    assert decoded(A_HOLD_ID, encoded(ended)) == ended


def test_a_record_that_says_it_wrongly_is_not_read_as_none() -> None:
    for wrong in (
        {"retention": "soft"},
        {"retain_until": "soon"},
        {"retain_until": -1},
        {"until": NOW},
    ):
        value = json.loads(encoded(Record(A_HOLD_ID, order(), NOW)))
        value["order"] |= wrong
        with pytest.raises(BadRecord):
            decoded(A_HOLD_ID, json.dumps(value).encode())


def test_the_registry_says_at_once_that_it_is_retained(registry: Registry) -> None:
    strong = registry.place(order(), now=NOW)
    weak = registry.place(order(GOVERNANCE), now=NOW)
    with pytest.raises(Retained):
        registry.release(weak.id, reason="x", by="a", now=NOW)
    with pytest.raises(Retained):
        registry.release(strong.id, reason="x", by="a", now=NOW, override=True)
    entry = registry.release(weak.id, reason="x", by="a", now=NOW, override=True)
    assert entry.record
    assert entry.record.released == Release("a", NOW, "x", override=True)
    registry.release(strong.id, reason="x", by="a", now=NOW + 30 * DAY)


def test_it_is_put_off_in_the_registry_and_never_brought_forward(registry: Registry) -> None:
    entry = registry.place(order(GOVERNANCE), now=NOW)
    later = registry.retain(entry.id, NOW + 40 * DAY, COMPLIANCE, now=NOW)
    assert later.record
    assert later.record.order == order(days=40)
    assert later.revision > entry.revision
    assert registry.retain(entry.id, NOW + 40 * DAY, None, now=NOW).revision == later.revision
    with pytest.raises(Retained):
        registry.retain(entry.id, NOW + 39 * DAY, None, now=NOW)
    with pytest.raises(Retained):
        registry.retain(entry.id, None, GOVERNANCE, now=NOW)
    ending = registry.place(Order(HELD, Kind.BOOT_LOCK, "x", placed_by="a", until=NOW + 9), now=NOW)
    with pytest.raises(InvalidValue):
        registry.retain(ending.id, NOW + DAY, None, now=NOW)
    registry.release(ending.id, reason="x", by="a", now=NOW)
    with pytest.raises(AlreadyEnded):
        registry.retain(ending.id, NOW + DAY, None, now=NOW)


def test_a_host_keeps_what_a_registry_releases_before_its_date(
    registry: Registry, client: Client, keys: Keys, path: Path
) -> None:
    """Whoever wrote the release: this one goes past every check, as etcdctl would."""
    strong = registry.place(order(), now=NOW)
    weak = registry.place(order(GOVERNANCE), now=NOW)
    follower = Follower(client, keys, "h1", Facts(path, "h1", 1), Standing(), set())
    take(path, follower.look(), source="etcd")
    before = {hold.id: hold for hold in in_force(path, "etcd")}
    assert before.keys() == {strong.id, weak.id}
    assert record_of(before[strong.id]).order == order()
    for hold_id in (strong.id, weak.id):
        record = Record(hold_id, order(), NOW, Release("thief", NOW, "x", override=True))
        _, there = client.get(keys.hold(hold_id))
        assert there
        client.write(keys.hold(hold_id), encoded(record), mod=there.mod)
    made = take(path, follower.look(), source="etcd")
    assert [hold.id for hold in in_force(path, "etcd")] == [strong.id]
    assert [ending.hold_id for ending in made.retained] == [strong.id]


def test_a_relay_that_releases_what_was_retained_meanwhile_goes_on(
    registry: Registry, client: Client, keys: Keys, cluster: Cluster
) -> None:
    entry = registry.place(order(), now=NOW)
    office = Office(client, keys.lead("nova"), name="a", ttl=60)
    assert office.ask()
    assert office.term
    with closing(TermClient(cluster.settings())) as writes:
        writer = RegistryWriter(writes, keys)
        writer.begin(office.term)
        writer.release(entry.id, reason="unlocked", by="relay:nova", now=NOW)
        (standing,) = writer.standing()
        assert (standing.ended_at, standing.order) == (None, order())
        writer.release(entry.id, reason="unlocked", by="relay:nova", now=NOW + 30 * DAY)
        (standing,) = writer.standing()
        assert standing.ended_at == NOW + 30 * DAY


def less(**changes: object) -> Order:
    return replace(order(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "written",
    [
        less(retain_until=None, retention=None),
        less(retain_until=NOW + DAY),
        less(retention=GOVERNANCE),
        less(retain_until=None, retention=None, until=NOW + DAY),
        less(kind=Kind.STATE_LOCK),
        less(blocks="delete"),
        less(preserve=False),
        less(instance=OTHER),
        None,
    ],
    ids=repr,
)
def test_a_host_keeps_what_a_registry_makes_less_or_loses(
    registry: Registry, client: Client, keys: Keys, path: Path, written: Order | None
) -> None:
    """Past every check, as etcdctl would; None: the key is deleted."""
    entry = registry.place(order(), now=NOW)
    follower = Follower(client, keys, "h1", Facts(path, "h1", 1), Standing(), set())
    take(path, follower.look(), source="etcd")
    before = in_force(path, "etcd")
    _, there = client.get(keys.hold(entry.id))
    assert there
    if written is None:
        assert client.delete({there.key: there.mod}, unless_new=keys.hosts, since=2**60)
    else:
        client.write(there.key, encoded(Record(entry.id, written, NOW)), mod=there.mod)
    for _ in range(2):
        take(path, follower.look(), source="etcd")
        assert in_force(path, "etcd") == before
    # What it has lost is written back as this host has it, date and all.
    if written is None:
        assert registry.restate(record_of(before[0]))
        (again,) = registry.holds()
        assert again.record == entry.record


def test_by_the_cli(settings_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def cli(*words: str) -> int:
        capfd.readouterr()
        database = str(tmp_path / "none.db")
        return main(["--database", database, "--config", str(settings_file), *words, "--fleet"])

    why = ["--reason", "court"]
    assert cli("place", HELD, *why, "--retain-until", "30d", "--no-wait", "--json") == 0
    hold = json.loads(capfd.readouterr().out)
    assert hold["retention"] == "governance"
    assert cli("retain", hold["id"][:8], "--until", "2h") == 4
    assert cli("retain", hold["id"][:8], "--until", "40d", "--mode", "compliance", "--json") == 0
    assert json.loads(capfd.readouterr().out)["retain_until"] > hold["retain_until"]
    assert cli("show", hold["id"]) == 0
    assert "retention:" in capfd.readouterr().out
    for more in ([], ["--override"]):
        assert cli("release", hold["id"], *why, *more) == 4
    assert cli("release", "--instance", HELD, "--all", *why) == 4
    assert cli("retain", hold["id"], "--until", "50d", "--reason", "x") == 2
