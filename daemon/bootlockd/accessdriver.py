"""Whether libvirt asks polkit at all: its access driver is off unless an admin turned it on.

libvirt tells nobody which drivers it runs with; as root one can't even find out by trying, since
polkit lets root do everything. So this goes by the settings and by when they were read. That it
really refuses is proven by ``bootlock doctor``, who can ask as somebody else.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

#: The daemons that look after guests, and after volumes where libvirt is split.
GUESTS = ("libvirtd", "virtqemud", "virtlxcd", "virtxend")
STORAGE = "virtstoraged"

_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
_SETTING = re.compile(r"^\s*access_drivers\s*=\s*\[([^]]*)\]", re.MULTILINE)
#: Seconds: the start of a process is known to a hundredth of one, a file's change less well.
_SLACK = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


def why_off(etc: Path = Path("/etc/libvirt"), run: Path = Path("/run")) -> str:
    """Why some daemon of libvirt here does not ask polkit, in one line; "" if all do."""
    running = [name for name in GUESTS if _started(run / f"{name}.pid") is not None]
    if not running:
        return "no daemon of libvirt runs"
    if "libvirtd" not in running:
        running.append(STORAGE)
    return "; ".join(filter(None, (_why_off(name, etc, run) for name in running)))


def is_on(settings: str) -> bool:
    """Whether a file of libvirt's settings turns it on; of several settings the first counts."""
    found = _SETTING.search(_COMMENT.sub("", settings))
    return found is not None and re.search(r"[\"']polkit[\"']", found[1]) is not None


def _why_off(name: str, etc: Path, run: Path) -> str:
    path = etc / f"{name}.conf"
    try:
        settings, changed = path.read_text("utf-8", "replace"), path.stat().st_mtime
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not is_on(settings):
        return f"no access_drivers in {path}"
    started = _started(run / f"{name}.pid")
    if started is not None and started + _SLACK < changed:
        return f"{path} was changed after {name} was started: restart it"
    return ""


def _started(pid_file: Path) -> float | None:
    """When the process began that wrote this file, in Unix seconds; None: there is none."""
    try:
        pid = int(pid_file.read_text())
        # Its name may have blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    since_boot = int(fields[19]) / _TICKS
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
