"""libvirt's containers (LXC) are refused when held, like any guest."""

from collections.abc import Iterator
from contextlib import closing

import libvirt
import pytest

from domainxml import container_xml
from live.guests import container_runs, place, refused, somebody_new, starts_only_when_not_held
from privatehost import PrivateHost

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateHost]:
    with PrivateHost(lxc=True) as host:
        host.install_bootlock()
        yield host


@pytest.fixture
def lxc(host: PrivateHost) -> Iterator[libvirt.virConnect]:
    with closing(host.connect(host.lxc_uri)) as connection:
        yield connection


def test_start(host: PrivateHost, lxc: libvirt.virConnect) -> None:
    guest = somebody_new()
    domain = lxc.defineXML(container_xml(guest.name, guest.uuid))
    starts_only_when_not_held(
        host, guest.uuid, domain.create, off=domain.destroy, running=container_runs
    )


def test_create_transient(host: PrivateHost, lxc: libvirt.virConnect) -> None:
    guest = somebody_new()

    def create() -> None:
        lxc.createXML(container_xml(guest.name, guest.uuid))

    def destroy() -> None:
        lxc.lookupByUUIDString(guest.uuid).destroy()

    starts_only_when_not_held(host, guest.uuid, create, off=destroy, running=container_runs)


def test_refused_transient_container_is_unknown_afterwards(
    host: PrivateHost, lxc: libvirt.virConnect
) -> None:
    guest = somebody_new()
    with refused(place(host, guest.uuid)):
        lxc.createXML(container_xml(guest.name, guest.uuid))
    assert guest.uuid not in [domain.UUIDString() for domain in lxc.listAllDomains()]


def test_autostart_at_boot(host: PrivateHost, lxc: libvirt.virConnect) -> None:
    free, held = somebody_new(), somebody_new()
    for guest in (free, held):
        lxc.defineXML(container_xml(guest.name, guest.uuid)).setAutostart(True)
    refusal = place(host, held.uuid)
    host.reboot()
    assert container_runs(host, free.uuid)
    assert not container_runs(host, held.uuid)
    assert refusal.line() in host.outside("/var/log/libvirt/libvirtd.log").read_text()
