"""Which network devices a guest has: as its process holds them open, and as libvirt tells.

The process's descriptors are the truth about devices on the host: a NIC that came by the monitor
is in no XML. Kinds that leave no device behind (user mode, sockets) are seen in libvirt's XML and
on the command line. Nothing here changes anything.

Assumes that it may read any process's /proc: root, in the host's PID namespace.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from bootlockd.values import Guest, Power

PROC = Path("/proc")
SYS = Path("/sys")
PID_FILES = Path("/run/libvirt/qemu")

#: Whose guest one is that only /proc has shown: libvirt's word replaces it.
UNSEEN = "qemu:///system"

#: PCI base class of network controllers, and InfiniBand of before it got a place there.
_NETWORK_CLASSES = ("0x02", "0x0c06")

#: Names that libvirt hands out itself and to whom it likes; any other name is the owner's own.
_HANDED_OUT = re.compile(r"(vnet|vif|veth|macvtap|macvlan)[0-9]+")

#: Kinds of <interface> that end in a device of this host.
_ON_THE_HOST = frozenset({"network", "bridge", "ethernet", "direct"})

#: QEMU's -netdev kinds that end in a device, or in another NIC of the same guest.
_NETDEVS_ON_THE_HOST = frozenset({"tap", "bridge", "hubport", "nic", "none"})


@dataclass(frozen=True)
class Nics:
    """The devices that can be cut, and a line for each thing that can't be."""

    devices: frozenset[str] = frozenset()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interface:
    """One <interface> of a domain's XML."""

    kind: str
    device: str
    mac: str

    def __str__(self) -> str:
        return f"{self.kind} interface {self.mac or self.device}".strip()


def process_of(guest: Guest, *, search: bool = True) -> int | None:
    """The QEMU process of a guest. ``search``: among all processes, if libvirt's file won't do."""
    pid = _from_pid_file(guest.name)
    if pid is not None and _is_of(pid, guest.uuid):
        return pid
    if not search:
        return None
    found = (int(entry) for entry in os.listdir(PROC) if entry.isdecimal())
    return next((pid for pid in found if _is_of(pid, guest.uuid)), None)


def running(instances: Set[str], *, search: bool) -> list[Guest]:
    """Those of ``instances`` that a QEMU runs, as seen without libvirt.

    ``search``: among all processes, and not only in libvirt's files.
    """
    found = {uuid: name for name in _named() if (uuid := _uuid_of(_from_pid_file(name)))}
    if search and instances - found.keys():
        pids = [int(entry) for entry in os.listdir(PROC) if entry.isdecimal()]
        # Without a name it is found among all processes each time.
        found = {uuid: "" for pid in pids if (uuid := _uuid_of(pid))} | found
    return [
        Guest(UNSEEN, name, uuid, Power.RUNNING, None, persistent=True, has_managed_save=False)
        for uuid, name in found.items()
        if uuid in instances
    ]


def of_process(pid: int, by_index: dict[int, str]) -> Nics:
    """What a QEMU process holds open. ``by_index``: the names of this namespace's devices."""
    if not _shares_our_network(pid):
        return Nics(faults=(f"process {pid} is in another network namespace: cut it there",))
    devices: set[str] = set()
    faults: set[str] = set()
    for opened in opened_by(pid):
        if opened in by_index:
            devices.add(by_index[opened])
        elif opened in by_index.values():
            devices.add(str(opened))
        else:
            faults.add(f"device {opened!r} was moved to another network namespace: move it back")
    for _, target in _descriptors(pid):
        faults |= set(_uncuttable(target))
    faults |= set(_on_command_line(command_of(pid)))
    return Nics(frozenset(devices), tuple(sorted(faults)))


def opened_by(pid: int) -> set[str | int]:
    """The devices that a process holds open: taps by name, macvtaps by index."""
    found: set[str | int] = set()
    for number, target in _descriptors(pid):
        if target == "/dev/net/tun":
            # A descriptor whose device was deleted has no name any more.
            found |= {name for name in _tap_of(pid, number) if name}
        elif match := re.fullmatch(r"/dev/tap(\d+)", target):
            found.add(int(match[1]))
    return found


def interfaces(document: str) -> list[Interface]:
    """The network interfaces of a domain's XML."""
    return [
        Interface(
            kind=element.get("type", ""),
            device=_attribute(element, "target", "dev"),
            mac=_attribute(element, "mac", "address"),
        )
        for element in ElementTree.fromstring(document).iterfind("devices/interface")  # noqa: S314 - libvirt's own output, which has no DTD
    ]


