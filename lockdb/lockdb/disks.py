"""The disks of held instances, so that the same disk under another UUID is refused too.

A disk is named by a key, which ``decide.sql`` makes the same way from a starting domain's XML:

    path:PATH                    file and block devices
    volume:POOL/VOLUME           libvirt storage volumes
    net:PROTOCOL:NAME            rbd and iscsi, whose names are unique without their hosts
    net:PROTOCOL:NAME@HOST:PORT  other network disks; @SOCKET for one on a Unix socket

Only an instance's own writable disks are recorded: a base image that a thousand guests start from
must not be refused because one of them is held.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from lockdb import journal
from lockdb.database import LockDB
from lockdb.errors import InvalidValue

#: ``<disk device=...>`` values that a guest may write to; cdrom and floppy are media, not its own.
_WRITABLE_DEVICES = {"disk", "lun"}
# transient: the guest writes to a throw-away overlay, the source may be a shared base image.
_NOT_OWN = ("readonly", "shareable", "transient")
_UNIQUE_WITHOUT_HOST = {"rbd", "iscsi"}
_BLANK = str.maketrans("\t\n\r", "   ")


def keys_of(domain_xml: str) -> frozenset[str]:
    """The keys of the own writable disks in libvirt's XML of a domain. Raises InvalidValue."""
    return frozenset(key for disk in _own(domain_xml) for key in _keys(disk))


def nameless(domain_xml: str) -> list[str]:
    """Where the guest sees those of its own writable disks that have no key. InvalidValue."""
    return [
        target.get("dev", "") if (target := disk.find("target")) is not None else ""
        for disk in _own(domain_xml)
        if disk.find("source") is not None and not [*_keys(disk)]
    ]


def record(lock_db: LockDB, instance: str, keys: Iterable[str], *, now: int) -> None:
    """Remember the disks of a held instance, as long as it is held. None is ever forgotten here."""
    wanted = sorted(set(keys))
    with lock_db.write() as db:
        known = {row[0] for row in db.execute(*_of(instance))}
        new = [key for key in wanted if key not in known]
        if new:
            db.table("held_disk").insert_all({"source": key, "instance": instance} for key in new)
            journal.append(db, "disks_recorded", now, instance=instance, disks=new)


def of_instance(lock_db: LockDB, instance: str) -> list[str]:
    """The recorded disk keys of an instance, sorted."""
    with lock_db.read() as db:
        return [row[0] for row in db.execute(*_of(instance))]


def by_instance(lock_db: LockDB) -> dict[str, list[str]]:
    """All recorded disk keys, by instance."""
    found: dict[str, list[str]] = {}
    with lock_db.read() as db:
        for instance, source in db.execute("SELECT instance, source FROM held_disk ORDER BY 1, 2"):
            found.setdefault(instance, []).append(source)
    return found


def _of(instance: str) -> tuple[str, list[str]]:
    return "SELECT source FROM held_disk WHERE instance = ? ORDER BY source", [instance]


def _own(domain_xml: str) -> list[ET.Element]:
    try:
        # Blanks for white space, one for one: the parser would make CR LF a single one.
        domain = ET.fromstring(domain_xml.translate(_BLANK))  # noqa: S314 - from libvirt, no DTD
    except ET.ParseError as error:
        raise InvalidValue("domain XML", str(error)) from error
    return [disk for disk in domain.iterfind("./devices/disk") if _is_own(disk)]


def _is_own(disk: ET.Element) -> bool:
    return disk.get("device", "disk") in _WRITABLE_DEVICES and not any(
        disk.find(mark) is not None for mark in _NOT_OWN
    )


def _keys(disk: ET.Element) -> Iterable[str]:
    source = disk.find("source")
    if source is None:
        return
    if path := source.get("file") or source.get("dev"):
        yield path_key(path)
    elif source.get("volume"):
        yield volume_key(source.get("pool", ""), source.get("volume", ""))
    elif protocol := source.get("protocol"):
        host = "" if protocol in _UNIQUE_WITHOUT_HOST else "@" + _host(source)
        yield _clean(f"net:{protocol}:{source.get('name', '')}{host}")


def path_key(path: str) -> str:
    """The key of a file or block device."""
    return _clean(f"path:{path}")


def volume_key(pool: str, volume: str) -> str:
    """The key of a libvirt storage volume."""
    return _clean(f"volume:{pool}/{volume}")


def _host(source: ET.Element) -> str:
    host = source.find("host")
    if host is None:
        return ""
    return host.get("socket") or f"{host.get('name', '')}:{host.get('port', '')}"


def _clean(key: str) -> str:
    # XML reads any white space in an attribute as a blank; the hook sees it before that.
    return key.translate(_BLANK)
