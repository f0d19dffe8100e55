"""Whatever happens to the registry, nothing is released that nobody released, and it is said."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest

from bootlock.main import main
from bootlockd.config import Config, Fleet
from bootlockd.fleet import beat, registry
from bootlockd.fleet.client import Client, Stream
from bootlockd.fleet.history import standing_of
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.registry import Entry, Registry
from bootlockd.fleet.wire import Frame
from bootlockd.sources.base import Order
from bootlockd.sources.reconcile import Limits
from bootlockd.sources.runner import limits_of
from etcdcluster import Certificates, Cluster
from fleet import fleetroles
from fleet.follower import Follower
from lockdb import database, holds, journal, sources
from lockdb.values import Kind, NewHold
from waiting import wait_until


class Scene:
    """A registry with hosts that follow it, below a prefix of their own."""

    def __init__(self, directory: Path, stack: ExitStack, cluster: Cluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self.prefix = f"{directory.name}/"
        self._stack = stack
        client = Client(cluster.settings(timeout=3))
        stack.enter_context(closing(client))
        self.registry = Registry(client, Keys(self.prefix))

    def host(self, name: str, limits: Limits | None = None) -> Follower:
        follower = Follower(self.directory, self.settings(name), limits=limits)
        return self._stack.enter_context(follower)

    def settings(self, name: str) -> Fleet:
        return self.cluster.settings(host=name, prefix=self.prefix, heartbeat=1, timeout=1)

    def place(self) -> str:
        return self.entry().id

    def entry(self) -> Entry:
        order = Order(str(uuid.uuid4()), Kind.BOOT_LOCK, "r", placed_by="alice")
        return self.registry.place(order, now=int(time.time()))

    def release(self, hold_id: str) -> None:
        self.registry.release(hold_id, reason="paid", by="bob", now=int(time.time()))

    def key(self, hold_id: str) -> str:
        return Keys(self.prefix).hold(hold_id).decode()


@pytest.fixture
def shared(tmp_path: Path, cluster: Cluster) -> Iterator[Scene]:
    """On the cluster that others use too: none of its members may be harmed."""
    with ExitStack() as stack:
        yield Scene(tmp_path, stack, cluster)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """On a cluster of the test's own."""
    with ExitStack() as stack:
        options = ["--max-request-bytes", "10000000"]
        cluster = stack.enter_context(Cluster(tmp_path / "etcd", options=options))
        yield Scene(tmp_path, stack, cluster)


def test_members_die_one_by_one_and_come_back(scene: Scene) -> None:
    hosts = [scene.host(name) for name in ("h1", "h2")]
    first = scene.place()
    for host in hosts:
        host.until(first)
    scene.cluster.kill(0)
    second = scene.place()
    for host in hosts:
        host.until(first, second)
    scene.cluster.kill(1)
    for host in hosts:
        wait_until(partial(_has_error, host), "no majority is an error of the source")
        assert host.holds() == {first, second}
    scene.cluster.kill(2)
    tried = [host.state().tried_at or 0 for host in hosts]
    for host, before in zip(hosts, tried, strict=True):
        wait_until(partial(_tries, host, before), "with none left it goes on trying")
        assert host.holds() == {first, second}
    scene.cluster.start(0, 1, 2)
    scene.release(first)
    third = scene.place()
    for host in hosts:
        host.until(second, third)
        assert not host.state().error
        assert not host.faults()
        assert "released in the registry" in (host.hold(first).release_reason or "")


def _has_error(host: Follower) -> bool:
    return bool(host.state().error)


def _tries(host: Follower, since: int) -> bool:
    return (host.state().tried_at or 0) > since + 1


def test_a_member_that_hangs_is_noticed_and_left(scene: Scene) -> None:
    host = scene.host("h1")
    first = scene.place()
    host.until(first)
    # The host asks the first that answers, which is the first.
    scene.cluster.pause(0)
    try:
        second = scene.place()
        host.until(first, second)
    finally:
        scene.cluster.resume(0)


def test_compaction_while_a_host_is_away_loses_nothing_and_releases_nothing(scene: Scene) -> None:
    host = scene.host("h1")
    kept, ended, deleted = scene.place(), scene.place(), scene.place()
    host.until(kept, ended, deleted)
    host.stop()
    scene.release(ended)
    scene.cluster.ctl("del", scene.key(deleted))
    new = scene.entry()
    scene.cluster.ctl("compact", str(new.revision))
    host.start()
    host.until(kept, deleted, new.id)
    assert host.state().vanished.first == (deleted,)


