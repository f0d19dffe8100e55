"""The client of etcd, against a real cluster and against peers that are none."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bootlockd.config import Fleet
from bootlockd.fleet import wire
from bootlockd.fleet.client import PAGE, Client, Stream
from bootlockd.fleet.errors import Compacted, EtcdError, Forbidden, NoMember, TermOver, TooLong
from bootlockd.fleet.facts import Facts
from bootlockd.fleet.follower import Follower
from bootlockd.fleet.history import Standing
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.lease import Lease, Office, TermClient
from bootlockd.fleet.registry import OFFICE, Registry
from bootlockd.fleet.relays import RelayReport
from bootlockd.fleet.wire import Frame
from bootlockd.sources.base import Order
from etcdcluster import Certificates, Cluster
from fleet import fleetroles
from lockdb.errors import AlreadyEnded, AmbiguousPrefix, NotFound
from lockdb.values import Kind
from samples import HELD
from waiting import wait_until

ORDER = Order(HELD, Kind.BOOT_LOCK, "unpaid", notice="call us", placed_by="alice")


@contextmanager
def peer(answer: bytes) -> Iterator[str]:
    """Something on loopback that says ``answer`` to whoever connects, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                taken.append(connection)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in taken:
            connection.close()
        server.shutdown(socket.SHUT_RDWR)


def client_of(*endpoints: str) -> Client:
    return Client(Fleet(endpoints=endpoints, timeout=1))


# -- holds ----------------------------------------------------------------------------------------


def test_a_hold_is_placed_once_and_released_once(registry: Registry) -> None:
    placed = registry.place(ORDER, now=1000, hold_id="00000000000000aa")
    assert registry.place(ORDER, now=2000, hold_id="00000000000000aa") == placed
    assert registry.holds() == [placed]
    assert registry.find("00000000000000a") == placed
    released = registry.release(placed.id, reason="paid", by="bob", now=3000)
    assert released.record
    assert released.record.released
    assert registry.find(placed.id) == released
    with pytest.raises(AlreadyEnded, match="by bob"):
        registry.release(placed.id, reason="again", by="eve", now=4000)
    assert registry.place(ORDER, now=5000, hold_id=placed.id) == released


def test_a_hold_is_found_by_a_beginning_that_fits_one(registry: Registry) -> None:
    for hold_id in ("00000000000000aa", "00000000000000ab"):
        registry.place(ORDER, now=1, hold_id=hold_id)
    with pytest.raises(AmbiguousPrefix):
        registry.find("0000")
    for unknown in ("00000000000000ac", "", "xyz", "\0"):
        with pytest.raises(NotFound):
            registry.find(unknown)
    with pytest.raises(NotFound):
        registry.release("00000000000000ac", reason="r", by="b", now=1)


def test_what_nobody_can_read_can_be_released_but_not_what_is_from_the_future(
    registry: Registry, cluster: Cluster, keys: Keys
) -> None:
    cluster.put(keys.hold("00000000000000aa").decode(), "garbage")
    cluster.put(keys.hold("00000000000000ab").decode(), '{"schema": 2}')
    assert registry.release("00000000000000aa", reason="r", by="b", now=1).record
    with pytest.raises(Exception, match="upgrade it"):
        registry.release("00000000000000ab", reason="r", by="b", now=1)
    assert [entry.problem for entry in registry.holds()] == [
        "",
        "schema 2, this bootlock reads 1: upgrade it",
    ]


def test_many_keys_come_in_pages_of_one_revision(client: Client, keys: Keys) -> None:
    names = [f"{at:016x}" for at in range(PAGE + 5)]
    for at in range(0, len(names), 100):
        puts = [
            {"request_put": {"key": wire.text_of(keys.hold(name)), "value": wire.text_of(b"v")}}
            for name in names[at : at + 100]
        ]
        client.ask("/v3/kv/txn", {"success": puts})
    pages = client.pages(*keys.holds)
    first = next(pages)
    client.write(keys.hold("f" * 16), b"new", mod=0)
    rest = [item.key for page in pages for item in page.items]
    assert [item.key for item in first.items] + rest == [keys.hold(name) for name in names]


