"""Second names of the files that libvirt keeps beside a domain: its firmware's variables, its TPM.

An undefine removes them, those of the TPM unasked, and with them what the guest boots from and the
keys to its disks. A hard link in the directory of custody keeps each, where that is under the same
mount. Who writes into such a file writes into both; who puts another in its place, as swtpm does
with a TPM's state while it runs, leaves the link behind: that follows at the next look.
"""

from __future__ import annotations

import os
import shutil
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from bootlockd import custodylinks
from bootlockd.errors import FenceError

#: Where libvirt's system daemon keeps emulated TPMs; it can't be configured.
TPM_DIRECTORY = Path("/var/lib/libvirt/swtpm")

#: What of a TPM outlasts its guest, as swtpm calls it: ``tpm2-00.permall``.
_PERMANENT = "permall"


class Standing(Enum):
    """What became of a file and its second name."""

    KEPT = auto()
    #: It has no second name yet.
    NEW = auto()
    #: Its own name was removed.
    REMOVED = auto()
    #: Its own name leads to another file.
    REPLACED = auto()


@dataclass(frozen=True)
class StateFile:
    """One such file."""

    path: Path
    link: Path
    standing: Standing


def variables_of(document: str) -> str | None:
    """Where a domain's firmware keeps its variables, if in a file. Raises ParseError."""
    element = ET.fromstring(document).find("./os/nvram")  # noqa: S314 - libvirt wrote it
    if element is None:
        return None
    source = element.find("source")
    path = element.text if source is None else source.get("file")
    return (path or "").strip() or None


def find(instance: str, variables: str | None, custody: Path, tpms: Path) -> list[StateFile]:
    """All that there are, or were when they were kept. Raises OSError."""
    names = []
    if variables is not None:
        names.append((Path(variables), custody / f"{instance}.nvram"))
    state, kept = tpms / instance, custody / f"{instance}.tpm"
    names += [(state / name, kept / name) for name in {*_permanent(state), *_permanent(kept)}]
    return [
        StateFile(path, link, standing)
        for path, link in sorted(names)
        if (standing := _standing(path, link)) is not None
    ]


def keep(file: StateFile) -> None:
    """Give it the second name, in place of what had that. Raises OSError, or FenceError."""
    file.link.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
    with _opened(file.path) as descriptor:
        file.link.unlink(missing_ok=True)
        custodylinks.give_name(descriptor, str(file.link))


def put_back(file: StateFile) -> None:
    """Give it its own name again. Raises OSError, or FenceError."""
    # Whose the directories are libvirt sees to at the next start.
    file.path.parent.mkdir(mode=0o711, exist_ok=True, parents=True)
    with _opened(file.link) as descriptor, suppress(FileExistsError):
        custodylinks.give_name(descriptor, str(file.path))


def end(instance: str, custody: Path) -> None:
    """Remove all second names. Raises OSError."""
    (custody / f"{instance}.nvram").unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(custody / f"{instance}.tpm")


def described(files: Sequence[StateFile]) -> str:
    """Their names, for staff."""
    return ", ".join(f"{str(file.path)!r}, kept as {str(file.link)!r}" for file in files)


def _permanent(directory: Path) -> Iterator[Path]:
    """A TPM's permanent state below a directory, by the names in it."""
    for top, _, names in os.walk(directory):
        for name in names:
            if name.endswith(_PERMANENT):
                yield Path(top, name).relative_to(directory)


def _standing(path: Path, link: Path) -> Standing | None:
    """None: there is neither; libvirt makes it at the first start."""
    file, second = _status(path), _status(link)
    if file is None:
        return None if second is None else Standing.REMOVED
    if second is None:
        return Standing.NEW
    same = (file.st_dev, file.st_ino) == (second.st_dev, second.st_ino)
    return Standing.KEPT if same else Standing.REPLACED


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FenceError(f"{str(path)!r} is no file", "see the domain's <nvram>")
        yield descriptor
    finally:
        os.close(descriptor)
