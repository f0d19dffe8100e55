"""What is kept of a held instance's definition: one file in the directory of custody.

It holds passwords, of consoles for example, and so is root's alone. Its first line is the SHA-256
of the rest, which is JSON: a file that was damaged is not taken for a definition.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bootlockd.errors import FenceError
from lockdb.durable import replace_file

SUFFIX = ".definition"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot's metadata, as libvirt makes it again from ``document``."""

    name: str
    document: str


@dataclass(frozen=True)
class KeptDefinition:
    """A persistent domain as it was when it was kept."""

    instance: str
    uri: str
    name: str
    #: The domain as it would start, with its passwords.
    document: str
    #: The same without passwords, for who may look.
    shown: str
    autostart: bool
    #: Parents first.
    snapshots: tuple[Snapshot, ...]
    current_snapshot: str | None
    #: Where its firmware keeps variables; None: it has none, or none of its own.
    nvram: str | None
    kept_at: int
    #: libvirt's and the hypervisor's, whose words ``document`` is in.
    versions: str
    #: It is being defined again: what of it is missing was not removed by anybody.
    restoring: bool = False

    @property
    def sha256(self) -> str:
        """Of ``shown``, as the journal has it."""
        return hashlib.sha256(encoded(self.shown)).hexdigest()


def encoded(document: str) -> bytes:
    """A definition as it is handed over, and as its digest is made."""
    return document.encode("utf-8", "backslashreplace")


def path_for(directory: Path, instance: str) -> Path:
    """Where an instance's definition is kept."""
    return directory / f"{instance}{SUFFIX}"


def read(path: Path) -> KeptDefinition | None:
    """What is kept there; None for nothing.

    Raises OSError, or FenceError for what is damaged or of another version's format.
    """
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise FenceError(f"{path} is damaged", "move it away: the definition is kept anew")
    try:
        return _from(json.loads(body))
    except (KeyError, TypeError, ValueError) as error:
        raise FenceError(
            f"{path} was written by another version of bootlock", "upgrade bootlock on this host"
        ) from error


def write(path: Path, kept: KeptDefinition) -> None:
    """Replace what is kept there, durably. Raises OSError."""
    body = json.dumps(asdict(kept)).encode()
    content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    replace_file(path, content, 0o600, draft=path.with_name(f".{path.name}.new"))


def _from(fields: dict[str, Any]) -> KeptDefinition:
    snapshots = tuple(Snapshot(**snapshot) for snapshot in fields.pop("snapshots"))
    return KeptDefinition(**fields, snapshots=snapshots)
