"""A key that is there for as long as somebody keeps it: a sign of life, or an office.

``Lease`` writes a key that etcd deletes when nobody asked for it any more. ``Office`` is the same
for what only one may do at a time: it is taken only if nobody has it.
"""

from __future__ import annotations

import time

from bootlockd.fleet.client import Client


class Lease:
    """Keeps ``key`` there. For one thread."""

    def __init__(self, client: Client, key: bytes, *, ttl: int) -> None:
        self._client = client
        self._key = key
        self._ttl = ttl
        self._lease = 0

    def hold(self) -> None:
        """Call it more often than the ``ttl``. Raises EtcdError."""
        if self._lease and self._client.keep_alive(self._lease):
            return
        self._lease = self._client.grant(self._ttl)
        while True:
            _, there = self._client.get(self._key)
            _, written, _ = self._client.write(
                self._key, b"", mod=there.mod if there else 0, lease=self._lease
            )
            if written:
                return


class Office:
    """What one of several does, called ``name``; the value is for people to read.

    Who asked last and got it may act until ``ttl`` seconds after he began to ask, by his own clock:
    etcd gives it to nobody else before.
    """

    def __init__(self, client: Client, key: bytes, *, name: str, ttl: int) -> None:
        self._client = client
        self._key = key
        self._name = name.encode()
        self._ttl = ttl
        self._lease = 0
        self._until = 0.0

    @property
    def is_mine(self) -> bool:
        """For now, without asking."""
        return time.monotonic() < self._until

    def ask(self) -> bool:
        """Take or keep it; to be called a few times each ``ttl``. Raises EtcdError."""
        began = time.monotonic()
        if not self._lease or not self._client.keep_alive(self._lease):
            self._lease = self._client.grant(self._ttl)
            self._until = 0.0
        _, there = self._client.get(self._key)
        mine = self._name + b" " + str(self._lease).encode()
        if there is None:
            _, written, there = self._client.write(self._key, mine, mod=0, lease=self._lease)
        else:
            written = False
        # Written before without an answer, it is ours as well.
        if written or (there is not None and there.value == mine):
            self._until = began + self._ttl
        else:
            self._until = 0.0
        return self.is_mine

    def give_back(self) -> None:
        """Let another have it at once. Raises EtcdError."""
        self._until = 0.0
        if self._lease:
            self._client.revoke(self._lease)
            self._lease = 0
