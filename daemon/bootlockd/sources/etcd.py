"""The fleet's registry as a source: all holds come to all hosts, each under its own id."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bootlockd.config import Config
from bootlockd.fleet.client import Client
from bootlockd.fleet.errors import EtcdError
from bootlockd.fleet.facts import SOURCE, Facts
from bootlockd.fleet.follower import Follower
from bootlockd.fleet.history import standing_of
from bootlockd.fleet.keys import Keys, host_name
from bootlockd.sources.base import Known, Reading, SourceError


class EtcdSource:
    """Reads and follows; and while it follows, answers for this host."""

    name = SOURCE

    def __init__(self, config: Config) -> None:
        self._settings = config.fleet
        self._database = config.database.path

    def read(self, known: Known) -> Reading:
        """One look. Says nothing of this host: that is for who follows."""
        with self._following(known) as follower:
            return follower.look()

    def follow(self, known: Known, stop: threading.Event) -> Iterator[Reading]:
        """Until ``stop``, through whatever happens to single members."""
        with self._following(known) as follower:
            yield from follower.readings(stop)

    @contextmanager
    def _following(self, known: Known) -> Iterator[Follower]:
        # A new client each time: certificates and passwords are read again.
        try:
            client = Client(self._settings)
            try:
                name = host_name(self._settings)
                facts = Facts(self._database, name, self._settings.heartbeat)
                keys = Keys(self._settings.prefix)
                standing = standing_of(known.revision)
                yield Follower(client, keys, name, facts, standing, set(known.held))
            finally:
                client.close()
        except EtcdError as error:
            raise SourceError(f"etcd: {error}", error.hint) from error
