"""What stands in the registry for one host: its acknowledgement.

Small, and written only when something changed or a sign of life is due. Holds whose instances are
elsewhere are not in it: that they are in force follows from the revision the host has applied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lockdb.values import UNTIL_MAX

SCHEMA = 1
#: How many ids a list in it has at most.
MOST = 200


@dataclass(frozen=True)
class Report:
    """A host's own words. ``problem``: they can't be read.

    ``applied``: the registry's revision up to which all holds are in this host's database.
    ``permits``: the same of permits; 0 while it takes none. ``unread``: holds and permits whose
    value this host can't read. ``waiting``: released holds that it keeps until an admin there
    accepts that so many end. ``unlooked``: holds that its daemon has not looked at yet. ``here``:
    what was done for the holds whose instances are here, by hold and fence. ``armed``: each
    driver's last proof. ``journal``: the head of its journal. ``trouble``: what is wrong now;
    ``doubt``: why it read everything again last, and when.
    ``more``: its lists are cut.
    """

    name: str
    problem: str = ""
    at: int = 0
    heartbeat: int = 0
    cluster: str = ""
    applied: int = 0
    permits: int = 0
    unread: Sequence[str] = ()
    waiting: Sequence[str] = ()
    unlooked: Sequence[str] = ()
    here: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    armed: Sequence[Mapping[str, Any]] = ()
    journal: tuple[int, str] = (0, "")
    trouble: Sequence[str] = ()
    doubt: str = ""
    more: bool = False

    @property
    def is_armed(self) -> bool:
        """At least one driver was tried, and the hook refused on each."""
        return bool(self.armed) and all(proof["armed"] for proof in self.armed)


def encoded(report: Report, *, run: str, nonce: int) -> bytes:
    """The value of its key. ``run``, ``nonce``: by which its writer recognises it."""
    value = {
        "schema": SCHEMA,
        "run": run,
        "nonce": nonce,
        "at": report.at,
        "heartbeat": report.heartbeat,
        "cluster": report.cluster,
        "applied": report.applied,
        "permits": report.permits,
        "unread": list(report.unread[:MOST]),
        "waiting": list(report.waiting[:MOST]),
        "unlooked": list(report.unlooked[:MOST]),
        "here": {hold: dict(fences) for hold, fences in list(report.here.items())[:MOST]},
        "armed": [dict(proof) for proof in report.armed],
        "journal": list(report.journal),
        "doubt": report.doubt[:300],
        "trouble": [line[:300] for line in report.trouble[:5]],
        "more": any(
            len(listed) > MOST
            for listed in (report.unread, report.waiting, report.unlooked, report.here)
        ),
    }
    return json.dumps(value, ensure_ascii=False).encode()


def signature(value: bytes) -> tuple[str, int]:
    """Who wrote this value and which of his it is; ("", 0) if it can't be read."""
    try:
        fields = json.loads(value)
        return str(fields["run"]), int(fields["nonce"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", 0


def decoded(name: str, value: bytes) -> Report:
    """What a host said. Whatever is not as it should be makes it a report with a problem."""
    try:
        fields = json.loads(value)
        if fields["schema"] != SCHEMA:
            return Report(name, problem=f"schema {fields['schema']!r:.20} is unknown here")
        seq, head = fields["journal"]
        return Report(
            name,
            at=_moment(fields["at"]),
            heartbeat=int(fields["heartbeat"]),
            cluster=str(fields["cluster"]),
            applied=int(fields["applied"]),
            permits=int(fields["permits"]),
            unread=[str(item) for item in fields["unread"]],
            waiting=[str(item) for item in fields["waiting"]],
            unlooked=[str(item) for item in fields["unlooked"]],
            here={
                str(hold): {str(fence): str(state) for fence, state in fences.items()}
                for hold, fences in fields["here"].items()
            },
            armed=[
                {
                    "uri": str(proof["uri"]),
                    "armed": proof["armed"] is True,
                    "at": _moment(proof["at"]),
                }
                for proof in fields["armed"]
            ],
            journal=(int(seq), str(head)),
            doubt=str(fields["doubt"]),
            trouble=[str(line) for line in fields["trouble"]],
            more=fields["more"] is True,
        )
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        return Report(name, problem=f"what it says of itself can't be read: {error!r:.80}")


def _moment(value: object) -> int:
    if isinstance(value, int) and 0 <= value <= UNTIL_MAX:
        return value
    raise ValueError(f"{value!r:.40} is no time")