def test_a_deleted_key_is_no_release_but_may_go_after_one(shared: Scene) -> None:
    host = shared.host("h1")
    deleted, ended = shared.place(), shared.place()
    host.until(deleted, ended)
    shared.release(ended)
    host.until(deleted)
    shared.cluster.ctl("del", shared.key(deleted))
    shared.cluster.ctl("del", shared.key(ended))
    wait_until(lambda: "deleted, which is no release" in host.faults(), "it is marked")
    other = shared.place()
    host.until(deleted, other)


def test_a_value_that_can_not_be_read_is_that_holds_trouble_alone(scene: Scene) -> None:
    host = scene.host("h1")
    held = [scene.place() for _ in range(3)]
    host.until(*held)
    values = [b"\xff garbage", b'{"schema": 2, "state": "released"}', b'"' + b"x" * 2_000_000]
    new = [f"{at:016x}" for at in range(3)]
    for at, value in enumerate(values):
        scene.cluster.put(scene.key(held[at]), value)
        scene.cluster.put(scene.key(new[at]), value)
    scene.cluster.put(scene.key("not-an-id"), "x")
    last = scene.place()
    host.until(*held, last)
    # Of more than five that come one by one it is only known that they are more.
    wait_until(lambda: host.state().faults.count >= 5, "they are marked")
    # A new host reads the same, from the beginning.
    fresh = scene.host("h2")
    fresh.until(last)
    assert fresh.state().faults.count == 7
    # What was mended counts, and the mark goes.
    for hold_id in (*held, *new):
        scene.cluster.ctl("del", scene.key(hold_id))
    scene.cluster.ctl("del", scene.key("not-an-id"))
    host.until(*held, last)
    wait_until(lambda: not host.faults(), "everything is read again")
    assert host.state().vanished.count == 3


@pytest.mark.parametrize(
    ("what", "sign"),
    [("wiped", "cluster id"), ("wiped-same-token", "went back"), ("restored", "went back")],
)
def test_another_history_releases_nothing_until_it_is_accepted(
    scene: Scene, what: str, sign: str
) -> None:
    host = scene.host("h1")
    kept = scene.place()
    snapshot = scene.cluster.snapshot()
    lost, ended = scene.place(), scene.place()
    host.until(kept, lost, ended)
    scene.release(ended)
    host.until(kept, lost)
    if what == "restored":
        scene.cluster.restore(snapshot)
    else:
        scene.cluster.wipe(same_token=what == "wiped-same-token")
    wait_until(lambda: sign in host.faults(), "it is said")
    # New holds are in force at once; what is said to be released is not.
    order = Order(str(uuid.uuid4()), Kind.BOOT_LOCK, "r", placed_by="alice")
    there = scene.registry
    if what != "restored":
        there.place(order, now=1, hold_id=kept)
    there.release(kept, reason="says the other one", by="eve", now=2)
    new = scene.place()
    host.until(kept, lost, new)
    assert "fleet accept" in host.faults()
    # The way out: look, write back what was lost, accept.
    assert _cli(scene, host, "fleet", "restore") == 0
    wait_until(lambda: not host.state().vanished.count or host.faults(), "it was written back")
    host.accept()
    host.until(lost, new)
    assert not host.faults()
    scene.release(lost)
    host.until(new)
    assert there.find(ended).record.released  # type: ignore[union-attr]


def _cli(scene: Scene, host: Follower, *words: str) -> int:
    _write_settings(scene, host)
    settings = str(host.path.with_name("bootlock.toml"))
    return main(["--database", str(host.path), "--config", settings, *words])


def _write_settings(scene: Scene, host: Follower) -> None:
    settings = host.path.with_name("bootlock.toml")
    endpoints = [scene.cluster.url(at) for at in range(3)]
    settings.write_text(
        f"[fleet]\nendpoints = {json.dumps(endpoints)}\nhost = '{host.name}'\n"
        f"prefix = '{scene.prefix}'\n"
    )


def test_what_a_host_wrote_itself_betrays_a_restore_that_has_caught_up(scene: Scene) -> None:
    host = scene.host("h1")
    kept = scene.place()
    host.until(kept)
    wait_until(lambda: _nonce(host) > 1, "it gives signs of life")
    snapshot, before = scene.cluster.snapshot(), _nonce(host)
    other = scene.place()
    host.until(kept, other)
    wait_until(lambda: _nonce(host) > before + 1, "it has done so since")
    host.stop()
    scene.cluster.restore(snapshot)
    for _ in range(12):
        scene.cluster.put("elsewhere", "so that the revision climbs past the one that was known")
    host.start()
    wait_until(lambda: "own key" in host.faults(), "it is said")
    assert host.holds() == {kept, other}


def _nonce(host: Follower) -> int:
    return standing_of(host.state().revision).nonce


