"""Only keys that tell nobody anything any more go from the registry."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootlock.app import App
from bootlock.main import main
from bootlockd.config import Fleet
from bootlockd.fleet import records
from bootlockd.fleet.client import Client
from bootlockd.fleet.hosts import MOST, Report, encoded
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.pruning import Pruner, plan, pruned_before
from bootlockd.fleet.records import PermitRecord, Record, Release
from bootlockd.fleet.registry import Entry, PermitEntry, Registry, Seen
from bootlockd.sources.base import Order
from fleet.follower import Follower
from lockdb import permits
from lockdb.errors import InvalidValue, NotNow
from lockdb.values import PERMIT_MAX, Kind, Operation, Permit, Retention
from samples import HELD
from waiting import wait_until

DAY = 86400
ID = "0123456789abcdef"
ORDER = Order(HELD, Kind.BOOT_LOCK, "r", placed_by="alice")
RELEASED = Entry(ID, 50, Record(ID, ORDER, 1, Release("bob", 1000, "paid")))
ENDED = Report("h", at=1, cluster="c", applied=50)


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (ENDED, ""),
        (replace(ENDED, applied=49), "has not applied it"),
        (replace(ENDED, cluster="d"), "has not applied it"),
        (replace(ENDED, unread=[ID]), "can't read it"),
        (replace(ENDED, waiting=[ID]), "keeps it until an admin accepts that so many end"),
        (replace(ENDED, waiting=["f" * 16]), ""),
        (replace(ENDED, waiting=["f" * 16] * MOST), "has more troubles than it can name"),
        (replace(ENDED, problem="garbled"), "garbled"),
    ],
)
@pytest.mark.parametrize("alive", [True, False])
def test_a_released_hold_goes_when_every_host_says_that_it_has_ended_it(
    report: Report, why: str, alive: bool
) -> None:
    seen = [Seen(replace(ENDED, name="other"), True), Seen(report, alive)]
    made = plan([RELEASED], [], "c", seen, before=1001)
    assert made.kept == ({ID: {"h": why}} if why else {})
    assert list(made.holds) == ([] if why else [RELEASED])


@pytest.mark.parametrize(
    "entry",
    [
        replace(RELEASED, record=Record(ID, ORDER, 1)),
        replace(RELEASED, record=Record(ID, replace(ORDER, until=2), 1)),
        replace(RELEASED, record=None, problem="not JSON"),
        replace(RELEASED, record=Record(ID, ORDER, 1, Release("bob", 1001, "paid"))),
    ],
)
def test_what_is_held_expired_unreadable_or_ended_just_now_stays(entry: Entry) -> None:
    made = plan([entry], [], "c", [Seen(ENDED, True)], before=1001)
    assert (made.holds, made.kept) == ([], {})


PERMIT = Permit(ID, HELD, Operation.START, "r", 1, "alice", 1000, None, None)
REVOKED = Release("bob", 500, "done")


@pytest.mark.parametrize(
    ("record", "before", "goes"),
    [
        (PermitRecord(ID, PERMIT), 1001, True),
        (PermitRecord(ID, PERMIT), 1000, False),
        # Some host may not have heard of it: it ends there by itself.
        (PermitRecord(ID, PERMIT, REVOKED), 1000, False),
        (PermitRecord(ID, PERMIT, REVOKED), 1001, True),
        (PermitRecord(ID, None, REVOKED), 501 + PERMIT_MAX, True),
        (PermitRecord(ID, None, REVOKED), 500 + PERMIT_MAX, False),
        (None, 10**10, False),
    ],
)
def test_a_permit_goes_when_its_time_is_over_even_if_it_was_revoked(
    record: PermitRecord | None, before: int, goes: bool
) -> None:
    made = plan([], [PermitEntry(ID, 9, record)], "c", [Seen(ENDED, True)], before=before)
    assert bool(made.permits) == goes


# -- with a registry ------------------------------------------------------------------------------

Cli = Callable[..., tuple[int, Any]]


@pytest.fixture
def hosts(tmp_path: Path, host_settings: list[Fleet]) -> Iterator[list[Follower]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Follower(tmp_path, settings)) for settings in host_settings]


@pytest.fixture
def later(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Cli:
    """The command on a host, 100 days from now: its exit code and JSON."""
    monkeypatch.setattr(App, "now", lambda _app: int(time.time()) + 100 * DAY)

    def run(path: Path, *words: str) -> tuple[int, Any]:
        capfd.readouterr()
        code = main(["--database", str(path), "--config", str(settings_file), *words, "--json"])
        said = capfd.readouterr()
        return code, json.loads(said.out) if said.out else said.err

    return run


def place(registry: Registry) -> str:
    order = replace(ORDER, instance=str(uuid.uuid4()))
    return registry.place(order, now=int(time.time())).id


def release(registry: Registry, hold_id: str) -> None:
    registry.release(hold_id, reason="paid", by="bob", now=int(time.time()))


def all_have_ended(registry: Registry, *names: str) -> bool:
    newest = registry.newest()
    reports = {seen.report.name: seen.report for seen in registry.hosts()[1]}
    return all(name in reports and reports[name].applied >= newest for name in names)


def test_what_a_host_has_not_ended_stays_until_it_has_and_no_host_misses_what_went(
    hosts: list[Follower], registry: Registry, later: Cli, tmp_path: Path
) -> None:
    one, two = hosts
    kept, early, late = place(registry), place(registry), place(registry)
    for host in hosts:
        host.until(kept, early, late)
    now = int(time.time())
    permit = permits.new(HELD, Operation.START, until=now + DAY, reason="r", by="a", now=now)
    registry.grant(permit)
    release(registry, early)
    for host in hosts:
        host.until(kept, late)
    wait_until(lambda: all_have_ended(registry, "h1", "h2"), "both have said so")
    two.stop()
    release(registry, late)
    one.until(kept)
    wait_until(lambda: all_have_ended(registry, "h1"), "one has said so")
    nowhere = tmp_path / "none.db"
    everything = [kept, early, late]
    # A day ago nothing had ended; nor is anything changed by looking.
    assert later(nowhere, "fleet", "prune", "--older-than", "101d")[1]["holds"] == []
    code, said = later(nowhere, "fleet", "prune", "--dry-run")
    assert (code, said["holds"], said["permits"]) == (4, [early], [permit.id])
    assert said["kept"] == {late: {"h2": "has not applied it"}}
    assert sorted(entry.id for entry in registry.holds()) == sorted(everything)
    assert later(nowhere, "fleet", "prune")[1] == said
    assert sorted(entry.id for entry in registry.holds()) == sorted([kept, late])
    assert registry.permits() == []
    # Who was away ends what it has missed, and lacks nothing that it holds.
    two.start()
    two.until(kept)
    wait_until(lambda: all_have_ended(registry, "h1", "h2"), "both have said so")
    code, said = later(nowhere, "fleet", "prune")
    assert (code, said["holds"], said["kept"]) == (0, [late], {})
    fresh = place(registry)
    for host in hosts:
        host.until(kept, fresh)
        assert not host.faults()
        assert host.state().vanished.count == 0
        assert host.hold(late).released_at is not None
    # Nor is it written back by who still has it in his history.
    assert later(one.path, "fleet", "restore", "--dry-run") == (0, [])


def test_what_a_host_keeps_for_its_date_is_not_pruned(
    hosts: list[Follower],
    registry: Registry,
    client: Client,
    keys: Keys,
    later: Cli,
    tmp_path: Path,
) -> None:
    """Its release was written by somebody who goes past the registry's check of the date."""
    now = int(time.time())
    until = now + 400 * DAY
    kept = registry.place(
        replace(ORDER, retain_until=until, retention=Retention.COMPLIANCE), now=now
    ).id
    hosts[1].stop()
    hosts[0].until(kept)
    (entry,) = registry.holds()
    assert entry.record
    ended = replace(entry.record, released=Release("thief", now, "x", override=True))
    key = keys.hold(kept)
    client.write(key, records.encoded(ended), mod=_mod(client, key))
    wait_until(lambda: registry.host("h1").waiting == [kept], "it says that it keeps it")
    code, said = later(tmp_path / "none.db", "fleet", "prune")
    assert (code, said["holds"], list(said["kept"])) == (4, [], [kept])
    assert [entry.id for entry in registry.holds()] == [kept]
    assert hosts[0].holds() == {kept}
    assert later(hosts[0].path, "fleet", "restore") == (0, [])
    assert hosts[0].hold(kept).retain_until == until


