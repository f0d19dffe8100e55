"""The network devices of a guest, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping

from bootlockd import containernics, hypervisor, links, nics
from bootlockd.errors import FenceError
from bootlockd.links import Link
from bootlockd.nics import Interface, Nics
from bootlockd.values import Guest


def of_guest(guest: Guest, devices: Mapping[str, Link], *, search: bool = True) -> Nics:
    """What its processes have now; nothing, if it is off. ``devices``: this host's, by name.

    ``search`` False: quickly, but only for guests whose process libvirt has a file for. Raises
    FenceError.
    """
    try:
        if _driver(guest) == "lxc":
            return containernics.of_container(guest, devices)
        if _driver(guest) == "qemu":
            return _of_qemu(guest, devices, search)
    except (FileNotFoundError, ProcessLookupError):
        # It ended while it was looked at.
        return Nics()
    except OSError as error:
        raise FenceError(f"{guest.name}: its devices cannot be seen: {error}") from error
    if not guest.is_active:
        return Nics()
    return Nics(faults=(f"guests of {guest.uri} cannot be isolated: destroy or pause it",))


def glimpse(guest: Guest) -> set[str | int]:
    """Its devices by name or index, quickly, if libvirt has a file for its process.

    Raises FenceError.
    """
    try:
        if _driver(guest) == "qemu":
            pid = nics.process_of(guest, search=False)
            return nics.opened_by(pid) if pid is not None else set()
    except OSError:
        # It ended; what else it may be is for of_guest to say.
        return set()
    return set(of_guest(guest, links.links(), search=False).devices)


def faults_of(guest: Guest, found: Nics) -> tuple[str, ...]:
    """What else of a running guest can't be cut, as libvirt tells it, or as it looks inside.

    Raises Unreachable or FenceError.
    """
    told = nics.in_xml(interfaces_of(guest), found.devices)
    if _driver(guest) != "lxc":
        return told
    try:
        return told + containernics.faults_inside(guest)
    except (FileNotFoundError, ProcessLookupError):
        return told
    except OSError as error:
        raise FenceError(f"{guest.name}: its devices cannot be seen: {error}") from error


def interfaces_of(guest: Guest, *, inactive: bool = False) -> list[Interface]:
    """The network interfaces in its XML; none, if it is gone. Raises Unreachable."""
    document = hypervisor.document_of(guest, inactive=inactive)
    return nics.interfaces(document) if document else []


def _driver(guest: Guest) -> str:
    return guest.uri.partition(":")[0].partition("+")[0]


def _of_qemu(guest: Guest, devices: Mapping[str, Link], search: bool) -> Nics:
    pid = nics.process_of(guest, search=search and guest.is_active)
    if pid is not None:
        return nics.of_process(pid, {link.index: link.name for link in devices.values()})
    if guest.is_active and search:
        return Nics(faults=("its QEMU process is not found",))
    return Nics()
