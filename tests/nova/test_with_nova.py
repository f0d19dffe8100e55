"""Locks in a real Nova, behind a real keystone, are holds on a real libvirt host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import libvirt
import pytest

from domainxml import domain_xml
from live.guests import remove_all
from lockdb.values import Hold, Kind, OnRunning
from nova.cloud import Cloud, Seed, some_uuids
from nova.synchost import SyncHost, starts
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.nova

#: nova-compute's name of the private host, and the host's own.
HERE = "compute.test"


@pytest.fixture(scope="module")
def model(cloud: Cloud) -> str:
    """The server after which others are made: to make one anew takes seconds."""
    (uuid,) = some_uuids(1)
    cloud.seed([Seed(uuid, HERE)])
    return uuid


@pytest.fixture
def server(cloud: Cloud, model: str) -> str:
    """A server on this host that nobody has locked."""
    (uuid,) = some_uuids(1)
    cloud.seed_like(model, [uuid])
    return uuid


@pytest.fixture
def guest(host: PrivateHost, server: str) -> Iterator[libvirt.virDomain]:
    """That server's domain, defined and off, as nova-compute leaves it."""
    with closing(host.connect()) as connection:
        yield connection.defineXML(domain_xml("instance-00000001", server))
        remove_all(host)


def held(sync: SyncHost, server: str) -> Hold:
    wait_until(lambda: server in sync.held(), "the lock is a hold")
    return sync.held()[server]


def test_an_admins_lock_refuses_the_next_start_until_it_is_unlocked(
    sync: SyncHost, cloud: Cloud, server: str, guest: libvirt.virDomain
) -> None:
    sync.start()
    assert starts(guest)
    cloud.lock(server, reason="bootlock: case 4711")
    hold = held(sync, server)
    assert not starts(guest)
    assert (hold.kind, hold.case, hold.on_running) == (
        Kind.BOOT_LOCK,
        "case 4711",
        OnRunning.DESTROY,
    )
    cloud.unlock(server)
    wait_until(lambda: server not in sync.held(), "the lock is released")
    (ended,) = sync.history(server)
    assert ended.release_reason
    asked = f"GET /servers/detail?uuid={server} at 2.75: locked: false, updated "
    assert ended.release_reason.startswith(asked)
    assert starts(guest)


def test_one_sync_by_hand_is_enough(
    sync: SyncHost, host: PrivateHost, cloud: Cloud, server: str, guest: libvirt.virDomain
) -> None:
    sync.configure()
    cloud.lock(server, reason="bootlock: 1")
    host.bootlock("sync", "nova")
    assert not starts(guest)
    cloud.unlock(server)
    would = host.bootlock("sync", "nova", "--dry-run")
    assert f"GET /servers/detail?uuid={server} at 2.75: locked: false" in would.stdout
    assert not starts(guest)
    host.bootlock("sync", "nova")
    assert starts(guest)


def test_a_customers_lock_is_a_state_lock_and_starts_go_on(
    sync: SyncHost, cloud: Cloud, server: str, guest: libvirt.virDomain
) -> None:
    sync.start()
    cloud.lock(server, by="customer", reason="bootlock: would be nice")
    hold = held(sync, server)
    # It was off when it was locked, but nobody can know that here: docs/sources.md says why.
    assert (hold.kind, hold.was_running) == (Kind.STATE_LOCK, None)
    assert starts(guest)
    # The provider's own lock takes its place, and the customer can't take that away.
    cloud.lock(server, reason="bootlock: 1")
    wait_until(lambda: sync.held()[server].kind is Kind.BOOT_LOCK, "it is a boot lock")
    assert not starts(guest)
    refused = cloud.nova("POST", f"/servers/{server}/action", {"unlock": None}, by="customer")
    assert refused.status in {403, 409}, refused
    cloud.unlock(server)
    wait_until(lambda: server not in sync.held(), "the lock is released")