def in_xml(found: Iterable[Interface], devices: frozenset[str]) -> tuple[str, ...]:
    """A line for each interface that is none of the devices found."""
    faults = []
    for nic in found:
        if nic.kind == "null":
            continue
        if nic.kind not in _ON_THE_HOST:
            faults.append(f"{nic} has no device on the host: detach it")
        elif nic.device not in devices:
            faults.append(f"{nic}: device {nic.device!r} is not among its process's descriptors")
    return tuple(faults)


def own_names(found: Iterable[Interface]) -> frozenset[str]:
    """Device names that are fixed in the definition: its next run will have the same ones."""
    return frozenset(
        nic.device for nic in found if nic.device and not _HANDED_OUT.fullmatch(nic.device)
    )


def _attribute(element: ElementTree.Element, child: str, name: str) -> str:
    found = element.find(child)
    return found.get(name, "") if found is not None else ""


def _from_pid_file(name: str) -> int | None:
    try:
        text = (PID_FILES / f"{name}.pid").read_text("ascii")
        return int(text)
    except (OSError, ValueError):
        return None


def _named() -> list[str]:
    """The guests that libvirt has files for, which it names after them."""
    try:
        return [path.stem for path in PID_FILES.glob("*.pid")]
    except OSError:
        return []


def _uuid_of(pid: int | None) -> str | None:
    """The UUID on a QEMU's command line, as libvirt writes it; None for other processes."""
    words = command_of(pid) if pid is not None else []
    return next((uuid for option, uuid in pairwise(words) if option == "-uuid"), None)


def _is_of(pid: int, uuid: str) -> bool:
    words = command_of(pid)
    return any(words[at : at + 2] == ["-uuid", uuid] for at in range(len(words)))


def command_of(pid: int) -> list[str]:
    """The words of a process's command line; none if it is gone."""
    try:
        text = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return text.decode(errors="replace").split("\0")


def _shares_our_network(pid: int) -> bool:
    return os.path.samefile(PROC / str(pid) / "ns/net", "/proc/self/ns/net")


def _descriptors(pid: int) -> Iterator[tuple[str, str]]:
    directory = PROC / str(pid) / "fd"
    for number in os.listdir(directory):
        try:
            yield number, os.readlink(directory / number)
        except OSError:  # closed meanwhile
            continue


def _tap_of(pid: int, number: str) -> Iterator[str]:
    try:
        lines = (PROC / str(pid) / "fdinfo" / number).read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        key, _, value = line.partition(b":\t")
        if key == b"iff":
            yield os.fsdecode(value)


def _uncuttable(target: str) -> Iterator[str]:
    """What an open file says about a NIC that bypasses the host's network."""
    if target.startswith("/dev/vhost-vdpa"):
        yield f"vDPA device {target} bypasses the host: detach it"
    elif match := re.fullmatch(r"/dev/vfio/(\d+)", target):
        group = SYS / "kernel/iommu_groups" / match[1] / "devices"
        yield from _passed_through(sorted(group.glob("*")))
    elif match := re.fullmatch(r"/dev/vfio/devices/(vfio\d+)", target):
        yield from _passed_through([(SYS / "class/vfio-dev" / match[1] / "device").resolve()])


def _passed_through(devices: Iterable[Path]) -> Iterator[str]:
    for device in devices:
        if (device / "class").read_text("ascii").startswith(_NETWORK_CLASSES):
            yield f"PCI network device {device.name} is passed through: detach it"


def _on_command_line(words: Sequence[str]) -> Iterator[str]:
    """Networks without a device on the host that QEMU was started with, libvirt's own aside.

    Those of libvirt, which may be unplugged since, are judged by the XML.
    """
    for option, value in pairwise(words):
        if option in {"-netdev", "-nic", "-net"}:
            kind, name = _network(value)
            theirs = name.startswith(("hostnet", "hostua-"))
            if not theirs and kind not in _NETDEVS_ON_THE_HOST:
                yield f"QEMU's {option} {kind} {name}".rstrip() + " has no device on the host"


def _network(value: str) -> tuple[str, str]:
    """Type and id of a -netdev's value, in either of its two forms."""
    if value.startswith("{"):
        try:
            told = json.loads(value)
            return str(told["type"]), str(told["id"])
        except (ValueError, KeyError, TypeError):
            return "of unknown kind", ""
    first, *rest = value.split(",")
    settings = dict(part.partition("=")[::2] for part in rest)
    return first.removeprefix("type="), settings.get("id", "")
