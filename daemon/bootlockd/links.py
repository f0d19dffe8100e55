"""Network links of this host's network namespace, and netlink's word that they or rules changed.

Through pyroute2, but for the event sockets: a plain socket can be waited for together with a
timer, and tells in a fifth of the time.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from bootlockd.errors import FenceError
from bootlockd.nft import TABLE

#: linux/if.h, linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/netfilter/nfnetlink.h
IFF_UP = 1
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
IFLA_TARGET_NETNSID = 46
RTMGRP_LINK = 1
NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
SO_RCVBUFFORCE = 33

#: What the kernel answers for a namespace without a number.
_UNNUMBERED = 0xFFFFFFFF

#: Room for what happens while rules are written; what doesn't fit is said to be lost.
BUFFER = 8 << 20


@dataclass(frozen=True)
class Link:
    """A device as it was at one moment."""

    index: int
    name: str
    is_up: bool
    #: tun, macvtap, veth ...; empty for hardware.
    kind: str
    #: The kernel's number for the other end's network namespace; None: it is in this one.
    peer_namespace: int | None = None
    is_gone: bool = False


@dataclass(frozen=True)
class Changes:
    """What netlink told since it was asked last."""

    links: tuple[Link, ...] = ()
    #: Something about our nftables tables was changed, by us or others.
    rules: bool = False
    #: Some was lost: anything may have changed.
    lost: bool = False


def links() -> dict[str, Link]:
    """All links, by name. Raises FenceError."""
    try:
        with IPRoute() as netlink:
            found = [link_of(message) for message in netlink.get_links()]
    except (NetlinkError, OSError) as error:
        raise FenceError(f"the network devices cannot be listed: {error}") from error
    return {link.name: link for link in found}


def links_of(pid: int) -> list[Link]:
    """All links of a process's network namespace, asked for from here. Raises OSError.

    Entering it would take CAP_SYS_ADMIN. The kernel tells of another namespace by its number in
    ours; one that no link of ours leads into gets its number now.
    """
    number = namespace_of(pid)
    if number is None:
        # Another thread may have given it one.
        with suppress(FileExistsError), _as_os_error(), IPRoute() as netlink:
            netlink.set_netnsid(pid=pid)
        number = namespace_of(pid)
    if number is None:
        raise ProcessLookupError(f"the network namespace of process {pid} has gone")
    return list(_links_in(_dump(number)))


def namespace_of(pid: int) -> int | None:
    """The number in ours of a process's network namespace, if it has one. Raises OSError."""
    with _as_os_error(), IPRoute() as netlink:
        number = int(netlink.get_netnsid(pid=pid)["nsid"])
    return None if number == _UNNUMBERED else number


def set_up(link: Link, up: bool) -> None:
    """Set a link up or down; that it is gone is no error. Raises FenceError."""
    try:
        with IPRoute() as netlink:
            netlink.link("set", index=link.index, state="up" if up else "down")
    except NetlinkError as error:
        if error.code != 19:  # ENODEV
            raise FenceError(f"{link.name} cannot be set {'up' if up else 'down'}: {error}") from (
                error
            )


def link_of(message: Any) -> Link:
    """A link in pyroute2's words."""
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        is_up=bool(message["flags"] & IFF_UP),
        kind=(info.get_attr("IFLA_INFO_KIND") if info else "") or "",
        peer_namespace=message.get_attr("IFLA_LINK_NETNSID"),
        is_gone=message["header"]["type"] == RTM_DELLINK,
    )


class NetlinkEvents:
    """Links' and rules' changes, from the moment it is made. ``close`` it."""

    def __init__(self) -> None:
        self._links = _listener(socket.NETLINK_ROUTE, RTMGRP_LINK)
        try:
            self._rules = _listener(NETLINK_NETFILTER, 1 << (NFNLGRP_NFTABLES - 1))
        except OSError:
            self._links.close()
            raise
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wake(self) -> None:
        """From any thread: have ``wait`` return now."""
        os.eventfd_write(self._wake, 1)

    def wait(self, seconds: float | None) -> Changes:
        """What changed; nothing, if nothing did within the time."""
        sources = [self._links.fileno(), self._rules.fileno(), self._wake]
        if self._wake in select.select(sources, [], [], seconds)[0]:
            os.eventfd_read(self._wake)
        found, links_lost = _drain(self._links)
        changed, rules_lost = _drain(self._rules)
        # A name of ours, anywhere in the message: seldom somebody else's, and then it costs a look.
        ours = any(f"{TABLE}\0".encode() in message for message in changed)
        return Changes(tuple(_links_in(found)), ours, links_lost or rules_lost)

    def close(self) -> None:
        """End it."""
        self._links.close()
        self._rules.close()
        os.close(self._wake)


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error


def _dump(namespace: int) -> list[bytes]:
    """The links there as the kernel tells them; pyroute2 can't ask for them."""
    # struct nlmsghdr, struct ifinfomsg, and one attribute.
    question = struct.pack("=IHHII", 40, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    question += bytes(16) + struct.pack("=HHi", 8, IFLA_TARGET_NETNSID, namespace)
    found: list[bytes] = []
    raw = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, raw, socket.NETLINK_ROUTE) as asked:
        asked.sendto(question, (0, 0))
        while True:
            for message in _split(asked.recv(1 << 16)):
                (kind,) = struct.unpack_from("=H", message, 4)
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", message, 16)
                    raise OSError(-code, os.strerror(-code))
                found.append(message)


def _listener(protocol: int, groups: int) -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        try:
            listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        except PermissionError:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        listener.setblocking(False)
        listener.bind((0, groups))
    except OSError:
        listener.close()
        raise
    return listener


def _drain(listener: socket.socket) -> tuple[list[bytes], bool]:
    """The messages that wait, and whether some were lost."""
    found: list[bytes] = []
    lost = False
    while True:
        try:
            found += _split(listener.recv(1 << 16))
        except BlockingIOError:
            return found, lost
        except OSError:  # ENOBUFS, which is told once
            lost = True


def _split(data: bytes) -> Iterator[bytes]:
    while len(data) >= 16:
        (length,) = struct.unpack_from("=I", data)
        if length < 16:
            return
        yield data[:length]
        data = data[(length + 3) & ~3 :]


def _links_in(messages: list[bytes]) -> Iterator[Link]:
    for data in messages:
        (kind,) = struct.unpack_from("=H", data, 4)
        if kind in {RTM_NEWLINK, RTM_DELLINK}:
            message = ifinfmsg(data)
            message.decode()
            # A bridge's word about its port; the device's own comes as well.
            if message["family"] == socket.AF_UNSPEC:
                yield link_of(message)
