"""Locks in a real Nova reach a real libvirt host through relays and a real registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import libvirt
import pytest

from bootlockd.relay import PLACED_BY
from domainxml import domain_xml
from live.guests import remove_all
from lockdb.values import Kind
from nova.cloud import Cloud, Seed, some_uuids
from nova.relaysite import RelayProcess, RelaySite
from nova.synchost import starts
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.nova

#: Where Nova has the servers; which host it is, is nothing to a relay.
SOMEWHERE = "elsewhere.test"

Starter = Callable[[str], RelayProcess]


@pytest.fixture(scope="module")
def site(
    host: PrivateHost, cloud: Cloud, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RelaySite]:
    with RelaySite(host, cloud, tmp_path_factory.mktemp("etcd")) as site:
        yield site


@pytest.fixture
def start(site: RelaySite) -> Iterator[Starter]:
    with ExitStack() as stack:

        def started(name: str) -> RelayProcess:
            relay = site.relay(name)
            stack.callback(relay.close)
            return relay

        yield started


@pytest.fixture
def servers(cloud: Cloud) -> list[str]:
    """Three that nobody has locked."""
    found = some_uuids(3)
    cloud.seed([Seed(uuid, SOMEWHERE) for uuid in found])
    return found


@pytest.fixture
def guest(host: PrivateHost, servers: list[str]) -> Iterator[libvirt.virDomain]:
    """The first one's domain, defined and off, as nova-compute leaves it."""
    with closing(host.connect()) as connection:
        yield connection.defineXML(domain_xml("instance-00000001", servers[0]))
        remove_all(host)


def test_a_lock_reaches_the_host_by_relay_and_registry_and_so_does_its_end(
    site: RelaySite, cloud: Cloud, start: Starter, servers: list[str], guest: libvirt.virDomain
) -> None:
    server, mine, _ = servers
    relay = start("one")
    wait_until(lambda: relay.leads, "it has the office")
    assert starts(guest)
    cloud.lock(server, reason="bootlock: case 4711")
    cloud.lock(mine, by="customer", reason="mine")
    wait_until(lambda: {server, mine} <= site.held().keys(), "the host has the holds")
    assert not starts(guest)
    held = site.held()
    assert (held[server].kind, held[server].case) == (Kind.BOOT_LOCK, "case 4711")
    assert held[mine].kind is Kind.STATE_LOCK
    (there,) = site.registered(server)
    assert (there["id"], there["placed_by"]) == (held[server].id, PLACED_BY)
    state = site.state()
    assert (state["name"], state["leads"], state["fault"]) == ("one", True, "")
    cloud.unlock(server)
    wait_until(lambda: server not in site.held(), "the lock is released")
    (ended,) = site.history(server)
    assert f"GET /servers/detail?uuid={server} at 2.75: locked: false" in str(ended.release_reason)
    assert starts(guest)
    assert mine in site.held()


def test_with_the_cells_database_away_the_relay_releases_nothing_and_says_so(
    site: RelaySite, cloud: Cloud, start: Starter, servers: list[str], guest: libvirt.virDomain
) -> None:
    start("one")
    cloud.lock(servers[0], reason="bootlock: 1")
    wait_until(lambda: servers[0] in site.held(), "the lock is a hold")
    before = site.held().keys()
    with cloud.without_cell():
        wait_until(lambda: site.state()["faults"] >= len(before), "a look at everything")
        assert "could not tell" in site.state()["fault"]
        assert site.held().keys() == before
        assert not starts(guest)
    wait_until(lambda: not site.state()["fault"], "it can tell again")
    assert site.held().keys() == before
    assert len(site.registered(servers[0])) == 1


def test_when_the_relay_that_leads_is_killed_another_goes_on_and_nothing_is_twice_or_lost(
    site: RelaySite, cloud: Cloud, start: Starter, servers: list[str], guest: libvirt.virDomain
) -> None:
    first, stays, later = servers
    one = start("one")
    wait_until(lambda: one.leads, "it has the office")
    two = start("two")
    for server in (first, stays):
        cloud.lock(server, reason="bootlock: 1")
    wait_until(lambda: {first, stays} <= site.held().keys(), "the locks are holds")
    assert not two.leads
    # While it is at work, and with what nobody reads until another leads.
    cloud.lock(later, reason="bootlock: 2")
    one.end("KILL")
    cloud.unlock(first)
    wait_until(lambda: two.leads, "the other has the office")
    wait_until(lambda: first not in site.held(), "it releases")
    wait_until(lambda: later in site.held(), "it places")
    assert starts(guest)
    assert {stays, later} <= site.held().keys()
    assert [len(site.registered(server)) for server in servers] == [1, 1, 1]
    assert site.state()["name"] == "two"
