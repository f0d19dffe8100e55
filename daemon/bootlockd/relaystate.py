"""How a relay is, in a file beside it: what the metrics of its machine say of it.

systemd makes the directory and removes it with the relay. The file tells when it was written by a
clock that nobody sets, so that a relay that hangs is none that is well.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from bootlockd.fleet import relays
from bootlockd.fleet.relays import RelayReport

#: Where ``bootlock-relay.service`` has it.
PATH = Path("/run/bootlock-relay/state.json")
#: What makes a machine one that should have a relay.
SETTINGS = Path("/etc/bootlock/relay.toml")
#: Seconds after which what the file says is no more than what was: a relay writes every few.
FRESH = 60.0


def given_directory(environment: Mapping[str, str]) -> Path | None:
    """The directory that systemd gave this service, if it did."""
    given = environment.get("RUNTIME_DIRECTORY", "")
    return Path(given.partition(":")[0]) if given else None


def save(directory: Path, report: RelayReport) -> None:
    """Say how it is, now. Raises OSError."""
    fields = json.loads(relays.encoded(report)) | {"beat": time.monotonic()}
    new = directory / (PATH.name + ".new")
    new.write_text(json.dumps(fields), "utf-8")
    # It has no secret in it, and who reads it is nobody.
    new.chmod(0o644)
    new.replace(directory / PATH.name)


def load(path: Path) -> RelayReport | None:
    """How it is, as of some seconds ago; None if it doesn't say."""
    try:
        text = path.read_bytes()
        beat = float(json.loads(text)["beat"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    report = relays.decoded(text)
    is_fresh = 0 <= time.monotonic() - beat < FRESH
    return report if is_fresh and not report.problem else None


def is_expected(settings: Path) -> bool:
    """Whether this machine should have a relay."""
    # Not Path.exists, which raises where the directory is closed.
    return os.path.exists(settings)
