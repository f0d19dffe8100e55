"""The shell and Python come to one verdict, which is the one that the rules name."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from domains import (
    EXTRAS,
    SOURCES,
    TEXT,
    Disk,
    Domain,
    Formatter,
    Source,
    libvirt_formatter,
    quoted,
)
from hook.both import assert_same
from hookrunner import Hook
from lockdb import database
from lockdb.database import LockDB
from lockdb.decision import Decision, Verdict, decide
from lockdb.operations import text_of
from lockdb.values import Kind, Operation
from samples import new_hold

EXAMPLES = 400
DOCUMENTS = 25

INSTANCES = [f"{number:08x}-aaaa-4333-8444-555555555555" for number in range(5)]
# Far from now: the two don't ask in the same second.
PAST, FUTURE = -3600, 3600
TIMES = st.sampled_from([PAST, FUTURE])


@dataclass(frozen=True)
class AHold:
    id: str
    instance: str
    kind: Kind
    was_running: bool | None
    placed_at: int
    until: int | None
    released: bool
    blocks: frozenset[Operation] | None

    def row(self, now: int) -> dict[str, object]:
        until = None if self.until is None else now + self.until
        return {
            **asdict(new_hold(self.instance, notice=f"notice of {self.id}", kind=self.kind)),
            "id": self.id,
            "was_running": self.was_running,
            "placed_at": self.placed_at,
            "until": until,
            "released_at": 1 if self.released else None,
            "blocks": None if self.blocks is None else text_of(self.blocks),
        }

    def refuses(self, operation: str) -> bool:
        if self.released or self.until == PAST:
            return False
        if operation == "migrate" and self.blocks and Operation.MIGRATE in self.blocks:
            return True
        if self.blocks is not None and Operation.START not in self.blocks:
            return False
        return self.kind is Kind.BOOT_LOCK or self.was_running is False


@dataclass(frozen=True)
class APermit:
    instance: str
    operation: Operation
    granted_at: int
    until: int
    revoked: bool

    def row(self, now: int) -> dict[str, object]:
        return {
            "id": secrets.token_hex(8),
            "instance": self.instance,
            "operation": self.operation,
            "reason": "test",
            "granted_at": now + self.granted_at,
            "granted_by": "tester",
            "until": now + self.until,
            "revoked_at": 1 if self.revoked else None,
        }

    def lets_through(self, instance: str, operation: str) -> bool:
        if self.revoked or (self.granted_at, self.until) != (PAST, FUTURE):
            return False
        covers = self.operation is Operation.MIGRATE or (
            self.operation is Operation.START and operation != "migrate"
        )
        return self.instance == instance and covers


@dataclass(frozen=True)
class Start:
    """A request. ``junk`` replaces that part of the document, were it not libvirt's."""

    domain: Domain
    operation: str
    by_libvirt: bool
    junk: tuple[float, int, bytes] | None

    def document(self, formatter: Formatter) -> bytes:
        text = (formatter.xml(self.domain) if self.by_libvirt else self.domain.xml()).encode()
        if self.junk:
            where, length, junk = self.junk
            cut = int(len(text) * where)
            text = text[:cut] + junk + text[cut + length :]
        return text


@dataclass(frozen=True)
class World:
    """What the database says, and who asks."""

    holds: list[AHold]
    held_disks: set[tuple[str, str]]
    permits: list[APermit]
    starts: list[Start]

    def store(self, lock_db: LockDB, now: int) -> None:
        with lock_db.write() as db:
            for table in ("hold", "held_disk", "permit"):
                db.execute(f"DELETE FROM {table}")
            db.table("hold").insert_all(hold.row(now) for hold in self.holds)
            db.table("permit").insert_all(permit.row(now) for permit in self.permits)
            db.conn.executemany("INSERT INTO held_disk VALUES (?, ?)", sorted(self.held_disks))

    def verdict(self, start: Start) -> Decision:
        """The rules, once more and without SQL."""
        guest, keys = start.domain.uuid, start.domain.keys
        held = {guest} | {instance for key, instance in self.held_disks if key in keys}
        refusing = [
            hold for hold in self.holds if hold.instance in held and hold.refuses(start.operation)
        ]
        permitted = any(permit.lets_through(guest, start.operation) for permit in self.permits)
        if permitted or not refusing:
            return Decision(Verdict.ALLOW)
        first = min(refusing, key=lambda hold: (hold.kind, hold.placed_at, hold.id))
        return Decision(Verdict.REFUSE, first.id, f"notice of {first.id}")


