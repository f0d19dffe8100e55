"""What Prometheus is told, in its own format, on a loopback address only.

Collected when asked for: what the daemon knows of itself is asked of the cycle, what is in force is
read from the database. Either may fail; then its metrics are missing rather than old.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bootlockd.config import parse_listen
from bootlockd.errors import BootlockdError
from lockdb import counts
from lockdb.database import open_db
from lockdb.errors import DatabaseError

log = logging.getLogger(__name__)

Status = Callable[[], Mapping[str, Any]]


class MetricsServer:
    """Serves one address until stopped."""

    def __init__(self, listen: str, database: Path, status: Status) -> None:
        self._address = parse_listen(listen)
        self._registry = CollectorRegistry()
        self._registry.register(_Daemon(status))
        self._registry.register(_Database(database))
        ProcessCollector(registry=self._registry)

    def start(self) -> None:
        """Listen. Raises BootlockdError."""
        host, port = self._address
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise BootlockdError(
                f"metrics.listen: {host} port {port}: {error}", "is it in use? set another"
            ) from error

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Daemon(Collector):
    """What the cycle says of itself."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        try:
            status = self._status()
        except OSError as error:
            log.error("metrics: %s", error)
            yield _gauge("up", "The cycle turns.", 0)
            return
        yield _gauge("up", "The cycle turns.", 1)
        yield _gauge("start_time_seconds", "When this run began.", status["started"])
        yield _gauge("last_look_timestamp_seconds", "The last full look.", status["looked"])
        yield _gauge("stuck_jobs", "Instances that do not answer.", len(status["stuck"]))
        yield _gauge(
            "vanished_holds", "Holds gone without a release, enforced.", len(status["vanished"])
        )
        yield _gauge(
            "database_error", "The database can't be used.", bool(status["database_error"])
        )
        yield _gauge("libvirt_error", "No libvirt answers.", bool(status["libvirt_error"]))
        yield _gauge("break_glass", "Undecided starts go through.", status["break_glass"])
        connected = GaugeMetricFamily(
            "bootlock_libvirt_connected", "Events are received.", labels=["uri"]
        )
        for uri, is_connected in status["libvirt"].items():
            connected.add_metric([uri], is_connected)
        yield connected
        armed = GaugeMetricFamily("bootlock_armed", "Our hook refused a canary.", labels=["uri"])
        proven = GaugeMetricFamily(
            "bootlock_armed_proof_timestamp_seconds", "When that was last proven.", labels=["uri"]
        )
        for standing in status["armed"]:
            armed.add_metric([standing["uri"]], standing["armed"])
            proven.add_metric([standing["uri"]], standing["proven"])
        yield armed
        yield proven


class _Database(Collector):
    """What the database says."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._refusals = counts.Refusals()

    def collect(self) -> Iterator[Metric]:
        holds = GaugeMetricFamily("bootlock_holds", "Holds in force.", labels=["kind", "source"])
        fences = GaugeMetricFamily(
            "bootlock_enforcements", "What fences did for them.", labels=["fence", "state"]
        )
        try:
            with open_db(self._path, read_only=True) as lock_db, lock_db.read():
                for labels, count in counts.holds(lock_db, now=int(time.time())).items():
                    holds.add_metric(labels, count)
                for labels, count in counts.enforcements(lock_db).items():
                    fences.add_metric(labels, count)
                refused = self._refusals.total(lock_db)
        except DatabaseError as error:
            # It is bootlock_database_error as well.
            log.debug("metrics: %s", error)
            return
        yield holds
        yield fences
        yield CounterMetricFamily("bootlock_refusals", "Starts the hook refused.", value=refused)


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bootlock_{name}", words, value=value)
