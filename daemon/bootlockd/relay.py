"""The relay: what Nova says, written into the fleet registry, for a whole cloud from one place.

It reads Nova as a host would, with the scope ``cloud``, and writes holds where all hosts read them.
All that it knows is in the registry: which holds are its own (``PLACED_BY``), and how many it ended
lately, whichever relay that was. So another can take over at any moment, and this one can be killed
at any. Two never write at once: only who has the office does, in one term of it from his first look
to his last write. A write that arrives when the term is over, however long it was on its way, is
none (``HoldWriter.begin``).

The rules are those of the reconciler on a host: only RELEASED, with evidence, ends a hold, no hold
of another is touched, and more endings than ``Limits`` allow end nothing: an admin does it by hand,
in the registry. What is retained there is left until its date, and stops nothing else. A hold that
stands is left as it is: a registry has no way to change one, and
another reason is no reason for a moment without it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from bootlockd.fleet.wire import Term
from bootlockd.sources.base import Known, Order, Reading, Said, Source, SourceError, printable_line
from bootlockd.sources.nova import ref_of
from bootlockd.sources.reconcile import Limits
from lockdb import retention
from lockdb.values import REASON_MAX

log = logging.getLogger(__name__)

#: What tells the relay's holds in the registry from all others.
PLACED_BY = "relay:nova"


@dataclass(frozen=True)
class Standing:
    """One hold in the registry. ``ended_at`` and ``ended_by``: if it was released."""

    id: str
    order: Order
    ended_at: int | None = None
    ended_by: str = ""


class HoldWriter(Protocol):
    """What the relay needs of a registry. All calls raise SourceError when it can't be had."""

    def begin(self, term: Term) -> None:
        """Write in this term from now on, and nothing once it is over."""

    def standing(self) -> Sequence[Standing]:
        """All holds, those that were released too."""

    def place(self, hold_id: str, order: Order, *, now: int) -> None:
        """Place a hold; one that is there already with this id is left as it is."""

    def release(self, hold_id: str, *, reason: str, by: str, now: int) -> None:
        """End it; one that has ended stays so."""


class Office(Protocol):
    """What only one relay has at a time."""

    @property
    def term(self) -> Term | None:
        """The one that lasts for now; another one after each break."""


@dataclass(frozen=True)
class Plan:
    """What one reading comes to."""

    place: Sequence[Order] = ()
    #: Ids, and what says so.
    release: Sequence[tuple[str, str]] = ()
    #: Why nothing is released, if anything would be, and how many.
    stopped: str = ""
    waiting: int = 0


def plan(standing: Sequence[Standing], reading: Reading, *, limits: Limits, now: int) -> Plan:
    """The writes from what stands in the registry to what was said. Pure."""
    held = held_by_ref(standing, now)
    place: list[Order] = []
    release: list[tuple[str, str]] = []
    for observation in {
        observation.ref: observation for observation in reading.observations
    }.values():
        own = held.get(observation.ref, [])
        evidence = printable_line(observation.evidence, REASON_MAX)
        if observation.said is Said.HELD and observation.order and not own:
            place.append(replace(observation.order, placed_by=PLACED_BY))
        elif observation.said is Said.RELEASED and evidence:
            # Nova says it again at each look at everything: what is retained goes after its date.
            free = (hold for hold in own if not retention.is_retained(hold.order, now))
            release += [(hold.id, evidence) for hold in free]
    ended = sum(
        hold.ended_by == PLACED_BY and now - limits.window < (hold.ended_at or 0)
        for hold in standing
    )
    active = sum(map(len, held.values()))
    allowed = limits.allowed(active + ended)
    if release and ended + len(release) > allowed:
        stopped = (
            f"{len(release)} of {active} holds would end, where {allowed} may within"
            f" {limits.window} s"
        )
        return Plan(tuple(place), (), stopped, len(release))
    return Plan(tuple(place), tuple(release))


