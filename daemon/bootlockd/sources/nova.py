"""Nova as a source: the locks that admins and customers take on servers.

A server has one lock. Who took it is never in an answer, only to be found by a filter:
``locked_by=admin`` (whose project is not the server's own) or ``owner``. An admin's whose reason
begins with a prefix is a boot lock; any other admin's is the operators' business; a customer's is a
state lock. All of that can be set.

What Nova does not show proves nothing. With a cell's database down its filtered lists are empty,
with status 200; a filter that the account may not use is dropped, and the list is another one. So:

- Before a list is believed it is asked for the locks of nobody: an answer with any server in it
  means that the filters are dropped.
- A server that is held and in no list is asked for by its UUID. Only an answer about that very
  server ends its hold: ``locked: false``, or that its lock is another's now. It is asked for as one
  row of the list and not by its own address: that one is a 404 to an account that may only list.
- All else keeps the hold, and is said: no answer, 404, ``UNKNOWN``, a server without ``locked``.

A look at everything is two lists, in pages. Between two of them Nova is asked what changed since
the last, without any filter on locks, for that shows unlocked servers too; every changed server
that is locked or held is then asked for by its UUID. The time is Nova's own, from its answers, and
``overlap`` covers what its machines' clocks differ by.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bootlockd.config import LockMeans, Nova, NovaScope
from bootlockd.sources.base import (
    Known,
    Observation,
    Order,
    Reading,
    Said,
    SourceError,
    printable_line,
)
from bootlockd.sources.novaapi import MICROVERSION, Answer, Api, connect
from lockdb.errors import InvalidValue
from lockdb.values import CASE_MAX, REASON_MAX, Kind, parse_instance

#: Nova's own maximum, unless its operators lowered it: pages are then shorter.
PAGE = 1000
#: How many servers are asked for by their UUID in one look; up to three requests each.
ASKS = 50
#: After so many of them in a row without an answer the others are left for the next look.
PATIENCE = 3
#: Seconds after which they are left as well, if Nova is slow.
ASKING = 120
#: How often a list is begun anew because the server at a page's end was deleted meanwhile.
RESTARTS = 3

_LIST = "/servers/detail"
_STABLE = {"all_tenants": "1", "sort_key": "uuid", "sort_dir": "asc"}


@dataclass(frozen=True)
class Server:
    """One server, as far as it matters here."""

    uuid: str
    #: None: Nova didn't say, which it doesn't of servers in a cell that is down.
    locked: bool | None
    reason: str = ""
    status: str = ""
    host: str = ""
    updated: str = ""


@dataclass
class _Look:
    """What one look has found so far."""

    #: The kinds in which a server is held already, by its UUID.
    held: Mapping[str, set[Kind]]
    observations: list[Observation] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class NovaSource:
    """See above. ``interval``: seconds between two looks; the rest is for tests."""

    name = "nova"

    def __init__(
        self,
        settings: Nova,
        *,
        interval: float = 60,
        connect: Callable[[Nova], Api] = connect,
        host: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._interval = interval
        self._connect = connect
        self._now = now
        host = settings.compute_host or host or socket.gethostname()
        self._scope = {"host": host} if settings.scope is NovaScope.HOST else {}
        self._api: Api | None = None
        #: What the last answers about changes had: they overlap.
        self._seen: frozenset[Server] = frozenset()
        #: What was last said of servers that are in no list, in the order in which they were asked.
        self._asked: dict[str, tuple[Server, str]] = {}

    def read(self, known: Known) -> Reading:
        """Everything: both lists, and each held server that is in neither. Raises SourceError."""
        look = _Look(_kinds(known.held))
        at = self._require_filters()
        listed: dict[str, tuple[Server, str]] = {}
        for by in self._lists():
            for server in self._pages({"locked_by": by, **self._scope}, look)[0]:
                listed.setdefault(server.uuid, (server, by))
        for server, by in listed.values():
            self._say(look, server, by)
        self._ask_for_missing(look, look.held.keys() - listed.keys())
        return Reading(tuple(look.observations), True, _iso(at), tuple(look.faults))

    def follow(self, known: Known, stop: threading.Event) -> Iterator[Reading]:
        """Everything, then changes each interval, and everything each ``full_interval``."""
        reading = self.read(known)
        looked = time.monotonic()
        yield reading
        while not stop.wait(self._interval):
            changes = None
            if time.monotonic() - looked < self._settings.full_interval:
                changes = self.changes(known, reading.revision)
            if changes is None:
                looked = time.monotonic()
                changes = self.read(known)
            reading = changes
            yield reading

    def changes(self, known: Known, since: str) -> Reading | None:
        """What changed since that revision; None if it is so much that a full look costs less.

        Raises SourceError; nothing is forgotten then, if the same revision is asked for again.
        """
        look = _Look(_kinds(known.held))
        moment = datetime.fromisoformat(since).timestamp() - self._settings.overlap
        servers, at = self._pages({"changes-since": _iso(moment), **self._scope}, look)
        fresh = [server for server in servers if server not in self._seen]
        # A deleted server shows the lock that it had. Its hold stays: its disk may, too.
        to_ask = [
            server.uuid
            for server in fresh
            if server.status != "DELETED" and (server.locked or server.uuid in look.held)
        ]
        if len(to_ask) <= ASKS:
            for uuid in to_ask:
                self._say(look, *self._ask(uuid, look))
        self._seen = frozenset(servers)
        if len(to_ask) > ASKS:
            return None
        return Reading(tuple(look.observations), False, _iso(at), tuple(look.faults))

    # -- what a server's state means ----------------------------------------------------------

    def _say(self, look: _Look, server: Server, by: str, *, asked_now: bool = True) -> None:
        """What is known of a server, as observations of all its holds.

        ``by``: ``admin`` or ``owner`` if Nova listed it as locked by those, else empty. What was
        not ``asked_now`` is no evidence: it may have been locked since.
        """
        held = look.held.get(server.uuid, set())
        if server.locked is None or (server.locked and not by):
            look.observations += [
                _unknown(server.uuid, kind, server.status) for kind in sorted(held)
            ]
            return
        means = self._means(server, by)
        if means is not None:
            order = self._order(server, means)
            look.observations.append(Observation(ref_of(server.uuid, means), Said.HELD, order))
        for kind in sorted(held - {means}):
            evidence = _evidence(server, by, kind, means)
            if evidence and asked_now:
                said = Observation(ref_of(server.uuid, kind), Said.RELEASED, evidence=evidence)
            else:
                state = f"locked by {by}, but not as a {kind}" if server.locked else "not locked"
                problem = f"server {server.uuid} was {state}, and that ends no hold"
                said = Observation(ref_of(server.uuid, kind), Said.UNKNOWN, problem=problem)
            look.observations.append(said)

    def _means(self, server: Server, by: str) -> Kind | None:
        """The kind of hold that a lock is; None: none."""
        if not server.locked:
            return None
        if by == "admin" and server.reason.startswith(self._settings.reason_prefix):
            return Kind.BOOT_LOCK
        other = self._settings.other_admin_locks if by == "admin" else self._settings.customer_locks
        return Kind.STATE_LOCK if other is LockMeans.STATE_LOCK else None

    def _order(self, server: Server, kind: Kind) -> Order:
        reason = printable_line(server.reason, REASON_MAX)
        if kind is Kind.STATE_LOCK:
            return Order(server.uuid, kind, reason or "locked in Nova", placed_by="nova")
        settings = self._settings
        case = server.reason.removeprefix(settings.reason_prefix)
        return Order(
            server.uuid,
            kind,
            reason or "locked in Nova by an admin",
            case=printable_line(case, CASE_MAX),
            on_running=settings.on_running,
            grace=settings.grace,
            isolate=settings.isolate,
            preserve=settings.preserve,
            placed_by="nova",
        )

    # -- asking -------------------------------------------------------------------------------

    def _lists(self) -> Sequence[str]:
        if self._settings.customer_locks is LockMeans.NOTHING:
            return ("admin",)
        return ("admin", "owner")

    def _require_filters(self) -> float:
        """When it was, by Nova's clock. SourceError if this account's filters are dropped."""
        answer = self._get({**_STABLE, "limit": "1", "locked_by": "nobody"})
        if _rows(answer):
            raise SourceError(
                "nova: it ignores the filters of this account: its lists mean nothing",
                "give it os_compute_api:servers:allow_all_filters, see docs/nova.md",
            )
        return self._time(answer)

    def _ask_for_missing(self, look: _Look, missing: Set[str]) -> None:
        """Ask for some, those first for which it is the longest ago; of the others repeat the last.

        There may be many for good: servers that were deleted, or moved to another host, locked.
        """
        before = {uuid: last for uuid, last in self._asked.items() if uuid in missing}
        queue = [*sorted(missing - before.keys()), *before]
        self._asked = before
        until = time.monotonic() + ASKING
        failed = 0
        for at, uuid in enumerate(queue):
            asks = at < ASKS and failed < PATIENCE and time.monotonic() < until
            if asks:
                try:
                    answer = self._ask(uuid, look)
                    failed = 0
                except SourceError as error:
                    failed += 1
                    look.faults.append(f"server {uuid}: {error}")
                    answer = Server(uuid, None, status="it was not answered for"), ""
                before.pop(uuid, None)
                before[uuid] = answer
            else:
                answer = before.get(uuid, (Server(uuid, None, status="not asked for yet"), ""))
            self._say(look, *answer, asked_now=asks)

    def _ask(self, uuid: str, look: _Look) -> tuple[Server, str]:
        """One server as it is now, wherever it is, and who locked it, if that can be told."""
        server = self._one(uuid, look)
        if server is None:
            return Server(uuid, None, status="not shown"), ""
        if not server.locked:
            return server, ""
        for by in ("admin", "owner"):
            again = self._one(uuid, look, locked_by=by)
            if again is not None and again.locked:
                return again, by
        return server, ""

    def _one(self, uuid: str, look: _Look, **filters: str) -> Server | None:
        # Were the filter dropped, the one row would be another server's.
        answer = self._get({**_STABLE, "limit": "1", "uuid": uuid, **filters})
        rows = [_server(row, look) for row in _rows(answer)]
        return next((server for server in rows if server and server.uuid == uuid), None)

    def _pages(self, query: Mapping[str, str], look: _Look) -> tuple[list[Server], float]:
        """All servers that a query finds, and when it was, by Nova's clock."""
        for _ in range(1 + RESTARTS):
            servers: list[Server] = []
            marker = ""
            page = {**_STABLE, "limit": str(PAGE), **query}
            answer = self._get(page)
            # Of the first page: what changes while the others are read is to come again.
            at = self._time(answer)
            while answer.status == 200:
                rows = _rows(answer)
                servers += [server for row in rows if (server := _server(row, look))]
                last = _last_id(rows)
                if not _has_next(answer.body) or last is None:
                    return servers, at
                if last <= marker:
                    raise SourceError("nova: its pages are not in the order of their UUIDs")
                marker = last
                answer = self._get({**page, "marker": marker}, may_lack_marker=True)
            # The server at a page's end is gone, and with it the way to the next.
        raise SourceError("nova: its list changes faster than it can be read")

    def _time(self, answer: Answer) -> float:
        return self._now() if answer.at is None else answer.at

    def _get(self, query: Mapping[str, str], *, may_lack_marker: bool = False) -> Answer:
        try:
            if self._api is None:
                self._api = self._connect(self._settings)
            answer = self._api.get(_LIST, query)
            if answer.status == 200 and isinstance(answer.body, dict):
                return answer
            if answer.status == 400 and may_lack_marker and "marker" in _message(answer):
                return answer
            raise _refused(answer)
        except SourceError:
            # The next look begins with the file of accounts, which may be why.
            self._api = None
            raise


