"""The values that cross lockdb's border, and the rules their fields keep.

Times are whole Unix seconds (UTC). Instances are UUIDs in lower case with hyphens, as libvirt
prints them. Texts are one printable line: they end up on terminals, in logs and in libvirt's
errors.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from lockdb import operations
from lockdb.errors import InvalidValue
from lockdb.operations import Operation as Operation  # noqa: PLC0414 - one of the values

REASON_MAX = 2000
NOTICE_MAX = 200
CASE_MAX = 200
ACTOR_MAX = 200
GRACE_MAX = 24 * 3600
#: Seconds. A permit is an exception: what must last longer is a release.
PERMIT_MAX = 7 * 86400
#: 9999-12-31T23:59:59Z: the last second that can be printed.
UNTIL_MAX = 253402300799
#: Seconds: a hundred years. What is meant to last longer has a slip of the keyboard in it.
RETAIN_MAX = 36525 * 86400

#: Every UUID that begins so is refused by ``decide.sql``, hold or no hold: doctor's canaries.
CANARY_PREFIX = "b00710c4-0000-4000-8000-"

_UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")
_LIKE_UUID = re.compile(r"[0-9a-z]{7,9}(-[0-9a-z]{3,5}){3}-[0-9a-z]{11,13}")
_BARE_UUID = re.compile(r"[0-9a-f]{32}")
# Control, format (bidirectional overrides too), surrogate, line and paragraph separator.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class Kind(StrEnum):
    """The two kinds of hold: the provider's and the customer's."""

    BOOT_LOCK = "boot_lock"
    STATE_LOCK = "state_lock"


class OnRunning(StrEnum):
    """What is ordered for an instance that runs when its hold arrives."""

    LEAVE = "leave"
    SHUTDOWN = "shutdown"
    DESTROY = "destroy"
    MANAGED_SAVE = "managed_save"
    PAUSE = "pause"


class Retention(StrEnum):
    """What may end a hold before its date: nothing, or an admin who says that he overrides it."""

    GOVERNANCE = "governance"
    COMPLIANCE = "compliance"


#: What the refused caller reads when whoever placed the hold gave no notice.
DEFAULT_NOTICE = {
    Kind.BOOT_LOCK: "this instance is locked by the provider",
    Kind.STATE_LOCK: "this instance is locked in the state it was in",
}


@dataclass(frozen=True)
class NewHold:
    """A hold to be placed. Checked and normalised when made; raises InvalidValue."""

    instance: str
    reason: str
    placed_by: str
    kind: Kind = Kind.BOOT_LOCK
    source: str = "local"
    notice: str = ""
    case: str = ""
    on_running: OnRunning = OnRunning.LEAVE
    grace: int = 60
    isolate: bool = False
    until: int | None = None
    #: The operations it blocks, as ``delete,stop``; None: those of its kind.
    blocks: str | None = None
    #: The hold may not end before; without ``retention`` it is governance.
    retain_until: int | None = None
    retention: Retention | None = None
    #: Whether its disks are to be kept as they are; for boot locks.
    preserve: bool = False

    def __post_init__(self) -> None:
        def put(field: str, value: object) -> None:
            object.__setattr__(self, field, value)

        put("instance", parse_instance(self.instance))
        put("reason", required_line("reason", self.reason, REASON_MAX))
        put("placed_by", required_line("placed_by", self.placed_by, ACTOR_MAX))
        put("source", required_line("source", self.source, ACTOR_MAX))
        put("notice", one_line("notice", self.notice, NOTICE_MAX) or DEFAULT_NOTICE[self.kind])
        put("case", one_line("case", self.case, CASE_MAX))
        if not 0 <= self.grace <= GRACE_MAX:
            raise InvalidValue("grace", f"{self.grace} s is not between 0 and {GRACE_MAX}")
        if self.until is not None and not 0 <= self.until <= UNTIL_MAX:
            raise InvalidValue("until", f"{self.until} is no time before the year 10000")
        if self.blocks is not None:
            blocked = operations.parse(self.blocks)
            if self.on_running is not OnRunning.LEAVE and Operation.START not in blocked:
                raise InvalidValue("blocks", f"{self.on_running} without start would not last")
            put("blocks", operations.text_of(blocked))
        if self.retain_until is not None:
            put("retention", self.retention or Retention.GOVERNANCE)
        self._check_retention()
        self._check_preserve()

    def _check_retention(self) -> None:
        if self.retain_until is None:
            if self.retention is not None:
                raise InvalidValue("retention", "it needs a date: retain_until")
        elif not 0 <= self.retain_until <= UNTIL_MAX:
            raise InvalidValue("retain_until", f"{self.retain_until} is no time")
        elif self.until is not None:
            # The hook goes by the clock alone, which can be set forward.
            raise InvalidValue(
                "until", "a hold that is retained does not end by itself", "give one of the two"
            )

    def _check_preserve(self) -> None:
        bars_start = Operation.START in operations.blocked(self.kind, self.blocks)
        if self.preserve and not (self.kind is Kind.BOOT_LOCK and bars_start):
            raise InvalidValue("preserve", "is for boot locks that block starts, which write")


@dataclass(frozen=True)
class Hold:
    """One row of ``hold``. It holds while ``released_at`` is None and ``until`` is not reached."""

    id: str
    instance: str
    kind: Kind
    source: str
    reason: str
    notice: str
    case: str
    on_running: OnRunning
    grace: int
    isolate: bool
    #: Whether the instance ran here when it was locked; None: this host did not know it.
    was_running: bool | None
    placed_at: int
    placed_by: str
    until: int | None
    released_at: int | None
    released_by: str | None
    release_reason: str | None
    #: The source's own name of it; None for holds that were placed here.
    ref: str | None = None
    #: As in ``NewHold``.
    blocks: str | None = None
    preserve: bool = False

    @property
    def blocked(self) -> frozenset[Operation]:
        """The operations that it blocks, as far as is known of the instance."""
        found = operations.blocked(self.kind, self.blocks)
        # It keeps the state: what ran may run again. decide.sql says the same.
        if self.kind is Kind.STATE_LOCK and self.was_running is not False:
            found -= {Operation.START}
        return found

    @property
    def bars_start(self) -> bool:
        """A boot lock that keeps the instance from running."""
        return self.kind is Kind.BOOT_LOCK and Operation.START in self.blocked

    #: It may not end before, by the time that ``lockdb.witness`` has seen pass.
    retain_until: int | None = None
    retention: Retention | None = None
    #: It was released before that.
    overridden: bool = False

    def is_active(self, now: int) -> bool:
        """Neither released nor expired at ``now``."""
        return self.released_at is None and (self.until is None or self.until > now)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys as in the table."""
        return asdict(self)


