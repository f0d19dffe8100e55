"""Telling systemd: READY, STATUS, WATCHDOG, and file descriptors to keep (sd_notify(3))."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from array import array
from collections.abc import Sequence

log = logging.getLogger(__name__)

#: Seconds between turns where systemd asks for none.
NEVER = 3600.0


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


class Announcer:
    """Says of one run of a service: READY once, STATUS when it changes, and WATCHDOG in time."""

    def __init__(self) -> None:
        interval = watchdog_interval()
        #: Seconds after which the service must turn even if nothing happens.
        self.rest = interval / 3 if interval else NEVER
        self._next_ping = 0.0 if interval else math.inf
        self._said = ""

    def turned(self, summary: str) -> None:
        """After each turn: how the service is, in one line; "" as long as it is not ready.

        Only from what turns: a service that is stuck is to be restarted.
        """
        try:
            self._announce(summary)
            self._ping()
        except OSError as error:
            log.error("systemd does not listen: %s", error)

    def _announce(self, summary: str) -> None:
        if summary == self._said:
            return
        if not self._said:
            notify("READY=1", f"STATUS={summary}")
            log.info("ready: %s", summary)
        else:
            notify(f"STATUS={summary}")
        self._said = summary

    def _ping(self) -> None:
        now = time.monotonic()
        if now >= self._next_ping:
            notify("WATCHDOG=1")
            self._next_ping = now + self.rest


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
