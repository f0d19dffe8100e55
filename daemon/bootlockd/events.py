"""libvirt's events, as wakes. One thread runs libvirt's loop, one a URI keeps its connection."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import libvirt

from bootlockd.departures import departures
from bootlockd.errors import Unreachable
from bootlockd.hypervisor import RECHECK, drivers, one_line
from bootlockd.hypervisor import connection as connection_to
from bootlockd.values import Wake

log = logging.getLogger(__name__)

#: Seconds between two attempts to connect: the first, and the longest.
FIRST_RETRY = 0.1
LONGEST_RETRY = 10.0

#: Seconds until libvirt's loop is run again after an error, which should never be.
LOOP_RETRY = 1.0

#: libvirt asks its daemon this often (seconds), and gives it up after so many silences.
KEEPALIVE = (5, 3)

_loop = threading.Lock()
_loop_runs = False


def run_event_loop() -> None:
    """Start libvirt's event loop; before the first connection. Can be called again."""
    global _loop_runs  # noqa: PLW0603 - libvirt has one loop a process
    with _loop:
        if _loop_runs:
            return
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_forever, name="libvirt-events", daemon=True).start()
        _loop_runs = True


def _run_forever() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except Exception:
            # Without this thread no event would ever come again, and nobody would know.
            log.exception("libvirt's event loop")
            time.sleep(LOOP_RETRY)


class EventFeeder:
    """Wakes for what happens to guests at one URI; reconnects for ever, and then wakes for all.

    ``connected`` tells which libvirt answers now; ``on_connect`` is called after each connect, for
    what must be proven again with a new libvirtd.
    """

    def __init__(
        self,
        uri: str,
        wake: Callable[[Wake], None],
        on_connect: Callable[[str], None] = lambda _uri: None,
    ) -> None:
        self.uri = uri
        self.connected = False
        self._wake = wake
        self._on_connect = on_connect
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"events {uri}", daemon=True)

    def start(self) -> None:
        """Begin to connect. Returns at once."""
        run_event_loop()
        self._thread.start()

    def again(self) -> None:
        """Try now: there may be another libvirtd."""
        self._due.set()

    def stop(self) -> None:
        """End the connection."""
        self._stop.set()
        self._due.set()
        self._lost.set()
        self._thread.join(5)

    def _run(self) -> None:
        wait = FIRST_RETRY
        complained = False
        while not self._stop.is_set():
            self._due.clear()
            began = time.monotonic()
            try:
                self._serve()
                complained = False
            except (libvirt.libvirtError, Unreachable) as error:
                # An absent driver is the rule for two of the three default URIs: said once.
                if not complained:
                    log.info("uri=%s no events: %s", self.uri, one_line(error))
                complained = True
            except Exception:
                # Nobody else hears what happens to these guests.
                log.exception("uri=%s events", self.uri)
            # One that breaks each connection at once is not to be worn out by new ones.
            lasted = time.monotonic() - began > LONGEST_RETRY
            wait = FIRST_RETRY if lasted else min(wait * 2, LONGEST_RETRY)
            self._due.wait(RECHECK if drivers.is_absent(self.uri) else wait)

    def _serve(self) -> None:
        """Connected until that is lost. Raises libvirtError or Unreachable if it can't be."""
        self._lost.clear()
        with connection_to(self.uri) as connection:
            self._listen(connection)

    def _listen(self, connection: Any) -> None:
        try:
            connection.setKeepAlive(*KEEPALIVE)
            connection.registerCloseCallback(lambda *_: self._lost.set(), None)
            for event in _EVENTS:
                connection.domainEventRegisterAny(None, event, self._happened, event)
            self.connected = True
            departures.hears(self.uri)
            log.info("uri=%s connected", self.uri)
            # What happened while nobody listened is seen by looking.
            self._wake(Wake(f"connected to {self.uri}"))
            self._on_connect(self.uri)
            self._lost.wait()
            if not self._stop.is_set():
                log.warning("uri=%s connection lost", self.uri)
        finally:
            departures.is_deaf(self.uri)
            self.connected = False

    def _happened(self, _connection: Any, domain: Any, *details: Any) -> None:
        if details[-1] == libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE:
            _note_departure(domain.UUIDString(), details[0], details[1])
        self._wake(Wake(f"libvirt event {details[-1]}", domain.UUIDString()))


def _note_departure(instance: str, event: int, detail: int) -> None:
    if (event, detail) == (
        libvirt.VIR_DOMAIN_EVENT_STOPPED,
        libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED,
    ):
        departures.left(instance)
    elif event in {libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_STARTED}:
        departures.came(instance)


_EVENTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
    libvirt.VIR_DOMAIN_EVENT_ID_REBOOT,
    libvirt.VIR_DOMAIN_EVENT_ID_PMWAKEUP,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
)
