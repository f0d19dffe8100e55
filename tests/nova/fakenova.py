"""Nova's list of servers, as far as the source asks for it, with faults that a real one won't have.

The answers have the shapes that the real one's have (``test_with_nova.py`` meets that).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bootlockd.config import Nova
from bootlockd.sources.base import SourceError
from bootlockd.sources.novaapi import Answer

HOST = "compute.test"
#: By Nova's clock.
START = 1_790_000_000


@dataclass
class FakeServer:
    """One server; ``locked_by`` None, ``admin`` or ``owner``."""

    uuid: str
    locked_by: str | None = None
    reason: str | None = None
    host: str = HOST
    status: str = "SHUTOFF"
    updated: float = START - 86400
    #: Keys that this server's row has otherwise, or not at all, where the value is ``...``.
    odd: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        row = {
            "id": self.uuid,
            "status": self.status,
            "locked": self.locked_by is not None,
            "locked_reason": self.reason,
            "OS-EXT-SRV-ATTR:host": self.host,
            "updated": iso(self.updated),
        }
        row |= self.odd
        return {key: value for key, value in row.items() if value is not ...}


class FakeNova:
    """Stands where openstacksdk does. ``now`` is its clock."""

    def __init__(self, *servers: FakeServer, max_limit: int = 1000) -> None:
        self.servers = {server.uuid: server for server in servers}
        self.now: float = START
        self.asked: list[dict[str, str]] = []
        self.connections = 0
        self.drops_filters = False
        self.cell_is_down = False
        #: May answer in its place; called with the query.
        self.before: Callable[[Mapping[str, str]], Answer | None] = lambda _query: None
        self._max_limit = max_limit

    def connect(self, _settings: Nova) -> FakeNova:
        self.connections += 1
        return self

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        assert path == "/servers/detail"
        self.asked.append(dict(query))
        return self.before(query) or self._list(query)

    def lock(self, uuid: str, by: str, reason: str | None = None) -> None:
        server = self.servers[uuid]
        server.locked_by, server.reason, server.updated = by, reason, self.now

    def unlock(self, uuid: str) -> None:
        server = self.servers[uuid]
        server.locked_by, server.reason, server.updated = None, None, self.now

    def delete(self, uuid: str) -> None:
        self.servers[uuid].status, self.servers[uuid].updated = "DELETED", self.now

    def questions(self, **wanted: str) -> int:
        """How often it was asked with at least that in the query."""
        return sum(wanted.items() <= asked.items() for asked in self.asked)

    def _list(self, query: Mapping[str, str]) -> Answer:
        found = [] if self.cell_is_down else [s for s in self._sorted() if self._fits(s, query)]
        if marker := query.get("marker"):
            ids = [server.uuid for server in found]
            if marker not in ids:
                message = f"marker [{marker}] not found"
                return Answer(400, {"badRequest": {"code": 400, "message": message}}, self.now)
            found = found[ids.index(marker) + 1 :]
        limit = min(int(query["limit"]), self._max_limit)
        body: dict[str, Any] = {"servers": [server.row() for server in found[:limit]]}
        if len(found) >= limit:
            body["servers_links"] = [{"rel": "next", "href": "http://nova/v2.1/servers/detail?..."}]
        return Answer(200, body, self.now)

    def _sorted(self) -> list[FakeServer]:
        return sorted(self.servers.values(), key=lambda server: server.uuid)

    def _fits(self, server: FakeServer, query: Mapping[str, str]) -> bool:
        if since := query.get("changes-since"):
            changed = server.updated >= datetime.fromisoformat(since).timestamp()
        else:
            changed = server.status != "DELETED"
        if self.drops_filters:
            return changed
        return (
            changed
            and query.get("uuid", server.uuid) == server.uuid
            and query.get("host", server.host) == server.host
            and query.get("locked_by", server.locked_by) == server.locked_by
        )


def refusing(status: int, message: str = "no") -> Answer:
    """An answer that is an error of Nova's."""
    return Answer(status, {"someFault": {"code": status, "message": message}})


def unreachable(_query: Mapping[str, str]) -> Answer:
    raise SourceError("nova: Request timed out")


def iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
