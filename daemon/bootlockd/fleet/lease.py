"""A key that is there for as long as somebody keeps it: a sign of life, or an office.

``Lease`` writes a key that etcd deletes when nobody asked for it any more. ``Office`` is the same
for what only one may do at a time: it is taken only if nobody has it.
"""

from __future__ import annotations

import time

from bootlockd.fleet.client import Client
from bootlockd.fleet.errors import TermOver
from bootlockd.fleet.wire import Header, KeyValue, Term


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
    etcd gives it to nobody else before. A clock that stood still, or a write that was long on its
    way, is etcd's to judge: whoever acts, writes with ``TermClient``.
    """

    def __init__(self, client: Client, key: bytes, *, name: str, ttl: int) -> None:
        self._client = client
        self._key = key
        self._name = name.encode()
        self._ttl = ttl
        self._lease = 0
        #: The term, and until when. One value: it is looked at by other threads.
        self._had: tuple[Term | None, float] = None, 0.0

    @property
    def term(self) -> Term | None:
        """The one that lasts for now, without asking."""
        term, until = self._had
        return term if time.monotonic() < until else None

    def ask(self) -> bool:
        """Take or keep it; to be called a few times each ``ttl``. Raises EtcdError."""
        began = time.monotonic()
        if not self._lease or not self._client.keep_alive(self._lease):
            self._lease = self._client.grant(self._ttl)
            self._had = None, 0.0
        _, there = self._client.get(self._key)
        mine = self._name + b" " + str(self._lease).encode()
        mod = 0
        if there is None:
            header, written, there = self._client.write(self._key, mine, mod=0, lease=self._lease)
            mod = header.revision if written else 0
        # Written before without an answer, it is ours as well.
        if there is not None and there.value == mine:
            mod = there.mod
        self._had = (Term(self._key, mod, self._lease), began + self._ttl) if mod else (None, 0.0)
        return self.term is not None

    def give_back(self) -> None:
        """Let another have it at once. Raises EtcdError."""
        self._had = None, 0.0
        if self._lease:
            self._client.revoke(self._lease)
            self._lease = 0


class TermClient(Client):
    """A client that writes in one term of an office, and never after, however late it arrives."""

    term: Term | None = None

    def write(
        self, key: bytes, value: bytes, *, mod: int, lease: int = 0, term: Term | None = None
    ) -> tuple[Header, bool, KeyValue | None]:
        """As ``Client.write``, in ``self.term``."""
        term = term or self.term
        if term is None:
            raise TermOver("nothing was written: no office was taken")
        return super().write(key, value, mod=mod, lease=lease, term=term)