def test_a_deleted_key_that_was_pruned_is_no_hold_again_for_who_reads_everything_anew(
    hosts: list[Follower], registry: Registry, later: Cli, tmp_path: Path
) -> None:
    ended, kept = place(registry), place(registry)
    for host in hosts:
        host.until(ended, kept)
    release(registry, ended)
    wait_until(lambda: all_have_ended(registry, "h1", "h2"), "both have said so")
    assert later(tmp_path / "none.db", "fleet", "prune")[1]["holds"] == [ended]
    for host in hosts:
        host.stop()
        host.start()
    new = place(registry)
    for host in hosts:
        host.until(kept, new)
        assert (host.state().vanished.count, host.faults()) == (0, "")


# -- two at once ----------------------------------------------------------------------------------


def scene(client: Client, keys: Keys, registry: Registry, count: int) -> list[str]:
    """So many released holds, and a host that says that it has ended all of them."""
    ids = [registry.place(ORDER, now=1).id for _ in range(count)]
    for hold_id in ids:
        registry.release(hold_id, reason="paid", by="bob", now=1000)
    report(client, keys, registry, "h1")
    return ids


def report(client: Client, keys: Keys, registry: Registry, name: str) -> None:
    said = Report(name, at=1, cluster=registry.hosts()[0], applied=registry.newest())
    key = keys.host(name)
    client.write(key, encoded(said, run="r", nonce=1), mod=_mod(client, key))


