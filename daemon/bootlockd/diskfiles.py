"""Which files a guest's disks consist of: its images, and those that they are overlays of."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field

from bootlockd import qcow2
from lockdb import disks

#: Overlays on overlays. QEMU has no limit; whoever builds more than that wants something else.
DEPTH = 200


@dataclass
class Chain:
    """What an image says of other files. ``faults``: what it names and is none here."""

    #: The guest's own data, outside of its image.
    data: list[str] = field(default_factory=list)
    backing: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def formats(domain_xml: str) -> dict[str, str]:
    """The formats of a domain's disks, by their keys (lockdb.disks). Raises ParseError."""
    found = {}
    for disk in ET.fromstring(domain_xml).iterfind("./devices/disk"):  # noqa: S314 - from libvirt
        source, driver = disk.find("source"), disk.find("driver")
        kind = driver.get("type", "raw") if driver is not None else "raw"
        if source is None:
            continue
        if path := source.get("file") or source.get("dev"):
            found[disks.path_key(path)] = kind
        elif source.get("volume"):
            found[disks.volume_key(source.get("pool", ""), source.get("volume", ""))] = kind
    return found


def paths(domain_xml: str) -> Iterator[str]:
    """The files and devices that any of its disks is, media and shared ones included."""
    for source in ET.fromstring(domain_xml).iterfind("./devices/disk/source"):  # noqa: S314
        if path := source.get("file") or source.get("dev"):
            yield path


def elsewhere(domain_xml: str) -> Iterator[str]:
    """What a guest writes to that is no file, device or volume which its disks name.

    Each in a few words. Raises ParseError or InvalidValue.
    """
    for target in disks.nameless(domain_xml):
        yield f"its disk {target!r} is no file, device or volume"
    devices = ET.fromstring(domain_xml).find("./devices")  # noqa: S314 - from libvirt
    for device in devices if devices is not None else ():
        source = device.find("source")
        if source is None or device.find("readonly") is not None:
            continue
        if device.tag == "filesystem":
            name = next(iter(source.attrib.values()), "")
            yield f"{name!r} is a file system that it shares with this host"
        elif device.tag == "hostdev" and device.get("type", "").startswith("scsi"):
            yield "a SCSI device was handed to it whole"
        elif device.tag == "memory" and (path := source.findtext("path")):
            yield f"{path!r} is its persistent memory"


def chain_of(path: str, kind: str) -> Chain:
    """What belongs to the image at ``path``, of this format. Raises OSError."""
    chain = Chain()
    seen = 0
    while kind == "qcow2":
        header = _header(path)
        if header is None:
            chain.faults.append(f"{path!r} is no qcow2 image")
            return chain
        for name, into in ((header.data_file, chain.data), (header.backing, chain.backing)):
            if not name:
                continue
            found = _file(path, name)
            if found is None:
                chain.faults.append(f"{name!r}, which {path!r} names, is no file here")
            else:
                # What belongs to a backing file is others' as well.
                (chain.backing if seen else into).append(found)
        seen += 1
        if not header.backing or _file(path, header.backing) is None:
            return chain
        if seen > DEPTH:
            chain.faults.append(f"{path!r} is one of more than {DEPTH} overlays")
            return chain
        path, kind = chain.backing[-1], header.backing_format
    return chain


def _header(path: str) -> qcow2.Header | None:
    # QEMU's images may be pipes to nobody; a descriptor that is not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return qcow2.read(descriptor)
    finally:
        os.close(descriptor)


def _file(image: str, name: str) -> str | None:
    """The file that an image names, as QEMU reads it: relative to the image; no protocol."""
    name = name.removeprefix("file:")
    first, colon, _ = name.partition(":")
    if "\0" in name or (colon and "/" not in first):
        return None
    return os.path.join(os.path.dirname(image), name)