def test_pages_that_are_too_long_come_in_smaller_ones(
    client: Client, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(30):
        client.write(keys.hold(f"{at:016x}"), b"x" * 1000, mod=0)
    monkeypatch.setattr(wire, "LONGEST", 8000)
    assert sum(len(page.items) for page in client.pages(*keys.holds)) == 30


def test_a_page_of_compacted_history_is_told(client: Client, cluster: Cluster, keys: Keys) -> None:
    first, _, _ = client.write(keys.hold("a"), b"1", mod=0)
    second, _, _ = client.write(keys.hold("b"), b"1", mod=0)
    cluster.ctl("compact", str(second.revision))
    with pytest.raises(Compacted):
        client.page(*keys.holds, revision=first.revision)


# -- watches --------------------------------------------------------------------------------------


def test_a_watch_tells_what_happens_in_all_its_ranges_until_closed(
    client: Client, keys: Keys
) -> None:
    header, _, _ = client.write(keys.hold("a"), b"1", mod=0)
    stream = client.watch([keys.holds, (keys.host("h"), b"")], header.revision, silence=10)
    frames = iter(stream)
    client.write(keys.host("h"), b"2", mod=0)
    seen: dict[int, bytes] = {}
    while len(seen) < 2:
        frame = next(frames)
        for event in frame.events:
            seen[frame.watch] = event.item.value
    assert seen == {0: b"1", 1: b"2"}
    threading.Timer(0.2, stream.close).start()
    assert list(frames) == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", NoMember),
        (b"SSH-2.0-OpenSSH\r\n", NoMember),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", NoMember),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", EtcdError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", EtcdError),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            NoMember,
        ),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", NoMember),
    ],
)
def test_a_peer_that_is_no_etcd_is_an_error_in_time(answer: bytes, error: type[EtcdError]) -> None:
    with peer(answer) as endpoint, closing(client_of(endpoint)) as client:
        began = time.monotonic()
        with pytest.raises(error):
            client.get(b"key")
        assert time.monotonic() - began < 5


def test_a_member_that_does_not_answer_is_passed_over(cluster: Cluster) -> None:
    with (
        peer(b"") as deaf,
        closing(client_of("http://127.0.0.1:1", deaf, cluster.url(0))) as client,
    ):
        client.get(b"key")
        began = time.monotonic()
        client.get(b"key")
        assert time.monotonic() - began < 1, "it stays with the one that answered"


def test_an_endless_line_and_silence_end_a_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    monkeypatch.setattr(wire, "LONGEST", 10_000)
    for said, silence, error in ((b"x" * 20_000, 5.0, TooLong), (b"", 0.3, EtcdError)):
        with (
            peer(head + said) as endpoint,
            closing(client_of(endpoint)) as client,
            pytest.raises(error),
        ):
            list(client.watch([(b"a", b"")], 1, silence=silence))


# -- leases ---------------------------------------------------------------------------------------


def test_a_sign_of_life_ends_when_nobody_keeps_it(client: Client, keys: Keys) -> None:
    lease = Lease(client, keys.alive("h"), ttl=1)
    lease.hold()
    assert client.get(keys.alive("h"))[1]
    wait_until(lambda: client.get(keys.alive("h"))[1] is None, "it is gone")
    lease.hold()
    assert client.get(keys.alive("h"))[1]


def test_an_office_is_held_by_one_and_goes_to_another_when_he_is_gone(
    client: Client, keys: Keys
) -> None:
    first, second = (Office(client, keys.lead("nova"), name=name, ttl=2) for name in "ab")
    assert (first.ask(), second.ask()) == (True, False)
    assert (first.ask(), second.ask()) == (True, False)
    assert (bool(first.term), bool(second.term)) == (True, False)
    first.give_back()
    assert not first.term
    assert second.ask()
    # It dies: nobody gives it back.
    wait_until(first.ask, "the lease has ended")
    assert not second.term, "who had it knows that it is over before another has it"


def test_in_a_term_of_an_office_one_writes_and_after_it_nothing(client: Client, keys: Keys) -> None:
    office = Office(client, keys.lead("nova"), name="a", ttl=60)
    key, other = keys.hold("1" * 16), keys.hold("2" * 16)
    assert office.ask()
    first = office.term
    header, written, _ = client.write(key, b"x", mod=0, term=first)
    assert written
    # What stands there instead is told, as ever.
    _, written, there = client.write(key, b"y", mod=0, term=first)
    assert (written, there and there.value) == (False, b"x")
    removal = {"key": wire.text_of(keys.lead("nova"))}
    for end in (office.give_back, lambda: client.ask("/v3/kv/deleterange", removal)):
        over = office.term
        end()
        for wanted, mod in ((key, header.revision), (other, 0)):
            with pytest.raises(TermOver):
                client.write(wanted, b"late", mod=mod, term=over)
        # The same office again is another term.
        assert office.ask()
        with pytest.raises(TermOver):
            client.write(key, b"late", mod=header.revision, term=over)
    assert client.write(key, b"y", mod=header.revision, term=office.term)[1]
    assert client.get(other)[1] is None


def test_who_writes_in_terms_writes_nothing_without_one(cluster: Cluster, keys: Keys) -> None:
    with closing(TermClient(cluster.settings())) as client:
        with pytest.raises(TermOver):
            client.write(keys.hold("1" * 16), b"x", mod=0)
        assert client.get(keys.hold("1" * 16))[1] is None


# -- who may --------------------------------------------------------------------------------------


