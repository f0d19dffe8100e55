"""What may go from the registry: keys that tell nobody anything any more.

That a key is gone is no release. So two rules, for keys that ended long enough ago:

- A released hold may go when every host that the registry knows, living or silent, says that it
  has ended it. One that has not would hold it for ever, with nobody left to tell it.
- A permit may go when the time is over for which it was granted: by then it lets nothing through
  anywhere, whoever has heard of its revocation.

Each key goes only as it was read, and only while no host has joined meanwhile. Before the first
goes, the registry is told from when on it is complete: what was released earlier is not missing.

What a host forgets is not seen from here: one whose own key was deleted, or whose database is put
back from a backup, keeps a hold whose release it can't read any more. It stays, as vanished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bootlockd.fleet.errors import EtcdError
from bootlockd.fleet.hosts import MOST, Report
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.registry import Entry, PermitEntry, Registry, Seen, not_applied
from bootlockd.fleet.wire import KeyValue
from lockdb.errors import InvalidValue, NotNow
from lockdb.values import PERMIT_MAX

if TYPE_CHECKING:
    from bootlockd.fleet.client import Client

#: Seconds: what ended later than that ago stays. Clocks of hosts differ by less.
LEAST_AGE = 86400

SCHEMA = 1
#: Keys in one transaction; etcd takes 128 comparisons.
_TOGETHER = 100


@dataclass(frozen=True)
class Plan:
    """What may go, as it was read; and by hold, on which hosts it has not ended, and why.

    ``since``: the revision after which no host may have joined.
    """

    holds: Sequence[Entry] = ()
    permits: Sequence[PermitEntry] = ()
    kept: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    since: int = 0


@dataclass(frozen=True)
class Pruned:
    """What became of a plan. ``left``: keys that were not as they had been read any more."""

    plan: Plan
    left: Sequence[str] = ()


def plan(
    holds: Iterable[Entry],
    permits: Iterable[PermitEntry],
    cluster: str,
    seen: Sequence[Seen],
    *,
    before: int,
) -> Plan:
    """Of what had ended ``before``, what may go."""
    gone, kept = [], {}
    for entry in holds:
        if not (entry.record and entry.record.released and entry.record.released.at < before):
            continue
        reasons = {host.report.name: _why_not(entry, cluster, host.report) for host in seen}
        reasons = {name: why for name, why in reasons.items() if why}
        if reasons:
            kept[entry.id] = reasons
        else:
            gone.append(entry)
    return Plan(gone, [entry for entry in permits if _over(entry) < before], kept)


def _why_not(entry: Entry, cluster: str, report: Report) -> str:
    keeps = not_applied(entry, cluster, report)
    if keeps:
        return keeps
    if max(len(report.unread), len(report.waiting)) >= MOST:
        return "has more troubles than it can name"
    return ""


def _over(entry: PermitEntry) -> float:
    """When it lets nothing through any more, though nobody has revoked it."""
    record = entry.record
    if record and record.permit:
        return record.permit.until
    if record and record.revoked:
        return record.revoked.at + PERMIT_MAX
    return float("inf")


class Pruner:
    """Prunes the registry behind ``client``. All raise EtcdError when it can't be asked."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._registry = Registry(client, keys)

    def look(self, *, before: int, now: int) -> Plan:
        """What may go. Raises InvalidValue or NotNow."""
        if before > now - LEAST_AGE:
            raise InvalidValue("--older-than", "must be a day at least")
        # First the revision, then the hosts: one that joins in between is seen to have joined.
        since = self._client.get(self._keys.pruned)[0].revision
        holds, permits = self._registry.holds(), self._registry.permits()
        cluster, seen = self._registry.hosts()
        if not seen:
            raise NotNow(
                "no host has ever told this registry that it is there",
                "what they have ended can't be known: see 'bootlock fleet hosts'",
            )
        return replace(plan(holds, permits, cluster, seen, before=before), since=since)

    def prune(self, made: Plan, *, before: int, by: str, now: int) -> Pruned:
        """Have it gone."""
        found = {self._keys.hold(entry.id): entry.revision for entry in made.holds}
        found |= {self._keys.permit(entry.id): entry.revision for entry in made.permits}
        if found:
            self._note(before, by, now)
        left = [name for some in _parts(found) for name in self._delete(some, made.since)]
        return Pruned(made, left)

    def _note(self, before: int, by: str, now: int) -> None:
        _, there = self._client.get(self._keys.pruned)
        before = max(before, _before(there))
        value = {"schema": SCHEMA, "before": before, "by": by, "at": now}
        raw = json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
        _, written, other = self._client.write(
            self._keys.pruned, raw, mod=there.mod if there else 0
        )
        # Written before without an answer, it is there as well.
        if not written and (other is None or other.value != raw):
            raise EtcdError("another prunes the registry just now", "try again")

    def _delete(self, found: Mapping[bytes, int], since: int) -> Iterator[str]:
        """Delete these keys as they were read; the names of those that are there otherwise."""
        if self._client.delete(found, unless_new=self._keys.hosts, since=since):
            return
        # One of them was written to, a host has joined, or an answer was lost.
        for key, mod in found.items():
            if not self._client.delete({key: mod}, unless_new=self._keys.hosts, since=since):
                _, there = self._client.get(key)
                if there is not None:
                    yield self._keys.name_of(key)


def pruned_before(client: Client, keys: Keys) -> int:
    """What was released earlier than that may be missing for good; 0: nothing."""
    return _before(client.get(keys.pruned)[1])


def _before(there: KeyValue | None) -> int:
    if there is None:
        return 0
    try:
        value = json.loads(there.value)
        if value["schema"] == SCHEMA and isinstance(value["before"], int):
            return value["before"]
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    # It only spares 'fleet restore' some keys.
    return 0


def _parts(found: Mapping[bytes, int]) -> Iterator[dict[bytes, int]]:
    keys = list(found)
    for at in range(0, len(keys), _TOGETHER):
        yield {key: found[key] for key in keys[at : at + _TOGETHER]}
