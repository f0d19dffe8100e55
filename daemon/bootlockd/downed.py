"""Which links we set down ourselves, so that only those are set up again on release.

A file for each instance, written before the link is touched: killed in between, we remember one
link too many rather than one too few. Links don't outlive a reboot, so neither does the memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from bootlockd.errors import FenceError

_BOOT = Path("/proc/sys/kernel/random/boot_id")

#: A link's name and index: after it was made anew it is not the one that we set down.
Known = tuple[str, int]


class Downed:
    """The memory in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of(self, instance: str) -> set[Known]:
        """The links of an instance. Raises FenceError."""
        path = self._path(instance)
        try:
            told = json.loads(path.read_text("utf-8"))
            links = {(str(name), int(index)) for name, index in told["links"]}
            return links if told["boot"] == _boot() else set()
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, TypeError, KeyError) as error:
            hint = "remove it; links that are down then have to be set up by hand"
            raise FenceError(f"{path}: {error}", hint) from error

    def add(self, instance: str, links: Iterable[Known]) -> None:
        """Remember more of them. Raises FenceError."""
        known = self.of(instance)
        if known >= set(links):
            return
        path = self._path(instance)
        new = path.with_suffix(".new")
        told = {"boot": _boot(), "links": sorted(known | set(links))}
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_text(json.dumps(told), "utf-8")
            os.replace(new, path)
        except OSError as error:
            raise FenceError(f"{path}: {error}") from error

    def forget(self, instance: str) -> None:
        """Nothing of this instance is down by us any more."""
        self._path(instance).unlink(missing_ok=True)

    def instances(self) -> set[str]:
        """All that have something remembered."""
        return {path.stem for path in self._directory.glob("*.json")}

    def _path(self, instance: str) -> Path:
        return self._directory / f"{instance}.json"


def _boot() -> str:
    return _BOOT.read_text("ascii").strip()