def held_by_ref(standing: Sequence[Standing], now: int) -> dict[str, list[Standing]]:
    """The relay's own holds that are in force, by the names that Nova's source gives them."""
    held: dict[str, list[Standing]] = {}
    for hold in standing:
        order = hold.order
        is_over = hold.ended_at is not None or (order.until is not None and order.until <= now)
        if order.placed_by == PLACED_BY and not is_over:
            held.setdefault(ref_of(order.instance, order.kind), []).append(hold)
    return held


@dataclass(frozen=True)
class Written:
    """How far the registry is with Nova. ``whole_at``, ``faults``: at the last look at all of it.

    ``waiting``: releases that are more than the limits allow.
    """

    at: int = 0
    whole_at: int = 0
    holds: int = 0
    faults: int = 0
    waiting: int = 0


class Relay:
    """Follows ``source`` while it has the ``office``, and writes what it says."""

    def __init__(
        self,
        source: Source,
        writer: HoldWriter,
        office: Office,
        limits: Limits,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._writer = writer
        self._office = office
        self._limits = limits
        self._now = now
        #: As ``Known.held`` is to be: what stands at the moment of each question.
        self._held: dict[str, Order] = {}
        self._term: Term | None = None
        #: Ids of what may have been placed, by ref: of those writes there was no answer.
        self._tried: dict[str, str] = {}
        self._stopped = ""
        #: Replaced as a whole after each reading.
        self.written = Written()

    def serve(self, stop: threading.Event) -> None:
        """Until ``stop`` is set or the term is over. Raises SourceError."""
        term = self._office.term
        if term is None:
            return
        self._begin(term)
        self._look()
        for reading in self._source.follow(Known(held=self._held), stop):
            # What was read in an earlier term is no evidence against what another placed since.
            if stop.is_set() or self._office.term != term:
                return
            self._take(reading)

    def _begin(self, term: Term) -> None:
        self._writer.begin(term)
        if term != self._term:
            # Nothing of an earlier term can arrive any more.
            self._tried.clear()
            self.written = Written()
        self._term = term

    def _take(self, reading: Reading) -> None:
        """Write what one reading comes to. Raises SourceError, also when the term is over."""
        steps = plan(self._look(), reading, limits=self._limits, now=self._time())
        for fault in reading.faults:
            log.warning("relay: %s", fault)
        for order in steps.place:
            self._require_office()
            # The same again until it is seen: a write without an answer may still arrive.
            ref = ref_of(order.instance, order.kind)
            hold_id = self._tried.setdefault(ref, secrets.token_hex(8))
            self._writer.place(hold_id, order, now=self._time())
            log.info("relay placed hold=%s instance=%s", hold_id, order.instance)
        for hold_id, evidence in steps.release:
            self._require_office()
            self._writer.release(hold_id, reason=evidence, by=PLACED_BY, now=self._time())
            log.info("relay released hold=%s: %s", hold_id, evidence)
        if steps.stopped and steps.stopped != self._stopped:
            log.error("relay: nothing is released: %s; see docs/nova.md", steps.stopped)
        self._stopped = steps.stopped
        if steps.place or steps.release:
            self._look()
        before, now = self.written, self._time()
        unknown = sum(one.said is Said.UNKNOWN for one in reading.observations)
        self.written = Written(
            now,
            now if reading.whole else before.whole_at,
            len(self._held),
            unknown + len(reading.faults) if reading.whole else before.faults,
            steps.waiting,
        )

    def _look(self) -> Sequence[Standing]:
        standing = self._writer.standing()
        self._held.clear()
        for ref, holds in held_by_ref(standing, self._time()).items():
            self._held[ref] = holds[0].order
        arrived = {hold.id for hold in standing}
        self._tried = {ref: one for ref, one in self._tried.items() if one not in arrived}
        return standing

    def _require_office(self) -> None:
        # Not to bother etcd, which would refuse it as well.
        if self._office.term != self._term:
            raise SourceError("relay: the office is not known to be ours any more", "it asks anew")

    def _time(self) -> int:
        return int(self._now())
