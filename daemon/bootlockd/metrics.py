"""What Prometheus is told, in its own format, on a loopback address only.

Collected when asked for, in a process of its own (``bootlockd.exporter``) that may only read. What
the daemon knows of itself is asked of the daemon, what is in force is read from the database, and
each may fail without the other. What could not be found out is missing, rather than old.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from bootlockd import __version__, relaystate
from bootlockd.config import parse_listen
from bootlockd.errors import BootlockdError, Unreachable
from lockdb import breakglass, counts, onlooker, proofs, sources
from lockdb.database import LockDB
from lockdb.errors import DatabaseError
from lockdb.values import Kind, Operation

log = logging.getLogger(__name__)

Status = Callable[[], Mapping[str, Any]]

#: What is done about a QEMU that was started past libvirt, as the journal says it.
ACTIONS = ("killed", "reported")

#: Those for which permits were always counted; of the others, only where there are any.
_OF_THE_HOOK = (Operation.START.value, Operation.MIGRATE.value)


class MetricsServer:
    """Serves one address until stopped."""

    def __init__(
        self,
        listen: str,
        database: Path,
        status: Status,
        break_glass: Path = breakglass.PATH,
        relay: tuple[Path, Path] = (relaystate.SETTINGS, relaystate.PATH),
    ) -> None:
        self._address = parse_listen(listen)
        self._registry = CollectorRegistry()
        self._registry.register(_Daemon(status))
        self._registry.register(_Database(database))
        self._registry.register(_Host(break_glass))
        self._registry.register(_Relay(*relay))
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
    """What the daemon says of itself."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        try:
            told = list(_told(self._status()))
        except (Unreachable, LookupError, TypeError, ValueError, AttributeError) as error:
            # It is down, stuck, or of another version.
            log.debug("metrics: %s", error)
            told = []
        yield _gauge("daemon_up", "The daemon answers, and its cycle turns.", bool(told))
        yield from told


def _told(status: Mapping[str, Any]) -> Iterator[Metric]:
    yield _info("daemon", "The version that runs.", status["version"])
    yield _gauge("daemon_start_time_seconds", "When this run began.", status["started"])
    yield _gauge("last_look_timestamp_seconds", "The last full look.", status["looked"])
    yield _histogram("cycle_duration_seconds", "One turn of the cycle.", status["turns"])
    yield _histogram("job_duration_seconds", "A look at one instance.", status["jobs"])
    yield _gauge("stuck_instances", "Instances that do not answer.", len(status["stuck"]))
    gone = "Holds gone without a release, enforced."
    yield _gauge("vanished_holds", gone, len(status["vanished"]))
    unusable = "The daemon can't use the database."
    yield _gauge("daemon_database_error", unusable, bool(status["database_error"]))
    silent = "A driver of libvirt does not answer."
    yield _gauge("daemon_libvirt_error", silent, bool(status["libvirt_error"]))
    connected = _single(status["libvirt"])
    yield _family("libvirt_connected", "Events are received.", ["uri"], connected)
    armed = _single({proof["uri"]: proof["armed"] for proof in status["armed"]})
    yield _family("armed", "The last canary was refused by our hook.", ["uri"], armed)