@dataclass(frozen=True)
class Permit:
    """One row of ``permit``: lets one operation of one instance through until ``until``."""

    id: str
    instance: str
    operation: Operation
    reason: str
    granted_at: int
    granted_by: str
    until: int
    revoked_at: int | None
    revoked_by: str | None

    def is_active(self, now: int) -> bool:
        """In force at ``now``; not before it was granted either, should the clock be set back."""
        return self.revoked_at is None and self.granted_at <= now < self.until

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys as in the table."""
        return asdict(self)


def parse_instance(text: str) -> str:
    """The canonical form of an instance UUID. Raises InvalidValue."""
    uuid = text.strip().lower()
    if _BARE_UUID.fullmatch(uuid):
        uuid = f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"
    if not _UUID.fullmatch(uuid):
        raise InvalidValue("instance", f"{text[:80]!r} is not a UUID")
    if uuid.startswith(CANARY_PREFIX):
        raise InvalidValue("instance", f"{uuid} is reserved for doctor's canaries")
    return uuid


def looks_like_uuid(text: str) -> bool:
    """Whether ``text`` is meant as a UUID: well-formed, or with a slip of the keyboard."""
    uuid = text.strip().lower()
    return bool(_LIKE_UUID.fullmatch(uuid) or _BARE_UUID.fullmatch(uuid))


def one_line(field: str, text: str, limit: int) -> str:
    """``text`` without outer blanks: one printable line of at most ``limit`` characters."""
    text = text.strip(" ")
    if len(text) > limit:
        raise InvalidValue(field, f"{len(text)} characters, at most {limit} are allowed")
    # isprintable() is stricter, and much faster than looking each character up.
    for position, character in enumerate("" if text.isprintable() else text):
        if unicodedata.category(character) in _UNPRINTABLE:
            name = f"U+{ord(character):04X}"
            raise InvalidValue(field, f"unprintable character {name} at position {position}")
    return text


def required_line(field: str, text: str, limit: int) -> str:
    """As ``one_line``, and not empty."""
    line = one_line(field, text, limit)
    if not line:
        raise InvalidValue(field, "must not be empty")
    return line