def test_a_host_that_is_not_let_in_keeps_its_holds_until_it_is_again(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    cert, key = certificates.make("host")
    sound = cert.read_bytes(), key.read_bytes()
    expired = [file.read_bytes() for file in certificates.make("expired", days=-1)]
    for name in ("h1", "admin"):
        (tmp_path / f"{name}.secret").write_text(f"secret-of-{name}\n")
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(tmp_path / "etcd", certificates=certificates, size=1))
        fleetroles.set_up(cluster)
        settings = [
            cluster.settings(
                host=name,
                heartbeat=1,
                timeout=1,
                user=name,
                password_file=tmp_path / f"{name}.secret",
                certificate_file=cert,
                key_file=key,
            )
            for name in ("h1", "admin")
        ]
        admin = stack.enter_context(closing(Client(settings[1])))
        there = Registry(admin, Keys("bootlock/"))
        host = stack.enter_context(Follower(tmp_path, settings[0]))

        def place() -> str:
            order = Order(str(uuid.uuid4()), Kind.BOOT_LOCK, "r", placed_by="alice")
            return there.place(order, now=int(time.time())).id

        held = [place()]
        host.until(*held)
        for wrong, said in (("password", "authentication failed"), ("certificate", "ertificate")):
            host.stop()
            if wrong == "password":
                (tmp_path / "h1.secret").write_text("wrong\n")
            else:
                cert.write_bytes(expired[0])
                key.write_bytes(expired[1])
            new = place()
            host.start()
            wait_until(lambda said=said: said in host.state().error, f"the {wrong} is named")  # type: ignore[misc]
            assert host.holds() == set(held)
            # New ones in place are read at the next try.
            (tmp_path / "h1.secret").write_text("secret-of-h1\n")
            cert.write_bytes(sound[0])
            key.write_bytes(sound[1])
            held.append(new)
            host.until(*held)
            assert not host.state().error


def test_a_second_host_of_the_same_name_is_said_and_no_other_history(shared: Scene) -> None:
    first = shared.host("h1")
    held = shared.place()
    first.until(held)
    with Follower(shared.directory / "twin", shared.settings("h1")) as twin:
        twin.until(held)
        wait_until(
            lambda: "another writes the key of host h1" in shared.registry.host("h1").doubt,
            "it is said",
        )
        assert "fleet accept" not in first.faults() + twin.faults()


def test_one_look_does_what_following_does(shared: Scene) -> None:
    host = Follower(shared.directory, shared.settings("h1"))
    first, second = shared.place(), shared.place()
    assert _sync(shared, host) == 0
    assert host.holds() == {first, second}
    shared.release(first)
    assert _sync(shared, host) == 0
    assert host.holds() == {second}
    assert shared.registry.hosts()[1] == [], "who only looks says nothing of this host"


def _sync(scene: Scene, host: Follower) -> int:
    _write_settings(scene, host)
    settings = str(host.path.with_name("bootlock.toml"))
    return main(["--database", str(host.path), "sync", "etcd", "--config", settings])


def test_an_event_that_never_comes_is_missed(
    shared: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beat, "AUDIT", 0.5)
    watch = Client.watch
    monkeypatch.setattr(Client, "watch", lambda *words, **more: _Lossy(watch(*words, **more)))
    host = shared.host("h1")
    wait_until(lambda: host.state().turn > 1, "it follows")
    lost = shared.place()
    host.until(lost)
    wait_until(
        lambda: "did not come on the watch" in shared.registry.host("h1").doubt, "it is said"
    )


