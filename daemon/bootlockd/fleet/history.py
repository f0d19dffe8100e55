"""Whether the registry is still the one that this host has followed.

A registry that was wiped or restored from an older snapshot answers like any other. What gives it
away: another cluster id; a revision or a term behind one that was seen; and this host's own key,
which it rewrites every few seconds, being older than it left it. None of these proves the contrary:
a restore with the same token keeps the cluster's id, and its revision climbs again.

A registry under suspicion is followed, since new holds must be in force at once. But nothing that
it says is released is let go until an admin has looked at it and accepted it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from bootlockd.fleet.wire import Header


class Broken(Exception):
    """It is not the registry that was known: why, in one line."""


@dataclass(frozen=True)
class Suspicion:
    """What gave it away, and when. ``id`` is what an admin accepts."""

    id: str
    why: str
    at: int


@dataclass(frozen=True)
class Standing:
    """How far this host has come with the registry; kept in the database with the holds.

    ``revision``: applied up to here. ``high``, ``term``: the highest that were answered.
    ``own``, ``nonce``: where this host's own key stood, and how often it was written.
    """

    cluster: str = ""
    revision: int = 0
    high: int = 0
    term: int = 0
    own: int = 0
    nonce: int = 0
    suspicion: Suspicion | None = None

    def seen(self, header: Header) -> Standing:
        """After an answer of the majority. Raises Broken."""
        self.check_cluster(header)
        for name, before, now in (
            ("revision", self.high, header.revision),
            ("term", self.term, header.term),
        ):
            if now < before:
                raise Broken(f"the registry went back from {name} {before} to {now}")
        return replace(self, cluster=header.cluster, high=header.revision, term=header.term)

    def applied(self, revision: int) -> Standing:
        """With all holds up to ``revision``."""
        return replace(self, revision=max(self.revision, revision))

    def settled(self) -> Standing:
        """Before a new question, when nothing is under way: what was applied is known to be there.

        Not while the own key is written beside a watch: the answer may be older than an event that
        was read before it.
        """
        return replace(self, high=max(self.high, self.revision))

    def check_cluster(self, header: Header) -> None:
        """The part that is true of any member's answer. Raises Broken."""
        if self.cluster and header.cluster != self.cluster:
            raise Broken(f"the registry's cluster id was {self.cluster} and is {header.cluster}")

    def suspecting(self, suspicion: Suspicion) -> Standing:
        """Nothing of the former registry is compared any more."""
        return Standing(suspicion=suspicion)

    @property
    def text(self) -> str:
        """For ``Reading.revision``."""
        return json.dumps(asdict(self), separators=(",", ":"))


def standing_of(text: str) -> Standing:
    """What ``Standing.text`` gave; a new one for anything else."""
    try:
        fields: dict[str, Any] = json.loads(text) if text else {}
        suspicion = fields.pop("suspicion", None)
        return Standing(**fields, suspicion=Suspicion(**suspicion) if suspicion else None)
    except (ValueError, TypeError, AttributeError):
        return Standing()
