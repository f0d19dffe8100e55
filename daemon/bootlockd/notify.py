"""Telling systemd: READY, STATUS, WATCHDOG, and file descriptors to keep (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Sequence


def notify(*lines: str, descriptors: Sequence[int] = ()) -> bool:
    """Send one message to the service manager. False where there is none. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    ancillary = []
    if descriptors:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.sendmsg(["\n".join(lines).encode()], ancillary)
    return True


def watchdog_interval() -> float | None:
    """Seconds within which systemd wants to hear WATCHDOG=1; None if it does not watch us."""
    wanted = os.environ.get("WATCHDOG_USEC")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(wanted) / 1e6 if wanted and ours else None


def kept_descriptors() -> dict[str, list[int]]:
    """What the service manager kept over a restart, by the names we gave (LISTEN_FDNAMES)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    kept: dict[str, list[int]] = {}
    for offset in range(int(os.environ.get("LISTEN_FDS", "0"))):
        descriptor = 3 + offset
        os.set_inheritable(descriptor, False)
        kept.setdefault(names[offset] if offset < len(names) else "unknown", []).append(descriptor)
    return kept
