"""The network fence cuts libvirt's containers: the host's end of their veth pairs."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from daemon_live.runner import Daemon, database, release, row_of
from daemonhost import SETTINGS
from domainxml import container_xml
from fences.netscene import BRIDGE, HERE, build, is_cut, is_up, rules
from live.guests import Identity, somebody_new
from lockdb import holds
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.values import Hold, NewHold
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateHost]:
    with PrivateHost(lxc=True) as host:
        host.install_bootlock()
        build(host)
        yield host


@pytest.fixture(scope="module")
def daemon(host: PrivateHost) -> Iterator[Daemon]:
    with Daemon(host, settings=SETTINGS.replace("qemu:///system", "lxc:///system")) as daemon:
        yield daemon


def start(host: PrivateHost, guest: Identity, interface: str) -> None:
    document = container_xml(guest.name, guest.uuid)
    with closing(host.connect(host.lxc_uri)) as opened:
        opened.createXML(document.replace("</devices>", f"{interface}</devices>"))


def end(host: PrivateHost, guest: Identity) -> None:
    with closing(host.connect(host.lxc_uri)) as opened:
        opened.lookupByUUIDString(guest.uuid).destroy()


def isolate(host: PrivateHost, daemon: Daemon, guest: Identity) -> Hold:
    with open_db(database(host)) as lock_db:
        new = NewHold(guest.uuid, "abuse", "a test", isolate=True)
        hold = holds.place(lock_db, new, now=int(time.time()))
    daemon.wake()
    return hold


def wait(host: PrivateHost, hold: Hold, state: State, detail: str = "") -> None:
    def is_so() -> bool:
        row = row_of(host, hold, "network")
        return row is not None and row.state is state and detail in row.detail

    wait_until(is_so, f"network is {state} {detail}")


def heard(host: PrivateHost, guest: Identity) -> bool:
    """Whether a frame that is sent inside the container reaches the bridge."""
    init = host.run(["sh", "-c", f"cat /run/libvirt/lxc/{guest.name}.pid"]).stdout.strip()
    (child,) = host.run(["cat", f"/proc/{init}/task/{init}/children"]).stdout.split()
    enter = ["nsenter", f"--net=/proc/{child}/ns/net"]
    host.run([*enter, "ip", "link", "set", "dev", "eth0", "up"])
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import frames, socket, subprocess, time\n"
        f"there = frames.listener({BRIDGE!r}); there.settimeout(3)\n"
        f"send = 'import socket; s = socket.socket(17, 3); s.bind((\"eth0\", 0));'\n"
        f"send += 's.send(' + repr(frames.frame('arp', frames.GUEST, frames.PEER)) + ')'\n"
        f"subprocess.run([*{enter!r}, sys.executable, '-c', send])\n"
        "try:\n"
        "    while frames.kind_of(there.recv(9000), frames.GUEST) is None: pass\n"
        "    print('heard')\n"
        "except TimeoutError: print('silent')\n"
    )
    return host.run([sys.executable, "-c", script]).stdout == "heard\n"


def test_a_container_is_cut_and_released(host: PrivateHost, daemon: Daemon) -> None:
    guest = somebody_new()
    start(host, guest, f"<interface type='bridge'><source bridge='{BRIDGE}'/></interface>")
    try:
        assert heard(host, guest)
        hold = isolate(host, daemon, guest)
        wait(host, hold, State.ENFORCED, "cut: ")
        row = row_of(host, hold, "network")
        assert row
        device = row.detail.removeprefix("cut: ")
        assert is_cut(host, device)
        assert not heard(host, guest)
        release(host, hold)
        daemon.wake()
        wait(host, hold, State.LIFTED)
        assert is_up(host, device)
        assert "bootlock" not in rules(host)
        assert heard(host, guest)
    finally:
        end(host, guest)


def test_a_container_on_the_host_s_own_network_is_a_failure(
    host: PrivateHost, daemon: Daemon
) -> None:
    guest = somebody_new()
    start(host, guest, "")
    try:
        hold = isolate(host, daemon, guest)
        wait(host, hold, State.FAILED, "the host's own network")
        release(host, hold)
        daemon.wake()
        wait(host, hold, State.LIFTED)
    finally:
        end(host, guest)