def test_locks_that_were_there_before_are_found_and_other_admins_locks_are_not(
    sync: SyncHost, cloud: Cloud
) -> None:
    boot, maintained, reasonless, mine, free, elsewhere = some_uuids(6)
    cloud.seed(
        [
            Seed(boot, HERE, "admin", "bootlock: 1"),
            Seed(maintained, HERE, "admin", "moving to other racks"),
            Seed(reasonless, HERE, "admin"),
            Seed(mine, HERE, "owner", "mine"),
            Seed(free, HERE),
            Seed(elsewhere, "other.test", "admin", "bootlock: 2"),
        ]
    )
    sync.start()
    found = sync.held()
    assert {uuid: found[uuid].kind for uuid in (boot, mine)} == {
        boot: Kind.BOOT_LOCK,
        mine: Kind.STATE_LOCK,
    }
    assert found.keys() & {maintained, reasonless, free, elsewhere} == set()


def test_with_the_cells_database_away_nothing_is_released_and_the_source_is_marked(
    sync: SyncHost, cloud: Cloud, server: str, guest: libvirt.virDomain
) -> None:
    sync.start(full_interval=1)
    cloud.lock(server, reason="bootlock: 1")
    held(sync, server)
    before = sync.held().keys()
    sync.wait_for_full_look()
    assert sync.state.faults.count == 0
    with cloud.without_cell():
        lists = cloud.nova("GET", "/servers/detail?all_tenants=1&locked_by=admin", by="bootlock")
        assert (lists.status, lists.body) == (200, {"servers": []}), "which looks like a release"
        sync.wait_for_full_look()
        assert sync.held().keys() == before
        assert sync.state.faults.count == len(before)
        assert "deleted, or its cell is down" in sync.state.faults.first[0]
        assert not starts(guest)
    sync.wait_for_full_look()
    assert sync.state.faults.count == 0
    assert sync.held().keys() == before


def test_a_server_that_moved_and_one_that_was_deleted_stay_held(
    sync: SyncHost, cloud: Cloud, model: str
) -> None:
    moved, deleted = some_uuids(2)
    cloud.seed_like(model, [moved, deleted])
    for server in (moved, deleted):
        cloud.lock(server, reason="bootlock: 1")
    sync.start(full_interval=1)
    assert {moved, deleted} <= sync.held().keys()
    cloud.move(moved, "other.test")
    cloud.delete(deleted)
    sync.wait_for_full_look()
    assert {moved, deleted} <= sync.held().keys()
    assert f"Nova shows no server {deleted}" in " ".join(sync.state.faults.first)
    # Where the other is now does not matter: what Nova says of it does.
    cloud.unlock(moved)
    wait_until(lambda: moved not in sync.held(), "the lock is released")
    assert deleted in sync.held()


def test_the_documented_account_reads_locks_and_can_do_nothing_else(
    sync: SyncHost, cloud: Cloud, server: str, policy: str
) -> None:
    assert len([line for line in policy.splitlines() if line.startswith('"')]) <= 4
    cloud.lock(server, reason="bootlock: 1")
    for action in ({"unlock": None}, {"lock": None}, {"os-start": None}, {"os-stop": None}):
        said = cloud.nova("POST", f"/servers/{server}/action", action, by="bootlock")
        assert said.status in {403, 404}, said
    assert cloud.nova("DELETE", f"/servers/{server}", by="bootlock").status in {403, 404}
    # So is reading a server by its address, which is why the list is asked for it.
    assert cloud.nova("GET", f"/servers/{server}", by="bootlock").status == 404
    sync.start()
    assert server in sync.held()


