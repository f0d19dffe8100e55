"""`virsh start` of a real guest by a real libvirtd: with the hook, without it, with an empty one.

One private host, so that nothing differs but the script in qemu.d/, which libvirt looks for anew at
each call. Two guests, both emulated: an ordinary instance, with two disks and an interface; and
the least there can be, of whose start a hook is the biggest part.
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
from domainxml import domain_xml
from hookrunner import DECIDE, HOOK
from lockdb.values import CANARY_PREFIX
from privatehost import PrivateHost

_ORDINARY = "ordinary"
_LEAST = "least"
_CANARY = "canary"


@contextmanager
def start_cases(directory: Path, database: Path, holds: int) -> Iterator[Sequence[Case]]:
    """A private host below ``directory`` with that database, as long as the context lasts."""
    with PrivateHost(directory / "h") as host:
        starts = _Starts(host, directory)
        starts.prepare(database)
        yield (
            *_cases(starts, "start", _ORDINARY, f"{holds:,} holds"),
            *_cases(starts, "least", _LEAST, f"{holds:,} holds"),
        )


def _cases(starts: _Starts, key: str, name: str, holds: str) -> Sequence[Case]:
    what = {_ORDINARY: "an instance", _LEAST: "the least guest"}[name]
    return (
        Case(f"{key}.none", f"{what}, no hook", partial(starts.take, name, None)),
        Case(f"{key}.empty", f"{what}, an empty sh hook", partial(starts.take, name, "empty")),
        Case(
            f"{key}.bootlock",
            f"{what}, bootlock with {holds}",
            partial(starts.take, name, "bootlock"),
        ),
    )


class _Starts:
    """Starts a guest under one hook or another."""

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
        self._make_instance()
        self._define(domain_xml(_LEAST))
        self._define(domain_xml(_CANARY, f"{CANARY_PREFIX}000000000001"))
        refused = self._virsh("start", _CANARY, check=False)
        if "bootlock: start refused" not in refused.stderr:
            raise WrongVerdict(f"libvirt did not ask the hook: {refused.stderr.strip()}")

    def take(self, name: str, hook: str | None) -> float:
        """One start of that guest; returns the seconds of the whole `virsh start`."""
        self._place.unlink(missing_ok=True)
        if hook is not None:
            os.link(self._spare / hook, self._place)
        begin = time.perf_counter()
        self._virsh("start", name)
        seconds = time.perf_counter() - begin
        self._virsh("destroy", name)
        return seconds

    def _make_instance(self) -> None:
        """The ordinary one, with all it needs on this host."""
        for image, backing in guest.files(self._host.images).items():
            image.parent.mkdir(parents=True, exist_ok=True)
            form = ["-f", "qcow2", "-F", "raw", "-b", str(backing)] if backing else ["-f", "raw"]
            self._host.run(["qemu-img", "create", "-q", *form, image, "1G"])
        self._host.run(["ip", "link", "add", guest.BRIDGE, "up", "type", "bridge"])
        self._define(guest.startable(_ORDINARY, self._host.images))

    def _define(self, xml: str) -> None:
        path = self._definitions / "domain.xml"
        path.write_text(xml)
        self._virsh("define", str(path))

    def _virsh(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        # Not by the host's own virsh(): entering its namespaces would be part of the time.
        done = subprocess.run(
            ["virsh", "--connect", self._host.uri, "--quiet", *arguments],
            check=False,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            raise RuntimeError(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
        return done