class _Lossy:
    """A watch that brings all events but those of holds."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Frame]:
        return (frame for frame in self._stream if frame.created or frame.watch == 1)

    def close(self) -> None:
        self._stream.close()


def test_more_releases_than_are_believed_wait_for_an_admin(shared: Scene) -> None:
    host = shared.host("h1", Limits(most=2, percent=100))
    held = [shared.place() for _ in range(6)]
    host.until(*held)
    host.stop()
    for hold_id in held[:4]:
        shared.release(hold_id)
    host.start()
    new = shared.place()
    host.until(*held, new)


def test_an_admin_may_release_all_of_a_few_and_a_flood_waits_on_each_host(shared: Scene) -> None:
    host = shared.host("h1", limits_of(Config(), "etcd"))
    few = [shared.place() for _ in range(3)]
    host.until(*few)
    for hold_id in few:
        shared.release(hold_id)
    host.until()
    many = [shared.place() for _ in range(12)]
    host.until(*many)
    host.stop()
    for hold_id in many:
        shared.release(hold_id)
    host.start()
    new = shared.place()
    host.until(*many, new)
    wait_until(
        lambda: list(shared.registry.host("h1").waiting) == sorted(many), "the fleet is told"
    )
    cluster, seen = shared.registry.hosts()
    (why,) = registry.missing(shared.registry.find(many[0]), cluster, seen).values()
    assert why == "keeps it until an admin accepts that so many end"
    assert _cli(shared, host, "fleet", "hosts") == 1
    host.stop()
    with database.open_db(host.path) as lock_db:
        token = sources.token_of(sources.waiting(lock_db, "etcd"))
    assert _cli(shared, host, "sync", "etcd", "--accept-release", token) == 0
    host.start()
    host.until(new)
    wait_until(lambda: not shared.registry.host("h1").waiting, "nothing waits")


def test_a_journal_that_was_rewritten_stays_visible_in_the_registry(shared: Scene) -> None:
    host = shared.host("h1")
    held = shared.place()
    host.until(held)

    def published() -> tuple[int, str]:
        reports = {seen.report.name: seen.report for seen in shared.registry.hosts()[1]}
        return reports["h1"].journal if reports else (0, "")

    wait_until(lambda: published()[0] > 1, "the head is in the registry")
    assert _cli(shared, host, "journal", "verify", "--fleet") == 0
    host.stop()
    _rewrite(host.path)
    assert _cli(shared, host, "journal", "verify") == 0, "by itself it looks sound"
    assert _cli(shared, host, "journal", "verify", "--fleet") == 1
    noted = published()
    host.start()
    wait_until(
        lambda: any("as it was published" in line for line in shared.registry.host("h1").trouble),
        "the host says so itself",
    )
    assert published() == noted


def _rewrite(path: Path) -> None:
    """Another journal with the same number of entries, whose chain is whole."""
    with database.open_db(path) as lock_db, lock_db.write() as db:
        entries = [json.loads(entry) for entry in journal.entries(db)]
        query = (
            "SELECT name, sql FROM sqlite_master WHERE name LIKE 'journal\\_keeps\\_%' ESCAPE '\\'"
        )
        rules = list(db.execute(query))
        for name, _ in rules:
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DELETE FROM journal")
        db.execute("DELETE FROM meta WHERE key = 'journal_head'")
        for entry in entries:
            facts = {
                k: v
                for k, v in entry.items()
                if k not in {"seq", "at", "event", "prev", "link", "salt"}
            }
            journal.append(db, entry["event"], entry["at"] + 1, **facts)
        for _, rule in rules:
            db.execute(rule)


def test_a_host_whose_database_was_restored_catches_up_and_owns_up(shared: Scene) -> None:
    """What docs/operations.md says of a restored backup in a fleet."""
    host = shared.host("h1")
    kept, ended = shared.place(), shared.place()
    host.until(kept, ended)
    host.stop()
    backup = _backup(host.path)
    # Nobody places it again. What the registry has might be journalled again in the same words and
    # the same second, and would be the same journal.
    with database.open_db(host.path) as lock_db:
        here = NewHold(str(uuid.uuid4()), "r", "root")
        holds.place(lock_db, here, now=int(time.time()))
    host.start()
    later = shared.place()
    shared.release(ended)
    wait_until(lambda: host.holds() >= {kept, later} and ended not in host.holds(), "it follows")
    with database.open_db(host.path, read_only=True) as lock_db:
        head = journal.head(lock_db.db)
    wait_until(lambda: shared.registry.host("h1").journal == (head.seq, head.hash), "it is told")
    host.stop()
    for end in ("", "-wal", "-shm"):
        host.path.with_name(host.path.name + end).unlink(missing_ok=True)
    backup.rename(host.path)
    host.start()
    host.until(kept, later)
    wait_until(lambda: shared.registry.host("h1").trouble, "the host says so itself")
    assert "as it was published" in shared.registry.host("h1").trouble[0]
    assert _cli(shared, host, "journal", "verify") == 0
    assert _cli(shared, host, "journal", "verify", "--fleet") == 1
    # The way out.
    host.stop()
    shared.cluster.ctl("del", Keys(shared.prefix).host("h1").decode())
    host.start()
    wait_until(lambda: "fleet accept" in host.faults(), "its own key is lost, by intent")
    host.accept()

    def troubles() -> list[list[str]]:
        return [list(seen.report.trouble) for seen in shared.registry.hosts()[1]]

    wait_until(lambda: troubles() == [[]], "its key is there again, and nothing is wrong")
    assert _cli(shared, host, "journal", "verify", "--fleet") == 0
    assert host.holds() == {kept, later}


def _backup(path: Path) -> Path:
    """As the page makes one, with SQLite's own means."""
    backup = path.with_name("backup.db")
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(backup)) as copy:
        db.backup(copy)
    return backup


def test_what_is_written_again_and_again_reaches_every_host_once(shared: Scene) -> None:
    hosts = [shared.host(name) for name in ("h1", "h2", "h3")]
    held = [shared.place() for _ in range(50)]
    for hold_id in held[:25]:
        shared.release(hold_id)
    for host in hosts:
        host.until(*held[25:])
