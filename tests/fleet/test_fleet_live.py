"""A hold placed once refuses starts on every libvirt host of the fleet."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from domainxml import domain_xml
from fleet.fleetnet import FleetNet
from waiting import wait_until

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetNet]:
    with FleetNet(tmp_path_factory.mktemp("etcd")) as fleet:
        yield fleet


@pytest.fixture
def guest(fleet: FleetNet) -> Iterator[str]:
    """The UUID of a guest that every host knows."""
    instance = str(uuid.uuid4())
    for member in fleet.hosts:
        xml = member.host.images / f"{instance}.xml"
        xml.write_text(domain_xml(f"guest-{instance[:8]}", instance))
        member.host.virsh("define", xml)
    yield instance
    for member in fleet.hosts:
        member.host.virsh("destroy", instance, check=False)
        member.host.virsh("undefine", instance)


def all_alive(fleet: FleetNet) -> bool:
    code, hosts = fleet.hosts[0].bootlock("fleet", "hosts")
    return code == 0 and len(hosts) == 3


def test_a_hold_is_in_force_on_all_hosts_when_place_returns(fleet: FleetNet, guest: str) -> None:
    one, two, _ = fleet.hosts
    wait_until(lambda: all_alive(fleet), f"all hosts are there and armed; {one.log()}")
    two.host.virsh("start", guest)
    options = ["--reason", "court order", "--on-running", "destroy", "--fleet"]
    code, placed = one.bootlock("place", guest, *options)
    assert (code, placed["missing"], placed["in_force"]) == (0, {}, 3), placed
    assert placed["here"]["h2"]["power"] == "enforced"
    assert guest not in two.host.virsh("list", "--uuid").stdout
    for member in fleet.hosts:
        assert member.refuses(guest)
        assert member.bootlock("show", placed["id"])[1]["holds"][0]["source"] == "etcd"
    assert one.bootlock("fleet", "status", placed["id"][:6])[0] == 0
    assert one.bootlock("list", "--fleet")[1][0]["id"] == placed["id"]
    assert one.bootlock("show", guest, "--fleet")[1][0]["reason"] == "court order"
    assert two.bootlock("journal", "verify", "--fleet")[0] == 0
    code, released = two.bootlock("release", placed["id"], "--reason", "lifted", "--fleet")
    assert (code, released[0]["state"]) == (0, "released")
    for member in fleet.hosts:
        member.waits_to_refuse(guest, whether=False)
    code, again = two.bootlock("release", placed["id"], "--reason", "again", "--fleet")
    assert code == 3
    assert "was released" in again


def test_a_permit_lets_libvirt_start_it_on_each_host_when_permit_returns(
    fleet: FleetNet, guest: str
) -> None:
    one, two, _ = fleet.hosts
    wait_until(lambda: all_alive(fleet), "all hosts are there")
    assert one.bootlock("place", guest, "--reason", "r", "--fleet")[0] == 0
    grant = ["--op", "start", "--for", "10m", "--reason", "disk image", "--fleet"]
    code, permit = two.bootlock("permit", guest, *grant)
    assert (code, permit["taken"], permit["missing"]) == (0, 3, {}), permit
    for member in fleet.hosts:
        assert not member.refuses(guest)
    assert one.bootlock("fleet", "permits")[1][0]["id"] == permit["id"]
    code, ended = one.bootlock("permit", "--revoke", permit["id"], "--reason", "r", "--fleet")
    assert (code, ended["taken"]) == (0, 3), ended
    for member in fleet.hosts:
        assert member.refuses(guest)


def test_a_host_that_is_cut_off_keeps_what_it_holds_and_catches_up(
    fleet: FleetNet, guest: str
) -> None:
    one, _, cut = fleet.hosts
    wait_until(lambda: all_alive(fleet), "all hosts are there")
    code, placed = one.bootlock("place", guest, "--reason", "r", "--fleet")
    assert code == 0, placed
    fleet.cut(2)
    wait_until(lambda: not all_alive(fleet), "its sign of life ends")
    assert one.bootlock("release", placed["id"], "--reason", "paid", "--fleet")[0] == 0
    one.waits_to_refuse(guest, whether=False)
    assert cut.refuses(guest), "nobody told it"
    # Who can't be reached is named, and is no reason to wait.
    instance = str(uuid.uuid4())
    code, other = one.bootlock("place", instance, "--reason", "r", "--fleet")
    assert (code, list(other["missing"]), other["in_force"]) == (0, ["h3"], 2), other
    assert one.bootlock("fleet", "status", other["id"])[0] == 1
    code, hosts = one.bootlock("fleet", "hosts")
    assert code == 1
    assert {host["name"]: host["alive"] for host in hosts} == {"h1": True, "h2": True, "h3": False}
    assert cut.bootlock("place", instance, "--reason", "r", "--fleet")[0] == 6
    fleet.heal(2)
    cut.waits_to_refuse(guest, whether=False)
    wait_until(lambda: one.bootlock("fleet", "status", other["id"])[0] == 0, "it has caught up")


def test_a_host_without_a_majority_of_members_places_nothing_and_releases_nothing(
    fleet: FleetNet, guest: str
) -> None:
    one = fleet.hosts[0]
    wait_until(lambda: all_alive(fleet), "all hosts are there")
    assert one.bootlock("place", guest, "--reason", "r", "--fleet")[0] == 0
    fleet.cluster.kill(1, 2)
    assert one.bootlock("place", str(uuid.uuid4()), "--reason", "r", "--fleet")[0] == 6
    fleet.cluster.kill(0)
    for member in fleet.hosts:
        assert member.refuses(guest)
    fleet.cluster.start(0, 1, 2)
    code, said = one.bootlock("release", "--instance", guest, "--all", "--reason", "r", "--fleet")
    assert code == 0, said
    for member in fleet.hosts:
        member.waits_to_refuse(guest, whether=False)
