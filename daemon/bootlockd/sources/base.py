"""What a source of holds is, and what it says.

A source tells what it sees, and how much of it: it places and releases nothing. The reconciler
turns what was said into holds of that source alone, and keeps the one rule that no source may
break: an absence, an error or an empty answer is no release. Only ``Said.RELEASED``, with its
evidence, or an expiry that was placed with the hold, ends one.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from bootlockd.errors import BootlockdError
from lockdb.values import Kind, OnRunning, Permit, Retention


class SourceError(BootlockdError):
    """A source could not be read: which, why, what to do. Its holds stay."""


def printable_line(text: str, limit: int) -> str:
    """A source's free text as one line that a hold can have: cut, blanks for what has no shape."""
    line = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    return " ".join(line.split())[:limit].rstrip()


class Said(StrEnum):
    """What a source says about one hold of its own."""

    HELD = "held"
    RELEASED = "released"
    #: It is named, but what it is can't be told: a value that can't be read, a server in a cell
    #: that is down. Whatever is held stays so.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Order:
    """What is held and how; the fields of ``lockdb.values.NewHold`` that a source decides."""

    instance: str
    kind: Kind
    reason: str
    notice: str = ""
    case: str = ""
    on_running: OnRunning = OnRunning.LEAVE
    grace: int = 60
    isolate: bool = False
    #: Unix seconds.
    until: int | None = None
    #: Who decided it, as far as the source knows.
    placed_by: str = ""
    blocks: str | None = None
    #: A source can put the date off and make the mode stronger, never the contrary.
    retain_until: int | None = None
    retention: Retention | None = None
    preserve: bool = False


@dataclass(frozen=True)
class Observation:
    """One hold, as its source sees it now.

    ``ref``: the source's own name of it, which no other hold of that source has.
    ``order``: present if HELD. ``evidence``: present if RELEASED: what said so, for the journal.
    ``problem``: present if UNKNOWN: one line, naming what can't be read.
    ``override``: an admin released it before its retention in governance mode ends.
    """

    ref: str
    said: Said
    order: Order | None = None
    evidence: str = ""
    problem: str = ""
    #: The id of this hold on every host; "" where each host may choose its own.
    hold_id: str = ""
    override: bool = False


@dataclass(frozen=True)
class Revocation:
    """A permit of the source's was ended before its time: by whom, and what says so."""

    permit_id: str
    by: str
    evidence: str


@dataclass(frozen=True)
class Reading:
    """What was seen in one look.

    ``whole``: every hold that the source has is among them, so that one that is missing has
    vanished: it stays, and the source is marked. Otherwise these are changes, or one part.
    ``revision``: up to where this reading is complete, opaque to all but the source itself.
    ``faults``: what kept it from seeing more, one line each.
    ``permits``, ``revocations``: what lets starts through, each under its id on every host. They
    end by themselves, so that one that is missing says nothing.
    """

    observations: tuple[Observation, ...]
    whole: bool
    revision: str = ""
    faults: tuple[str, ...] = ()
    permits: tuple[Permit, ...] = ()
    revocations: tuple[Revocation, ...] = ()


@dataclass(frozen=True)
class Known:
    """What the database holds of this source: what it said last, so far as it could be kept."""

    revision: str = ""
    #: The holds that were not released, by ``ref``, as they are at the moment of each question: it
    #: may be kept for as long as the source is followed.
    held: Mapping[str, Order] = field(default_factory=dict)
    #: The caller's own: how often this source was reconciled when it was asked.
    turn: int = 0


class Source(Protocol):
    """One place where holds are decided. Both calls may be made from any one thread at a time."""

    #: As in ``hold.source``: ``file``, ``nova``, ``etcd``.
    name: str

    def read(self, known: Known) -> Reading:
        """Look once, at everything. Raises SourceError."""

    def follow(self, known: Known, stop: threading.Event) -> Iterator[Reading]:
        """Look at everything, then yield what changes, until ``stop`` is set.

        A source that is polled yields after each look, a changed one at once; one that is told of
        changes yields an empty reading, not ``whole``, as often as it is proven that it would
        hear of one. That is what freshness is counted from: silence makes a source stale. Raises
        SourceError when the thread is lost: the caller waits a while and follows anew.
        """
