"""Domains of every shape, as values, in libvirt's formatting, and as Hypothesis strategies.

What a disk's key in ``held_disk`` must be is said here a third time, from the values and without
any XML: tests compare it with what ``lockdb.disks`` and ``decide.sql`` read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

import libvirt
from hypothesis import strategies as st

# Errors come as exceptions; libvirt would print them as well.
libvirt.registerErrorHandler(lambda *_: None, None)

_BLANKS = str.maketrans("\t\n\r", "   ")


def quoted(value: str) -> str:
    """An attribute's value as libvirt writes it: white space stays what it is."""
    return "'" + escape(value, {"'": "&apos;", '"': "&quot;"}) + "'"


@dataclass(frozen=True)
class Host:
    """Where a network disk is."""

    name: str = ""
    port: str = ""
    socket: str = ""

    def __str__(self) -> str:
        if self.socket:
            return f"<host transport='unix' socket={quoted(self.socket)}/>"
        return f"<host name={quoted(self.name)} port={quoted(self.port)}/>"

    @property
    def key(self) -> str:
        return self.socket or f"{self.name}:{self.port}"


@dataclass(frozen=True)
class Source:
    """A disk's source: its kind, attributes, hosts, and the key that names it."""

    kind: str
    attributes: dict[str, str]
    key: str
    hosts: tuple[Host, ...] = ()

    def __str__(self) -> str:
        attributes = " ".join(f"{name}={quoted(text)}" for name, text in self.attributes.items())
        if not self.hosts:
            return f"<source {attributes}/>"
        hosts = "\n".join(map(str, self.hosts))
        return f"<source {attributes}>\n{hosts}\n</source>"


@dataclass(frozen=True)
class Disk:
    """A disk with its backing chain. ``mark``: readonly, shareable, transient or nothing."""

    source: Source
    chain: tuple[Source, ...] = ()
    device: str = "disk"
    mark: str = ""

    @property
    def is_own(self) -> bool:
        return self.device in {"disk", "lun"} and not self.mark

    def xml(self, target: str) -> str:
        mark = f"<{self.mark}/>" if self.mark else ""
        return (
            f"<disk type='{self.source.kind}' device='{self.device}'>\n{self.source}\n"
            f"{self._backing()}<target dev='{target}'/>\n{mark}\n</disk>"
        )

    def _backing(self) -> str:
        text = "<backingStore/>\n"
        for source in reversed(self.chain):
            text = (
                f"<backingStore type='{source.kind}'>\n<format type='qcow2'/>\n{source}\n"
                f"{text}</backingStore>\n"
            )
        return text if self.chain else ""


@dataclass(frozen=True)
class Domain:
    """A whole domain; ``extras`` are further elements between its UUID and its devices."""

    uuid: str
    name: str = "guest"
    disks: tuple[Disk, ...] = ()
    extras: str = ""

    @property
    def keys(self) -> set[str]:
        """The keys of everything that it would open."""
        return {source.key for disk in self.disks for source in (disk.source, *disk.chain)}

    @property
    def own_keys(self) -> set[str]:
        """The keys of what it alone may write to."""
        return {disk.source.key for disk in self.disks if disk.is_own}

    def xml(self) -> str:
        """In libvirt's formatting, but for the indentation."""
        disks = "\n".join(disk.xml(_target(disk, at)) for at, disk in enumerate(self.disks))
        return (
            f"<domain type='test'>\n  <name>{quoted(self.name)[1:-1]}</name>\n"
            f"  <uuid>{self.uuid}</uuid>\n{self.extras}\n"
            "  <memory unit='KiB'>65536</memory>\n  <os>\n    <type>hvm</type>\n  </os>\n"
            f"  <devices>\n{disks}\n  </devices>\n</domain>\n"
        )


@dataclass
class Formatter:
    """libvirt itself, as far as it accepts a domain. Its test driver needs no daemon."""

    connection: libvirt.virConnect
    #: How many documents libvirt wrote.
    written: int = field(default=0)

    def xml(self, domain: Domain) -> str:
        """As libvirt writes it, or as we do, should libvirt not want it."""
        try:
            defined = self.connection.defineXMLFlags(domain.xml().replace("\r", "&#13;"))
        except libvirt.libvirtError:
            return domain.xml()
        try:
            self.written += 1
            return str(defined.XMLDesc())
        finally:
            defined.undefine()


@contextmanager
def libvirt_formatter() -> Iterator[Formatter]:
    """A formatter, closed in the end."""
    connection = libvirt.open("test:///default")
    try:
        yield Formatter(connection)
    finally:
        connection.close()


def _target(disk: Disk, position: int) -> str:
    prefix = {"cdrom": "hd", "floppy": "fd", "lun": "sd"}.get(disk.device, "vd")
    return prefix + "abcdefgh"[position]


def _clean(key: str) -> str:
    return key.translate(_BLANKS)


def file(path: str) -> Source:
    return Source("file", {"file": path}, _clean(f"path:{path}"))


def block(path: str) -> Source:
    return Source("block", {"dev": path}, _clean(f"path:{path}"))


def volume(pool: str, name: str) -> Source:
    return Source("volume", {"pool": pool, "volume": name}, _clean(f"volume:{pool}/{name}"))


def network(protocol: str, name: str, *hosts: Host) -> Source:
    at = "" if protocol in {"rbd", "iscsi"} else "@" + (hosts[0].key if hosts else "")
    named = {"name": name} if name else {}
    key = _clean(f"net:{protocol}:{name}{at}")
    return Source("network", {"protocol": protocol} | named, key, hosts)


# Everything that means something to XML, JSON, SQL, a shell, or an attribute's end.
TEXT = st.text(
    st.sampled_from("abAB09./-_:@ '\"<>&;=\\%$*{}[],|~\t\n\r\x7fé漢😀\u2028"),
    min_size=1,
    max_size=10,
)
PATHS = TEXT.map("/".__add__)
HOSTS = st.builds(Host, name=TEXT, port=st.integers(1, 65535).map(str)) | st.builds(
    Host, socket=PATHS
)
SOURCES = st.one_of(
    st.builds(file, PATHS),
    st.builds(block, PATHS),
    st.builds(volume, TEXT, TEXT),
    st.builds(network, st.just("rbd"), PATHS.map("pool".__add__), HOSTS, HOSTS),
    st.builds(network, st.just("rbd"), PATHS.map("pool".__add__)),
    st.builds(network, st.just("iscsi"), PATHS.map("iqn.2026-01.example:x".__add__), HOSTS),
    st.builds(network, st.just("nbd"), st.just("") | TEXT, HOSTS),
    st.builds(network, st.sampled_from(["gluster", "https"]), PATHS.map("a".__add__), HOSTS),
)

#: What may stand in a domain without being a disk of it, however much it looks like one: ``{}`` is
#: an attribute of some source.
EXTRAS = (
    "",
    "<description>&lt;source file={}/&gt;</description>",
    '<metadata><x:y xmlns:x="z"><source file="{}"/><x:source dev="{}"/></x:y></metadata>',
    '<metadata><x:y xmlns:x="z"><source a="file={}"/><uuid>{}</uuid></x:y></metadata>',
)