def test_etcd_with_certificates_passwords_and_roles_as_documented(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    certificate, key = certificates.make("host")
    expired, expired_key = certificates.make("expired", days=-1)
    with Cluster(tmp_path / "etcd", certificates=certificates, size=1) as cluster:
        fleetroles.set_up(cluster)
        password = tmp_path / "password"
        password.write_text("secret-of-h1\n")
        settings = cluster.settings(
            host="h1",
            user="h1",
            password_file=password,
            certificate_file=certificate,
            key_file=key,
        )
        admin_password = tmp_path / "admin"
        admin_password.write_text("secret-of-admin\n")
        admin = Client(
            cluster.settings(
                user="admin",
                password_file=admin_password,
                certificate_file=certificate,
                key_file=key,
            )
        )
        keys = Keys("bootlock/")
        host = Client(settings)
        placed = Registry(admin, keys).place(ORDER, now=1)
        assert Registry(host, keys).holds() == [placed]
        assert list(host.pages(*keys.permits))
        host.write(keys.host("h1"), b"{}", mod=0)
        Lease(host, keys.alive("h1"), ttl=5).hold()
        assert not _first(host.watch([keys.holds, (keys.host("h1"), b"")], 1, silence=5)).problem
        for forbidden in (
            keys.hold("a" * 16),
            keys.permit("a" * 16),
            keys.host("h2"),
            keys.host("h10"),
            b"other",
        ):
            with pytest.raises(Forbidden, match="permission denied"):
                host.write(forbidden, b"{}", mod=0)
        assert "ermission" in _first(host.watch([(b"a", b"z")], 1, silence=5)).problem
        # Not to be let read permits costs the permits, and no hold.
        cluster.ctl("role", "revoke-permission", "host-h1", "bootlock/permits/", "--prefix=true")
        facts = Facts(tmp_path / "none.db", "h1", 2)
        reading = Follower(host, keys, "h1", facts, Standing(), set()).look()
        assert [one.ref for one in reading.observations] == [placed.id]
        assert "permits can't be read" in reading.faults[0]
        # A token that etcd has forgotten is renewed; a wrong one is not asked for for ever.
        host._token = "forgotten.1"
        assert Registry(host, keys).holds() == [placed]
        password.write_text("wrong\n")
        with pytest.raises(Forbidden, match="authentication failed"):
            Client(settings).get(keys.host("h1"))
        broken = cluster.settings(
            certificate_file=expired, key_file=expired_key, user="", password_file=None
        )
        with pytest.raises(NoMember) as caught:
            Client(broken).get(b"key")
        assert "certificates" in caught.value.hint
        nobody = Client(Fleet(endpoints=settings.endpoints, timeout=2))
        with pytest.raises(NoMember, match="certificate"):
            nobody.get(b"key")
        admin.close()
        host.close()


def test_the_documented_role_of_a_relay_is_enough_for_it_and_for_no_more(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    certificate, key = certificates.make("relay")
    password = tmp_path / "password"
    password.write_text("secret-of-relay\n")
    keys = Keys("bootlock/")
    with Cluster(tmp_path / "etcd", certificates=certificates, size=1) as cluster:
        fleetroles.set_up(cluster)
        settings = cluster.settings(
            user="relay", password_file=password, certificate_file=certificate, key_file=key
        )
        with closing(Client(settings)) as asks, closing(TermClient(settings)) as writes:
            office = Office(asks, keys.lead(OFFICE), name="relay", ttl=60)
            assert office.ask()
            writes.term = office.term
            registry = Registry(writes, keys)
            placed = registry.place(ORDER, now=1)
            registry.release(placed.id, reason="unlocked", by="relay", now=2)
            registry.note_relay(RelayReport("relay"))
            assert registry.relay() == RelayReport("relay", leads=True)
            for forbidden in (keys.permit("a" * 16), keys.host("h1"), keys.lead("other")):
                with pytest.raises(Forbidden, match="permission denied"):
                    writes.write(forbidden, b"{}", mod=0)
            office.give_back()


def _first(stream: Stream) -> Frame:
    frames = iter(stream)
    frame = next(frames)
    stream.close()
    assert list(frames) == []
    return frame


def test_secrets_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    settings = Fleet(endpoints=("https://127.0.0.1:1",), user="u", password_file=Path("/nowhere/p"))
    with pytest.raises(Forbidden, match="/nowhere/p"):
        Client(settings)
    junk = tmp_path / "ca.pem"
    junk.write_text("x")
    with pytest.raises(Forbidden, match=r"ca\.pem"):
        Client(Fleet(endpoints=("https://127.0.0.1:1",), ca_file=junk))


def test_nothing_of_etcds_answer_is_lost_between_two_reads(client: Client, keys: Keys) -> None:
    header, _, _ = client.write(keys.hold("0"), b"", mod=0)
    stream = client.watch([keys.holds], header.revision, silence=10)
    frames = iter(stream)
    next(frames)
    sizes = [1, 0, 70_000, 3, 500_000, 16_384]
    for at, size in enumerate(sizes):
        client.write(keys.hold(f"1{at}"), json.dumps("y" * size).encode(), mod=0)
    got: list[int] = []
    while len(got) < len(sizes):
        got += [len(e.item.value) - 2 for e in next(frames).events if e.item.value]
    assert got == sizes
    stream.close()
    assert list(frames) == []
