"""What a check says, and about what host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bootlockd.config import DEFAULT_CONFIG, Config
from lockdb.database import DEFAULT_PATH

Fix = Callable[[], None]


class Level(StrEnum):
    """``note`` is worth knowing and breaks nothing; a ``fault`` makes the host unhealthy."""

    OK = "ok"
    NOTE = "note"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One fact about the host. ``mend`` is a command or sentence for a person; ``fix`` does it."""

    check: str
    level: Level
    detail: str
    mend: str = ""
    #: Called by ``doctor --fix``; raises OSError or LockDBError if it can't.
    fix: Fix | None = None
    fixed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "check": self.check,
            "level": self.level.value,
            "detail": self.detail,
            "mend": self.mend or None,
            "fixed": self.fixed,
        }


@dataclass(frozen=True)
class Patient:
    """The host that is examined: where its parts are. Tests put them elsewhere."""

    uris: Sequence[str]
    now: int
    database: Path = DEFAULT_PATH
    hooks: Path = Path("/etc/libvirt/hooks")
    share: Path = Path("/usr/share/bootlock")
    break_glass: Path = Path("/run/bootlock/break-glass")
    upgrading: Path = Path("/run/bootlock/upgrading")
    control: Path = Config().daemon.control_socket
    #: The daemon's settings.
    config: Config = field(default_factory=Config)
    #: Where a package or an admin puts the daemon's unit.
    units: Sequence[Path] = tuple(
        Path(place, "systemd/system/bootlockd.service") for place in ("/usr/lib", "/lib", "/etc")
    )
    metrics_units: Sequence[Path] = tuple(
        Path(place, "systemd/system/bootlock-metrics.service")
        for place in ("/usr/lib", "/lib", "/etc")
    )
    settings: Path = DEFAULT_CONFIG
    #: There where systemd runs: elsewhere a unit starts nothing.
    systemd: Path = Path("/run/systemd/system")
    sqlite3: Path = Path("/usr/bin/sqlite3")
    libraries: Path = Path("/usr")
    selinux: Path = Path("/sys/fs/selinux")
    apparmor: Path = Path("/sys/kernel/security/apparmor")
    apparmor_profiles: Path = Path("/etc/apparmor.d")


Check = Callable[[Patient], Iterator[Finding]]


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, detail)


def note(check: str, detail: str, mend: str = "") -> Finding:
    """Worth knowing."""
    return Finding(check, Level.NOTE, detail, mend)


def fault(check: str, detail: str, mend: str, fix: Fix | None = None) -> Finding:
    """Not well."""
    return Finding(check, Level.FAULT, detail, mend, fix)
