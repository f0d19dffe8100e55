"""The XML of the guests that tests define: QEMU's smallest, a container, their disks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr


def disk_xml(
    kind: str, source: str, *, target: str = "vda", image: str = "raw", extra: str = ""
) -> str:
    """A `<disk>` of one type. ``source``: its `<source>`; ``extra``: more XML within it."""
    return (
        f"<disk type='{kind}' device='disk'><driver name='qemu' type='{image}'/>{source}"
        f"<target dev='{target}' bus='virtio'/>{extra}</disk>"
    )


def file_disk(path: Path, *, target: str = "vda", image: str = "raw", extra: str = "") -> str:
    """A disk in an image file of format ``image``."""
    source = f"<source file={quoteattr(str(path))}/>"
    return disk_xml("file", source, target=target, image=image, extra=extra)


def domain_xml(
    name: str,
    uuid: str | None = None,
    *,
    disks: Iterable[str | Path] = (),
    devices: str = "",
    metadata: str = "",
    memory_mib: int = 64,
) -> str:
    """The smallest QEMU guest that starts anywhere (emulated, no KVM); its BIOS finds no system.

    ``disks``: a Path is a raw image file, a string is XML of a `<disk>`. ``uuid`` None: libvirt
    makes one up.
    """
    drives = [
        file_disk(disk, target=f"vd{chr(ord('a') + at)}") if isinstance(disk, Path) else disk
        for at, disk in enumerate(disks)
    ]
    return (
        f"<domain type='qemu'><name>{escape(name)}</name>{_uuid_element(uuid)}{metadata}"
        f"<memory unit='MiB'>{memory_mib}</memory><vcpu>1</vcpu>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
        "<features><acpi/></features>"
        f"<devices>{''.join(drives)}{devices}"
        "<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
    )


def container_xml(name: str, uuid: str | None = None, *, init: str = "/bin/sleep") -> str:
    """A container on the host's own root file system that does nothing."""
    return (
        f"<domain type='lxc'><name>{escape(name)}</name>{_uuid_element(uuid)}"
        "<memory unit='MiB'>64</memory><vcpu>1</vcpu>"
        f"<os><type>exe</type><init>{escape(init)}</init><initarg>infinity</initarg></os>"
        "<devices><console type='pty'/></devices></domain>"
    )


def _uuid_element(uuid: str | None) -> str:
    return "" if uuid is None else f"<uuid>{escape(uuid)}</uuid>"
