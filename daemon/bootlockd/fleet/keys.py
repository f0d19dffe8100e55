"""The names of the keys, below a prefix of the site's own.

bootlock/holds/3f9c2a…   what is held or released, by the hold's id
bootlock/permits/81d0…   what lets starts through, by the permit's id
bootlock/hosts/NAME      what a host says of itself
bootlock/alive/NAME      there for as long as it keeps saying so
bootlock/leads/NAME      who does what only one may do
bootlock/relays/NAME     how far he came, whoever he was
bootlock/pruned          from when on nothing is missing that was released
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from bootlockd.config import Fleet

_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Keys:
    """Those below one prefix."""

    prefix: str

    def hold(self, hold_id: str) -> bytes:
        """Of one hold."""
        return f"{self.prefix}holds/{hold_id}".encode()

    def permit(self, permit_id: str) -> bytes:
        """Of one permit."""
        return f"{self.prefix}permits/{permit_id}".encode()

    def host(self, name: str) -> bytes:
        """Of one host."""
        return f"{self.prefix}hosts/{name}".encode()

    def alive(self, name: str) -> bytes:
        """Of the same, as long as it lives."""
        return f"{self.prefix}alive/{name}".encode()

    def lead(self, name: str) -> bytes:
        """Of one office."""
        return f"{self.prefix}leads/{name}".encode()

    def relay(self, name: str) -> bytes:
        """Of what the holder of one office said last."""
        return f"{self.prefix}relays/{name}".encode()

    @property
    def pruned(self) -> bytes:
        """What is known to be gone."""
        return f"{self.prefix}pruned".encode()

    @property
    def holds(self) -> tuple[bytes, bytes]:
        """The range of all holds."""
        return _range(self.hold(""))

    @property
    def permits(self) -> tuple[bytes, bytes]:
        """The range of all permits."""
        return _range(self.permit(""))

    @property
    def hosts(self) -> tuple[bytes, bytes]:
        """The range of all hosts."""
        return _range(self.host(""))

    @property
    def living(self) -> tuple[bytes, bytes]:
        """The range of the hosts that live."""
        return _range(self.alive(""))

    def name_of(self, key: bytes) -> str:
        """What stands behind the kind of key, as one printable word."""
        text = key.decode("utf-8", "replace").removeprefix(self.prefix).partition("/")[2]
        return "".join(c if c.isprintable() else "?" for c in text)[:80]


def host_name(settings: Fleet) -> str:
    """What this host is called in the fleet."""
    return settings.host or socket.gethostname()


def is_hold_id(text: str) -> bool:
    """Whether a hold, or a permit, can be called so."""
    return _ID.fullmatch(text) is not None


def _range(prefix: bytes) -> tuple[bytes, bytes]:
    # All of our prefixes end in "/", which has a successor.
    return prefix, prefix[:-1] + bytes([prefix[-1] + 1])
