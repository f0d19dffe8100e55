"""A relay as a process of its own, which reads a file in place of Nova.

Called with the relay's name, the registry's endpoints, its prefix, the lease and the file: one line
for each server, ``UUID held``, ``UUID released`` or ``UUID unknown``.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from bootlockd.config import Config, Fleet, Sync
from bootlockd.relayservice import RelayService
from bootlockd.sources.base import Known, Observation, Order, Reading, Said
from bootlockd.sources.nova import ref_of
from lockdb.values import Kind


class Script:
    """Says what the file says, whenever it is looked at."""

    name = "nova"

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self, known: Known) -> Reading:
        lines = self._file.read_text().splitlines()
        return Reading(tuple(_observation(*line.split()) for line in lines), whole=True)

    def follow(self, known: Known, stop: threading.Event) -> Iterator[Reading]:
        yield self.read(known)
        while not stop.wait(0.05):
            yield self.read(known)


def _observation(instance: str, said: str) -> Observation:
    ref = ref_of(instance, Kind.BOOT_LOCK)
    if said == "held":
        order = Order(instance, Kind.BOOT_LOCK, "bootlock: case 1", placed_by="nova")
        return Observation(ref, Said.HELD, order)
    if said == "unknown":
        return Observation(ref, Said.UNKNOWN, problem="its cell is down")
    return Observation(ref, Said.RELEASED, evidence=f"GET {instance}: locked: false")


def main() -> None:
    name, endpoints, prefix, lease, file = sys.argv[1:]
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    fleet = Fleet(endpoints=tuple(endpoints.split(",")), prefix=prefix, host=name, timeout=2)
    config = Config(fleet=fleet, sync=Sync(max_release=2, max_release_percent=100))
    service = RelayService(config, Script(Path(file)), lease=int(lease))
    signal.signal(signal.SIGTERM, lambda *_: service.stop())
    service.run()


if __name__ == "__main__":
    main()
