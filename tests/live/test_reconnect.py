"""A restart of libvirtd never ends a guest that runs, held or not.

When libvirtd comes back it asks the hook about every running guest ("reconnect"), and kills those
that the hook says no to.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import libvirt
import pytest

from domainxml import container_xml, domain_xml
from live.guests import container_pid, place, qemu_pid, remove, somebody_new
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateHost]:
    with PrivateHost(lxc=True) as host:
        host.install_bootlock()
        yield host


@dataclass(frozen=True)
class RunningGuest:
    """A guest that was started, and how to see that it is the same one and alive."""

    host: PrivateHost
    uri: str
    uuid: str
    process: Callable[[], int | None]

    def answers(self) -> bool:
        """Whether libvirt can change it. Waits until libvirt has finished reconnecting to it."""
        with closing(self.host.connect(self.uri)) as connection:
            domain = connection.lookupByUUIDString(self.uuid)
            title = libvirt.VIR_DOMAIN_METADATA_TITLE
            domain.setMetadata(title, "alive", None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            return bool(domain.isActive())


@pytest.fixture(params=["qemu", "lxc"])
def guest(request: pytest.FixtureRequest, host: PrivateHost) -> Iterator[RunningGuest]:
    new = somebody_new()
    if request.param == "qemu":
        uri, xml, pid_of = host.uri, domain_xml(new.name, new.uuid), qemu_pid
    else:
        uri, xml, pid_of = host.lxc_uri, container_xml(new.name, new.uuid), container_pid
    with closing(host.connect(uri)) as connection:
        connection.createXML(xml)
    yield RunningGuest(host, uri, new.uuid, partial(pid_of, host, new.uuid))
    with closing(host.connect(uri)) as connection:
        for domain in connection.listAllDomains():
            remove(domain)


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_held_guest_survives_a_restart(host: PrivateHost, guest: RunningGuest, signal: str) -> None:
    process = guest.process()
    assert process
    place(host, guest.uuid)
    host.stop_libvirtd(signal)
    assert guest.process() == process
    host.start_libvirtd()
    assert guest.answers()
    assert guest.process() == process


def test_guest_survives_a_restart_while_the_hook_cannot_decide(
    host: PrivateHost, guest: RunningGuest
) -> None:
    process = guest.process()
    assert process
    other = somebody_new()
    database = host.outside("/var/lib/bootlock/lock.db")
    aside = database.rename(database.with_name("aside"))
    try:
        host.restart_libvirtd()
        assert guest.answers()
        assert guest.process() == process
        with (
            closing(host.connect()) as connection,
            pytest.raises(libvirt.libvirtError, match="start refused: cannot decide"),
        ):
            connection.createXML(domain_xml(other.name, other.uuid))
    finally:
        aside.rename(database)


def test_a_hook_that_fails_at_reconnect_ends_the_guest(
    host: PrivateHost, guest: RunningGuest
) -> None:
    """Why all this matters: libvirt asks, and takes no for an order to kill."""
    failing = [host.outside(f"/etc/libvirt/hooks/{name}.d/99-failing") for name in ("qemu", "lxc")]
    for hook in failing:
        hook.write_text('#!/bin/sh\ntest "$2" != reconnect\n')
        hook.chmod(0o755)
    assert guest.process()
    try:
        host.restart_libvirtd()
        wait_until(lambda: guest.process() is None, "libvirt has ended the guest")
    finally:
        for hook in failing:
            hook.unlink()
