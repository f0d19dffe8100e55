"""`virsh start` of a real guest by a real libvirtd: with the hook, without it, with an empty one.

One private host and one guest, so that nothing differs but the script in qemu.d/, which libvirt
looks for anew at each call. The guest is the smallest there is, emulated and without a disk: any
other takes longer to start, and a hook is a smaller part of that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks import guest
from benchmarks.calls import WrongVerdict
from benchmarks.measure import Case
from hookrunner import DECIDE, HOOK
from lockdb.values import CANARY_PREFIX
from privatehost import PrivateHost, domain_xml

_FREE = "free"
_CANARY = "canary"


@contextmanager
def start_cases(directory: Path, database: Path, holds: int) -> Iterator[Sequence[Case]]:
    """A private host below ``directory`` with that database, as long as the context lasts."""
    with PrivateHost(directory / "h") as host:
        starts = _Starts(host, directory)
        starts.prepare(database)
        yield (
            Case("start.none", "virsh start, no hook", partial(starts.take, None)),
            Case("start.empty", "virsh start, an empty sh hook", partial(starts.take, "empty")),
            Case(
                "start.bootlock",
                f"virsh start, bootlock with {holds:,} holds",
                partial(starts.take, "bootlock"),
            ),
        )


class _Starts:
    """Starts the guest under one hook or another."""

    def __init__(self, host: PrivateHost, directory: Path) -> None:
        self._host = host
        self._spare = host.outside("/etc/libvirt/hooks")
        self._place = self._spare / "qemu.d" / "50-bootlock"
        self._definitions = directory

    def prepare(self, database: Path) -> None:
        """Install, define the guests, and prove the hook armed: it must refuse a canary."""
        shutil.copy(DECIDE, self._host.outside("/usr/share/bootlock"))
        database.rename(self._host.outside("/var/lib/bootlock") / database.name)
        self._host.install_hook(HOOK, ["qemu"])
        shutil.copy(HOOK, self._spare / "bootlock")
        (self._spare / "empty").write_text("#!/bin/sh\n")
        (self._spare / "empty").chmod(0o755)
        self._define(_FREE, guest.FREE_INSTANCE)
        self._define(_CANARY, f"{CANARY_PREFIX}000000000001")
        refused = self._virsh("start", _CANARY, check=False)
        if "bootlock: start refused" not in refused.stderr:
            raise WrongVerdict(f"libvirt did not ask the hook: {refused.stderr.strip()}")

    def take(self, hook: str | None) -> float:
        """One start of the guest; returns the seconds of the whole `virsh start`."""
        self._place.unlink(missing_ok=True)
        if hook is not None:
            os.link(self._spare / hook, self._place)
        begin = time.perf_counter()
        self._virsh("start", _FREE)
        seconds = time.perf_counter() - begin
        self._virsh("destroy", _FREE)
        return seconds

    def _define(self, name: str, uuid: str) -> None:
        path = self._definitions / f"{name}.xml"
        path.write_text(domain_xml(name, uuid))
        self._virsh("define", str(path))

    def _virsh(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        # Not by the host's own virsh(): entering its namespaces would be part of the time.
        return subprocess.run(
            ["virsh", "--connect", self._host.uri, "--quiet", *arguments],
            check=check,
            capture_output=True,
            text=True,
        )