_BLOCKABLE = st.sampled_from(
    [Operation.START, Operation.MIGRATE, Operation.RESTORE, Operation.DELETE]
)
_PERMITTED = st.sampled_from([Operation.START, Operation.MIGRATE, Operation.RESTORE])


def _holds() -> st.SearchStrategy[list[AHold]]:
    return st.lists(
        st.builds(
            AHold,
            id=st.integers(0, 255).map("{:016x}".format),
            instance=st.sampled_from(INSTANCES),
            kind=st.sampled_from(Kind),
            was_running=st.sampled_from([None, True, False]),
            placed_at=st.integers(1, 3),
            until=st.none() | TIMES,
            released=st.booleans(),
            blocks=st.none() | st.frozensets(_BLOCKABLE, min_size=1),
        ),
        max_size=6,
        unique_by=lambda hold: hold.id,
    )


def _permits() -> st.SearchStrategy[list[APermit]]:
    return st.lists(
        st.builds(
            APermit,
            instance=st.sampled_from(INSTANCES),
            operation=_PERMITTED,
            granted_at=TIMES,
            until=TIMES,
            revoked=st.booleans(),
        ),
        max_size=2,
    )


def _disks(sources: list[Source]) -> st.SearchStrategy[tuple[Disk, ...]]:
    some = st.sampled_from(sources)
    disk = st.builds(
        Disk,
        source=some,
        chain=st.lists(some, max_size=2).map(tuple),
        device=st.sampled_from(["disk", "disk", "disk", "lun", "cdrom", "floppy"]),
        mark=st.sampled_from(["", "", "", "readonly", "shareable", "transient"]),
    )
    return st.lists(disk, max_size=3).map(tuple)


# Bytes that can't stand in XML but would reach the hook, and what its SQL looks for.
_JUNK = st.sampled_from(
    [
        b"",
        b"\xff\xc3",
        b"<source ",
        b"</source>",
        b"<uuid>",
        b"'",
        b'"',
        b"\\",
        b"<!--",
        b"]",
        b"\x01",
    ]
)
_NO_JUNK: st.SearchStrategy[None] = st.none()


@st.composite
def _worlds(draw: st.DrawFn) -> World:
    sources = draw(st.lists(SOURCES, min_size=4, max_size=4))
    names = draw(st.lists(TEXT, min_size=2, max_size=2))
    # Inside double quotes, so that none of it is an attribute in single ones.
    extras = [extra.replace("{}", quoted(names[0])[1:-1]) for extra in EXTRAS]
    pairs = st.tuples(
        st.sampled_from([source.key for source in sources]), st.sampled_from(INSTANCES)
    )
    start = st.builds(
        Start,
        domain=st.builds(
            Domain,
            uuid=st.sampled_from(INSTANCES),
            name=st.sampled_from(names),
            disks=_disks(sources),
            extras=st.sampled_from(extras),
        ),
        operation=st.sampled_from(["prepare", "start", "migrate"]),
        by_libvirt=st.booleans(),
        junk=st.one_of(
            _NO_JUNK, _NO_JUNK, _NO_JUNK, st.tuples(st.floats(0, 1), st.integers(0, 60), _JUNK)
        ),
    )
    return World(
        draw(_holds()),
        draw(st.sets(pairs, max_size=5)),
        draw(_permits()),
        draw(st.lists(start, min_size=DOCUMENTS, max_size=DOCUMENTS)),
    )


@pytest.mark.timeout(900)
def test_the_hook_and_python_agree_on_ten_thousand_starts(tmp_path: Path) -> None:
    hook = Hook.install(tmp_path)
    seen = dict.fromkeys(Verdict, 0)

    with (
        libvirt_formatter() as formatter,
        database.open_db(hook.database) as lock_db,
        ThreadPoolExecutor(4) as pool,
    ):

        @settings(
            max_examples=EXAMPLES,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(_worlds())
        def agree(world: World) -> None:
            now = int(time.time())
            world.store(lock_db, now)
            documents = [start.document(formatter) for start in world.starts]
            operations = [start.operation for start in world.starts]
            answers = list(pool.map(hook.run, documents, operations))
            for start, document, answer in zip(world.starts, documents, answers, strict=True):
                decision = decide(lock_db, document, start.operation, now=now)
                assert_same(answer, decision, start.operation)
                if not start.junk:
                    assert decision == world.verdict(start)
                seen[decision.verdict] += 1

        agree()
        assert sum(seen.values()) >= EXAMPLES * DOCUMENTS == 10_000
        # Each kind of answer, and libvirt's own hand, in a substantial part.
        assert min(seen.values()) > 300
        assert formatter.written > 2_000
