"""What is asked of a bootlockd that is killed, and of a host with it: holds, guests.

What the tests need to know of holds is read from the database and from libvirt, not from the
daemon's own words.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import libvirt

import daemonhost
from bootlockd import hypervisor
from domainxml import domain_xml
from live.guests import remove
from lockdb import enforcements, holds
from lockdb.database import LockDB, open_db
from lockdb.enforcements import Enforcement, State
from lockdb.values import CANARY_PREFIX, Hold, NewHold, OnRunning
from privatehost import PrivateHost
from waiting import wait_until


class Daemon(daemonhost.Daemon):
    """One that is up as soon as it answers, whatever libvirt does, and is killed at last."""

    ending = "KILL"

    def is_up(self) -> bool:
        return bool(self.status())


# -- holds ----------------------------------------------------------------------------------------


def database(host: PrivateHost) -> Path:
    return host.outside("/var/lib/bootlock/lock.db")


def place(
    host: PrivateHost, uuid: str, order: OnRunning = OnRunning.DESTROY, *, grace: int = 60
) -> Hold:
    """Place a boot lock, durably; tells the daemon nothing."""
    with open_db(database(host)) as lock_db:
        return place_in(lock_db, uuid, order, grace=grace)


def place_in(lock_db: LockDB, uuid: str, order: OnRunning, *, grace: int = 60) -> Hold:
    new = NewHold(uuid, "unpaid", "a test", on_running=order, grace=grace)
    return holds.place(lock_db, new, now=int(time.time()))


def release(host: PrivateHost, hold: Hold) -> None:
    """Release it, durably; tells the daemon nothing."""
    with open_db(database(host)) as lock_db:
        holds.release(lock_db, hold.id, reason="paid", by="a test", now=int(time.time()))


def row_of(host: PrivateHost, hold: Hold, fence: str = "power") -> Enforcement | None:
    """What a fence did last for this hold."""
    with open_db(database(host), read_only=True) as lock_db:
        found = [row for row in enforcements.of_hold(lock_db, hold.id) if row.fence == fence]
    return found[0] if found else None


def is_enforced(host: PrivateHost, hold: Hold, detail: str = "") -> bool:
    """The power fence says so, with a detail that begins as given."""
    row = row_of(host, hold)
    return bool(row and row.state is State.ENFORCED and row.detail.startswith(detail))


def wait_enforced(host: PrivateHost, hold: Hold, detail: str = "") -> None:
    wait_until(lambda: is_enforced(host, hold, detail), f"{hold.on_running} is enforced {detail}")


# -- guests ---------------------------------------------------------------------------------------


def start_guest(
    host: PrivateHost,
    name: str,
    uuid: str,
    *,
    paused: bool = False,
    devices: str = "",
    disks: Sequence[str | Path] = (),
) -> None:
    """Define it, if it is not, and start it."""
    flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
    with closing(host.connect()) as opened:
        domain = hypervisor.look_up(opened, uuid)
        if domain is None:
            domain = opened.defineXML(domain_xml(name, uuid, devices=devices, disks=disks))
        domain.createWithFlags(flags)


def power(host: PrivateHost, uuid: str) -> str:
    """running, paused, asleep or off, as libvirt shows it; gone if it is unknown there."""
    guest = hypervisor.observe([host.uri], uuid)
    return str(guest.power) if guest else "gone"


def wait_power(host: PrivateHost, uuid: str, state: str) -> None:
    wait_until(lambda: power(host, uuid) == state, f"{uuid} is {state}")


def remove_guests(host: PrivateHost) -> None:
    """End and forget all guests. The daemon's canaries come and go meanwhile: not they."""
    with closing(host.connect()) as opened:
        for domain in opened.listAllDomains():
            if not domain.UUIDString().startswith(CANARY_PREFIX):
                with suppress(libvirt.libvirtError):
                    remove(domain)
        left = [domain.UUIDString() for domain in opened.listAllDomains()]
    assert all(uuid.startswith(CANARY_PREFIX) for uuid in left), left
