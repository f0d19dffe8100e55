"""Persistent definitions in libvirt: how one is read whole, and defined again as it was.

Whole: the domain's XML as it would start, whether it starts with the host, and its snapshots'
metadata, parents first. Not in it, and not kept: checkpoints, libvirt's secrets.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import libvirt

from bootlockd import hypervisor, statefiles
from bootlockd.errors import FenceError
from bootlockd.keptdefinition import KeptDefinition
from bootlockd.values import Guest

#: Seconds that libvirt may take for one definition.
LIMIT = 60.0

_STORED = libvirt.VIR_DOMAIN_XML_INACTIVE
_WHOLE = _STORED | libvirt.VIR_DOMAIN_XML_SECURE
_NOVA = "{http://openstack.org/xmlns/libvirt/nova/"

T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """A definition as it is now, as far as it takes to compare it."""

    document: str
    autostart: bool
    #: Parents first.
    snapshots: tuple[str, ...]
    current_snapshot: str | None
    versions: str


def see(guest: Guest) -> Seen | None:
    """The definition of a guest; None if it has none (any more). Raises Unreachable."""

    def ask(opened: Any, domain: Any) -> Seen:
        names = tuple(snapshot.getName() for snapshot in hypervisor.snapshots_of(domain))
        return Seen(
            document=domain.XMLDesc(_WHOLE),
            autostart=hypervisor.is_autostarted(domain),
            snapshots=names,
            current_snapshot=_current(domain, names),
            versions=_versions(opened),
        )

    return _of(guest, ask)


def take(guest: Guest, now: int) -> KeptDefinition | None:
    """All that is to be kept of a guest's definition; None if it has none. Raises Unreachable."""

    def ask(opened: Any, domain: Any) -> KeptDefinition:
        stored = hypervisor.read_stored(domain, secure=True)
        return KeptDefinition(
            instance=guest.uuid,
            uri=guest.uri,
            name=domain.name(),
            document=stored.document,
            shown=domain.XMLDesc(_STORED),
            autostart=stored.autostart,
            snapshots=stored.snapshots,
            current_snapshot=_current(domain, stored.snapshots),
            nvram=statefiles.variables_of(stored.document),
            kept_at=now,
            versions=_versions(opened),
        )

    return _of(guest, ask)


def define(kept: KeptDefinition) -> None:
    """Have libvirt define it as it was kept, under its old name; what is there stays there.

    May be called again after it was interrupted anywhere. Raises FenceError where libvirt refuses,
    or Unreachable.
    """

    def order() -> None:
        with hypervisor.connection(kept.uri, read_only=False) as opened:
            try:
                _define(opened, kept)
            except libvirt.libvirtError as error:
                said = hypervisor.one_line(error)
                raise FenceError(f"it is not defined as it was: {said}", _HINT) from error

    hypervisor.bounded(order, LIMIT, f"define {kept.instance}")


_HINT = "'bootlock show INSTANCE --xml' shows how it was"


def is_novas(document: str) -> bool:
    """Nova made it, and makes it again at each start of its own. Raises ParseError."""
    metadata = ET.fromstring(document).find("./metadata")  # noqa: S314 - libvirt wrote it
    return metadata is not None and any(each.tag.startswith(_NOVA) for each in metadata)


def _of(guest: Guest, question: Callable[[Any, Any], T]) -> T | None:
    """An answer about a persistent domain, on a connection; None if there is none."""

    def ask() -> T | None:
        # Who may only read is not shown passwords.
        with hypervisor.connection(guest.uri, read_only=False) as opened:
            domain = hypervisor.look_up(opened, guest.uuid)
            try:
                return question(opened, domain) if domain and domain.isPersistent() else None
            except libvirt.libvirtError as error:
                # It may be undefined between two questions.
                gone = libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT
                if error.get_error_code() in gone:
                    return None
                raise

    return hypervisor.bounded(ask, LIMIT, f"definition of {guest.uuid}")


def _define(opened: Any, kept: KeptDefinition) -> None:
    _have_its_name(opened, kept)
    domain = opened.defineXML(kept.document)
    there = {snapshot.getName() for snapshot in hypervisor.snapshots_of(domain)}
    for snapshot in kept.snapshots:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        is_current = snapshot.name == kept.current_snapshot
        if is_current:
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
        if is_current or snapshot.name not in there:
            domain.snapshotCreateXML(snapshot.document, flags)
    if hypervisor.is_autostarted(domain) != kept.autostart:
        domain.setAutostart(kept.autostart)


def _have_its_name(opened: Any, kept: KeptDefinition) -> None:
    """Raises FenceError if another domain has it; libvirtError if libvirt can't rename."""
    domain = hypervisor.look_up(opened, kept.instance)
    if domain is not None and domain.name() == kept.name:
        return
    other = next((each for each in opened.listAllDomains() if each.name() == kept.name), None)
    if other is not None:
        raise FenceError(
            f"another domain, {other.UUIDString()}, is called {kept.name!r} now",
            "rename or undefine that one",
        )
    if domain is not None:
        domain.rename(kept.name)


def _versions(opened: Any) -> str:
    return f"libvirt {opened.getLibVersion()}, {opened.getType()} {opened.getVersion()}"


def _current(domain: Any, snapshots: Sequence[object]) -> str | None:
    if not snapshots or not domain.hasCurrentSnapshot():
        return None
    return str(domain.snapshotCurrent().getName())