def prune(pruner: Pruner, made: Any) -> list[str]:
    return list(pruner.prune(made, before=2000, by="admin", now=10**9).left)


def test_many_go_in_few_transactions_and_it_is_noted_from_when_on_none_is_missing(
    client: Client, keys: Keys, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene(client, keys, registry, 130)
    held = registry.place(ORDER, now=1).id
    together: list[int] = []
    delete = Client.delete

    def counting(self: Client, found: dict[bytes, int], **more: Any) -> bool:
        together.append(len(found))
        return delete(self, found, **more)

    monkeypatch.setattr(Client, "delete", counting)
    pruner = Pruner(client, keys)
    made = pruner.look(before=2000, now=10**9)
    assert (len(made.holds), prune(pruner, made)) == (130, [])
    assert [entry.id for entry in registry.holds()] == [held]
    assert together == [100, 30]
    assert pruned_before(client, keys) == 2000
    # Done again it does nothing; and what was noted never goes back.
    noted = _mod(client, keys.pruned)
    assert prune(pruner, pruner.look(before=2000, now=10**9)) == []
    assert _mod(client, keys.pruned) == noted
    registry.release(held, reason="paid", by="bob", now=1000)
    report(client, keys, registry, "h1")
    made = pruner.look(before=1500, now=10**9)
    pruner.prune(made, before=1500, by="admin", now=10**9)
    assert registry.holds() == []
    assert _mod(client, keys.pruned) > noted
    assert pruned_before(client, keys) == 2000


def test_what_was_written_to_meanwhile_stays_and_what_another_pruned_is_gone(
    client: Client, keys: Keys, registry: Registry
) -> None:
    first, second, _ = scene(client, keys, registry, 3)
    pruner = Pruner(client, keys)
    made = pruner.look(before=2000, now=10**9)
    there = client.get(keys.hold(first))[1]
    assert there
    client.write(there.key, there.value, mod=there.mod)
    gone = {keys.hold(second): _mod(client, keys.hold(second))}
    assert client.delete(gone, unless_new=keys.hosts, since=2**60)
    assert prune(pruner, made) == [first]
    assert [entry.id for entry in registry.holds()] == [first]


def test_nothing_goes_after_a_host_has_joined_or_while_none_is_known(
    client: Client, keys: Keys, registry: Registry
) -> None:
    pruner = Pruner(client, keys)
    with pytest.raises(NotNow, match="no host"):
        pruner.look(before=2000, now=10**9)
    ids = scene(client, keys, registry, 2)
    made = pruner.look(before=2000, now=10**9)
    report(client, keys, registry, "h2")
    assert sorted(prune(pruner, made)) == sorted(ids)
    assert [entry.id for entry in registry.holds()] == sorted(ids)
    assert prune(pruner, pruner.look(before=2000, now=10**9)) == []


def test_what_ended_today_never_goes(client: Client, keys: Keys) -> None:
    with pytest.raises(InvalidValue, match="a day"):
        Pruner(client, keys).look(before=1001, now=1000 + DAY)


def test_a_note_that_nobody_can_read_hides_nothing(client: Client, keys: Keys) -> None:
    for value in (b"junk", b'{"schema": 2, "before": 5}', b'{"schema": 1, "before": "5"}', b"[]"):
        mod = _mod(client, keys.pruned)
        client.write(keys.pruned, value, mod=mod)
        assert pruned_before(client, keys) == 0


def _mod(client: Client, key: bytes) -> int:
    there = client.get(key)[1]
    return there.mod if there else 0