class _Database(Collector):
    """What the database says, whether a daemon runs or not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._totals = counts.Totals()
        self._problem = ""
        # Each request has a thread of its own.
        self._turn = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        with self._turn:
            found = self._look()
        yield _gauge("database_up", "The database can be read.", bool(found))
        yield from found

    def _look(self) -> list[Metric]:
        problem = ""
        try:
            found, self._totals = onlooker.look(self._path, self._found)
        except DatabaseError as error:
            found, problem = [], f"{error}; {error.hint}"
        if problem and problem != self._problem:
            log.error("the database can't be read: %s", problem)
        self._problem = problem
        return found

    def _found(self, lock_db: LockDB) -> tuple[list[Metric], counts.Totals]:
        now = int(time.time())
        with lock_db.read():
            totals = counts.totals(lock_db, self._totals)
            return [
                *_in_force(lock_db, now),
                *_proofs(lock_db, now),
                *_sources(lock_db, now),
                *_ever(lock_db, totals),
            ], totals


def _in_force(lock_db: LockDB, now: int) -> Iterator[Metric]:
    # Present when there is none: a rate of what is missing is missing.
    held = {(kind.value, "local"): 0 for kind in Kind} | counts.holds(lock_db, now=now)
    yield _family("holds", "Holds in force.", ["kind", "source"], held.items())
    permits = dict.fromkeys(_OF_THE_HOOK, 0) | counts.permits(lock_db, now=now)
    yield _family("permits", "Permits in force.", ["operation"], _single(permits))
    fences = counts.enforcements(lock_db).items()
    yield _family("enforcements", "What fences did for holds.", ["fence", "state"], fences)


def _proofs(lock_db: LockDB, now: int) -> Iterator[Metric]:
    proven = {proof.uri: proof.at if proof.armed else 0 for proof in proofs.stored(lock_db)}
    at = "When the last canary was refused by our hook; 0: it was not."
    yield _family("armed_proof_timestamp_seconds", at, ["uri"], _single(proven))
    ages = {uri: now - at for uri, at in proven.items() if at}
    since = "Since the last canary was refused by our hook."
    yield _family("armed_proof_age_seconds", since, ["uri"], _single(ages))


def _sources(lock_db: LockDB, now: int) -> Iterator[Metric]:
    states = {state.name: state for state in sources.all_stored(lock_db)}
    read = {name: state.read_at or 0 for name, state in states.items()}
    last = "When it last could be read; 0: never."
    yield _family("source_last_success_timestamp_seconds", last, ["source"], _single(read))
    ages = {name: now - at for name, at in read.items() if at}
    since = "Since it last could be read."
    yield _family("source_last_success_age_seconds", since, ["source"], _single(ages))
    failing = {name: bool(state.error) for name, state in states.items()}
    yield _family("source_failing", "It can't be read now.", ["source"], _single(failing))
    faults = {name: state.faults.count for name, state in states.items()}
    yield _family("source_faults", "Parts of it that can't be read.", ["source"], _single(faults))
    gone = {name: state.vanished.count for name, state in states.items()}
    lacking = "Holds that it lacks without having released them."
    yield _family("source_vanished_holds", lacking, ["source"], _single(gone))
    waiting = dict.fromkeys(states, 0) | counts.waiting(lock_db)
    wait = "Releases that wait for an admin's word."
    yield _family("source_waiting_releases", wait, ["source"], _single(waiting))


def _ever(lock_db: LockDB, totals: counts.Totals) -> Iterator[Metric]:
    refused = totals.refused + counts.spooled(lock_db)
    yield CounterMetricFamily("bootlock_refusals", "Starts that the hook refused.", value=refused)
    foreign = CounterMetricFamily(
        "bootlock_foreign_processes", "QEMUs started past libvirt.", labels=["action"]
    )
    for action, count in {**dict.fromkeys(ACTIONS, 0), **totals.foreign}.items():
        foreign.add_metric([action], count)
    yield foreign
    yield _gauge("journal_seq", "The journal's last entry.", totals.head.seq)


class _Host(Collector):
    """What needs neither."""

    def __init__(self, break_glass: Path) -> None:
        self._break_glass = break_glass

    def collect(self) -> Iterator[Metric]:
        yield _info("build", "The version of what exports this.", __version__)
        is_open = self._break_glass.exists()
        yield _gauge("break_glass", "Starts that can't be decided go through.", is_open)


class _Relay(Collector):
    """How this machine's relay is, on one that should have it."""

    def __init__(self, settings: Path, state: Path) -> None:
        self._settings = settings
        self._state = state

    def collect(self) -> Iterator[Metric]:
        report = relaystate.load(self._state)
        if report is None and not relaystate.is_expected(self._settings):
            return
        yield _gauge("relay_up", "This machine's relay runs.", report is not None)
        leads = report is not None and report.leads
        yield _gauge("relay_leads", "It is the one that writes.", leads)
        if report is None:
            return
        yield _gauge("relay_failing", "It can't reach Nova or the registry.", bool(report.failing))
        if not report.leads:
            # What it knew when it led, if it ever did.
            return
        read = "When what Nova said was last written; 0: never."
        yield _gauge("relay_last_success_timestamp_seconds", read, report.read_at)
        whole = "When all that Nova says was; 0: never."
        yield _gauge("relay_last_whole_timestamp_seconds", whole, report.whole_at)
        yield _gauge("relay_holds", "Its holds in force in the registry.", report.holds)
        yield _gauge("relay_faults", "What Nova could not tell.", report.faults)
        wait = "Releases that wait for an admin."
        yield _gauge("relay_waiting_releases", wait, report.waiting)


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bootlock_{name}", words, value=float(value))


def _info(name: str, words: str, version: str) -> InfoMetricFamily:
    return InfoMetricFamily(f"bootlock_{name}", words, value={"version": version})


def _family(
    name: str, words: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"bootlock_{name}", words, labels=labels)
    for label, value in values:
        family.add_metric(label, float(value))
    return family


def _single(values: Mapping[str, float]) -> Iterator[tuple[Sequence[str], float]]:
    """As ``_family`` wants them, for one label."""
    for label, value in values.items():
        yield [label], value


def _histogram(name: str, words: str, durations: Mapping[str, Any]) -> HistogramMetricFamily:
    buckets = [(str(bound), int(count)) for bound, count in durations["buckets"]]
    return HistogramMetricFamily(
        f"bootlock_{name}", words, buckets=buckets, sum_value=float(durations["sum"])
    )