@pytest.mark.parametrize(
    ("rule", "says"),
    [("detail:get_all_tenants", "answered 403"), ("allow_all_filters", "ignores the filters")],
)
def test_without_one_of_its_rules_the_source_fails_and_releases_nothing(
    sync: SyncHost, cloud: Cloud, server: str, policy: str, rule: str, says: str
) -> None:
    cloud.lock(server, reason="bootlock: 1")
    sync.start(full_interval=1)
    before = sync.held().keys()
    assert server in before
    cloud.set_policy("".join(line for line in policy.splitlines(True) if rule not in line))
    wait_until(lambda: sync.state.error, "it fails")
    assert says in sync.state.error
    cloud.unlock(server)
    assert sync.held().keys() == before
    cloud.set_policy(policy)
    wait_until(lambda: server not in sync.held(), "it can read again")
    assert sync.held().keys() == before - {server}


def test_a_token_that_keystone_revoked_is_replaced(
    sync: SyncHost, cloud: Cloud, server: str
) -> None:
    sync.start()
    cloud.revoke_tokens("bootlock")
    cloud.lock(server, reason="bootlock: 1")
    held(sync, server)


def test_a_wrong_password_is_said_and_the_right_one_needs_no_restart(
    sync: SyncHost, host: PrivateHost, cloud: Cloud, server: str
) -> None:
    cloud.lock(server, reason="bootlock: 1")
    sync.clouds = cloud.clouds_yaml("bootlock", "wrong")
    sync.start()
    wait_until(lambda: sync.state.error, "it fails")
    assert sync.state.error.startswith("nova: ")
    assert "wrong" not in sync.log
    right = cloud.clouds_yaml("bootlock")
    host.outside("/etc/bootlock/clouds.yaml").write_text(right)
    held(sync, server)


def test_a_nova_that_hangs_or_is_gone_releases_nothing(
    sync: SyncHost, cloud: Cloud, server: str
) -> None:
    cloud.lock(server, reason="bootlock: 1")
    sync.start(full_interval=1)
    before = sync.held().keys()
    cloud.signal_nova("STOP")
    try:
        wait_until(lambda: "timed out" in sync.state.error, "no answer is noticed")
        assert sync.held().keys() == before
    finally:
        cloud.signal_nova("CONT")
    wait_until(lambda: not sync.state.error, "it can be read again")
    cloud.stop_service("nova")
    try:
        wait_until(lambda: sync.state.error, "it is gone")
        assert sync.held().keys() == before
    finally:
        cloud.serve_nova()
    wait_until(lambda: not sync.state.error, "it can be read again")
    cloud.unlock(server)
    wait_until(lambda: server not in sync.held(), "the lock is released")


@pytest.mark.parametrize(
    ("clouds", "says"),
    [(None, "No such file"), ("{", "clouds.yaml"), ("{}", "test"), ("clouds: {test: 3}", "clouds")],
)
def test_a_file_of_clouds_that_is_of_no_use_is_named(
    sync: SyncHost, host: PrivateHost, clouds: str | None, says: str
) -> None:
    sync.clouds = clouds or ""
    if clouds is None:
        sync.start(clouds_file='"/etc/bootlock/nowhere.yaml"')
    else:
        sync.start()
    wait_until(lambda: sync.state.error, "it fails")
    assert sync.state.error.startswith("nova: /etc/bootlock/")
    assert says in sync.state.error


def test_1200_locked_servers_are_two_pages(sync: SyncHost, cloud: Cloud) -> None:
    first, *others = some_uuids(1200)
    cloud.seed([Seed(first, "large.test", "admin", "bootlock: 1")])
    cloud.seed_like(first, others)
    asked = "/servers/detail?all_tenants=1&host=large.test&limit=1000"
    said = cloud.nova("GET", asked, by="bootlock")
    assert said.status == 200, said
    assert (len(said.body["servers"]), "servers_links" in said.body) == (1000, True), "it takes two"
    sync.start(compute_host='"large.test"', timeout=60)
    assert sync.held().keys() == {first, *others}
    assert sync.state.faults.count == 0
    cloud.unlock(others[600])
    wait_until(lambda: others[600] not in sync.held(), "one lock is released")
    assert len(sync.held()) == 1199