def _kinds(held: Iterable[str]) -> dict[str, set[Kind]]:
    """In which kinds a server is held, by its UUID, from the refs."""
    kinds: dict[str, set[Kind]] = defaultdict(set)
    for ref in held:
        uuid, _, kind = ref.partition("/")
        if kind in list(Kind):
            kinds[uuid].add(Kind(kind))
    return dict(kinds)


def ref_of(uuid: str, kind: Kind) -> str:
    """This source's name of a hold."""
    # With its kind: a customer's lock after an admin's is another hold, not the same one changed.
    return f"{uuid}/{kind}"


def _unknown(uuid: str, kind: Kind, status: str) -> Observation:
    problem = f"server {uuid}: {status or 'no lock is told'}"
    if status == "not shown":
        problem = f"Nova shows no server {uuid}: it was deleted, or its cell is down"
    return Observation(ref_of(uuid, kind), Said.UNKNOWN, problem=problem)


def _evidence(server: Server, by: str, kind: Kind, means: Kind | None) -> str:
    """What says that this server is not held as ``kind`` any more; empty: nothing does."""
    asked = f"GET {_LIST}?uuid={server.uuid} at {MICROVERSION}"
    about = f"updated {server.updated}, on {server.host or 'no host'}"
    if server.locked is False:
        return printable_line(f"{asked}: locked: false, {about}", REASON_MAX)
    if by == "owner" and kind is Kind.BOOT_LOCK:
        return printable_line(f"{asked}&locked_by=owner: the customer's lock, {about}", REASON_MAX)
    if by == "admin" and means is Kind.BOOT_LOCK:
        return printable_line(f"{asked}&locked_by=admin: a boot lock now, {about}", REASON_MAX)
    return ""


