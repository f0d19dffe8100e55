"""The network devices of a libvirt container: the host's ends of its veth pairs.

The kernel numbers the container's network namespace in ours, and each veth link names the number
of its other end: what belongs to the container is seen from here. Its own side is looked at only
for what reaches the host in another way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bootlockd.links import Link, links_of, namespace_of
from bootlockd.nics import Nics, command_of
from bootlockd.values import Guest

PROC = Path("/proc")
PID_FILES = Path("/run/libvirt/lxc")


def of_container(guest: Guest, devices: Mapping[str, Link]) -> Nics:
    """The host's devices of a running container. Raises OSError if it ended meanwhile."""
    controller = _controller(guest.name)
    if controller is None:
        return Nics(faults=("its process is not found",)) if guest.is_active else Nics()
    init = _first_child(controller)
    if init is None:
        return Nics(faults=("its first process is not found",)) if guest.is_active else Nics()
    if os.path.samefile(f"/proc/{init}/ns/net", "/proc/self/ns/net"):
        fault = "it uses the host's own network and cannot be isolated: destroy or pause it"
        return Nics(faults=(fault,))
    number = namespace_of(init)
    linked = number is not None
    found = {link.name for link in devices.values() if linked and link.peer_namespace == number}
    return Nics(frozenset(found))


def _controller(name: str) -> int | None:
    try:
        pid = int((PID_FILES / f"{name}.pid").read_text("ascii"))
    except (OSError, ValueError):
        return None
    words = command_of(pid)
    return pid if words[1:3] == ["--name", name] else None


def _first_child(pid: int) -> int | None:
    children = (PROC / f"{pid}/task/{pid}/children").read_text("ascii").split()
    return int(children[0]) if children else None


def faults_inside(guest: Guest) -> tuple[str, ...]:
    """A line for each device inside that leads out by another way than a veth pair.

    Raises OSError if it ended meanwhile.
    """
    controller = _controller(guest.name)
    init = _first_child(controller) if controller else None
    if init is None:
        return ()
    return tuple(
        f"{link.kind or 'host'} device {link.name!r} cannot be cut: detach it"
        for link in links_of(init)
        if _leads_out(link)
    )


def _leads_out(link: Link) -> bool:
    if link.kind:
        return link.kind != "veth" and link.peer_namespace is not None
    return link.name != "lo"