def _server(row: object, look: _Look) -> Server | None:
    """A row of a list; None, and a fault, if it is none."""
    try:
        if not isinstance(row, dict):
            raise InvalidValue("server", "not an object")
        uuid = parse_instance(_text(row.get("id")))
    except InvalidValue as error:
        look.faults.append(f"a server can't be read: {error}")
        return None
    locked = row.get("locked")
    # Without this key it is an answer of an older microversion than was asked for.
    tells = isinstance(locked, bool) and "locked_reason" in row and row.get("status") != "UNKNOWN"
    return Server(
        uuid,
        locked if tells else None,
        _text(row.get("locked_reason")),
        printable_line(_text(row.get("status")), 50),
        printable_line(_text(row.get("OS-EXT-SRV-ATTR:host")), 255),
        printable_line(_text(row.get("updated")), 50),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _rows(answer: Answer) -> list[Any]:
    rows = answer.body.get("servers")
    if not isinstance(rows, list):
        raise SourceError("nova: its answer has no list of servers", "is it Nova that answers?")
    return rows


def _last_id(rows: Sequence[Any]) -> str | None:
    last = rows[-1] if rows else None
    return _text(last.get("id")) or None if isinstance(last, dict) else None


def _has_next(body: Any) -> bool:
    links = body.get("servers_links")
    return isinstance(links, list) and any(
        isinstance(link, dict) and link.get("rel") == "next" for link in links
    )


def _message(answer: Answer) -> str:
    """Nova's own words for why not."""
    body = answer.body if isinstance(answer.body, dict) else {}
    said = [fault.get("message") for fault in body.values() if isinstance(fault, dict)]
    return printable_line(" ".join(map(_text, said)), 300)


_HINTS = {
    401: "the account in clouds.yaml is not accepted",
    403: "give the account the rules of docs/nova.md",
    406: f"Nova must know microversion {MICROVERSION}: Train or later",
}


def _refused(answer: Answer) -> SourceError:
    hint = _HINTS.get(answer.status, "see nova-api's log")
    return SourceError(f"nova: it answered {answer.status}: {_message(answer) or 'nothing'}", hint)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
