"""The power is cut between each two steps of keeping a definition and of putting it back."""

from __future__ import annotations

import os
import shutil
import time
import uuid as uuids
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import libvirt
import pytest

from bootlockd import definitions, hypervisor, keptdefinition
from bootlockd.config import Definition, Restore
from bootlockd.fences.definition import DefinitionFence
from bootlockd.worker import Job, Worker
from domainxml import domain_xml, file_disk
from fences.preservescene import Boundaries, Box, cut_in, in_own_mounts, mounted
from lockdb import database, enforcements, holds
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.values import Hold, NewHold
from privatehost import PrivateHost

pytestmark = pytest.mark.live

#: More than there are steps: whoever needs so many does not come to an end.
MANY = 80

#: What of libvirt changes something there: a daemon may be killed before each.
ORDERS = (
    (libvirt.virConnect, "defineXML"),
    (libvirt.virDomain, "rename"),
    (libvirt.virDomain, "setAutostart"),
    (libvirt.virDomain, "snapshotCreateXML"),
)


class Scene:
    """An instance with two snapshots, firmware variables and a TPM's state; all in the box."""

    def __init__(self, host: PrivateHost, root: Path, image: Path) -> None:
        self.host = host
        self.uuid = str(uuids.uuid4())
        self.disk = image
        self.variables = root / "nvram" / f"{self.uuid}.fd"
        self.variables.parent.mkdir(exist_ok=True)
        self.variables.write_bytes(b"boot order")
        self.tpms = root / "swtpm"
        self.tpm = self.tpms / self.uuid / "tpm2" / "tpm2-00.permall"
        self.tpm.parent.mkdir(parents=True)
        self.tpm.write_bytes(b"keys")
        self.custody = root / "custody"
        self.database = root / "state" / "lock.db"
        if not self.database.exists():
            database.create(self.database, now=1, host="test")
        loader = root / "code.fd"
        loader.write_bytes(bytes(4096))
        self._define(loader)
        os.sync()

    def _define(self, loader: Path) -> None:
        document = domain_xml(self.uuid, self.uuid, disks=[file_disk(self.disk, image="qcow2")])
        with closing(self.host.connect()) as opened:
            domain = opened.defineXML(document)
            for name in ("first", "second"):
                domain.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>")
            # libvirt 9 makes no snapshots of what has firmware variables.
            firmware = (
                f"<loader readonly='yes' type='pflash'>{loader}</loader>"
                f"<nvram>{self.variables}</nvram></os>"
            )
            opened.defineXML(document.replace("</os>", firmware)).setAutostart(True)

    def whole(self) -> object:
        with closing(self.host.connect()) as opened:
            domain = hypervisor.look_up(opened, self.uuid)
            if domain is None:
                return None
            found = definitions.take(hypervisor.guest_of(opened, domain), 0)
        files = [self.variables, self.tpm]
        return found, [file.read_bytes() if file.exists() else None for file in files]

    def undefine(self) -> None:
        with closing(self.host.connect()) as opened:
            flags = libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            domain = opened.lookupByUUIDString(self.uuid)
            domain.undefineFlags(flags | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
        # libvirtd does not see what is mounted here.
        self.variables.unlink()
        shutil.rmtree(self.tpms / self.uuid)

    def place(self) -> Hold:
        with open_db(self.database) as lock_db:
            new = NewHold(self.uuid, "unpaid", "a test")
            return holds.place(lock_db, new, now=int(time.time()))

    def release(self, hold: Hold) -> None:
        with open_db(self.database) as lock_db:
            holds.release(lock_db, hold.id, reason="-", by="a test", now=int(time.time()))

    def treat(self) -> None:
        """One job, as the cycle would have it run; the fence knows nothing of any before."""
        settings = Definition(Restore.AT_ONCE)
        fence = DefinitionFence(settings, self.custody, self.database, self.tpms)
        Worker(self.database, [self.host.uri], [fence]).run(Job(self.uuid, ()))

    def treated(self, hold: Hold, state: State) -> None:
        """What a daemon does that is started afterwards."""
        for _ in range(3):
            self.treat()
        with open_db(self.database, read_only=True) as lock_db:
            (row,) = enforcements.of_hold(lock_db, hold.id)
        assert row.state is state, row.detail

    @property
    def kept(self) -> Path:
        return keptdefinition.path_for(self.custody, self.uuid)


def keep(scene: Scene, box: Box, boundaries: Boundaries, at: int) -> bool:
    before = scene.whole()
    hold = scene.place()
    was_cut = cut_in(scene.treat, box, boundaries, at)
    scene.treated(hold, State.ENFORCED)
    scene.undefine()
    scene.treated(hold, State.ENFORCED)
    assert scene.whole() == before
    scene.release(hold)
    scene.treated(hold, State.LIFTED)
    return was_cut


def put_back(scene: Scene, box: Box, boundaries: Boundaries, at: int) -> bool:
    before = scene.whole()
    hold = scene.place()
    scene.treated(hold, State.ENFORCED)
    scene.undefine()
    was_cut = cut_in(scene.treat, box, boundaries, at)
    scene.treated(hold, State.ENFORCED)
    assert scene.whole() == before
    scene.release(hold)
    scene.treated(hold, State.LIFTED)
    return was_cut


def end(scene: Scene, box: Box, boundaries: Boundaries, at: int) -> bool:
    """Undefined, and released before anybody looked."""
    before = scene.whole()
    hold = scene.place()
    scene.treated(hold, State.ENFORCED)
    scene.undefine()
    scene.release(hold)
    was_cut = cut_in(scene.treat, box, boundaries, at)
    scene.treated(hold, State.LIFTED)
    assert scene.whole() == before
    return was_cut


@pytest.mark.parametrize("story", [keep, put_back, end])
def test_cut_anywhere_it_ends_whole(
    host: PrivateHost,
    tmp_path: Path,
    story: Callable[[Scene, Box, Boundaries, int], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = host.images / f"{story.__name__}.qcow2"
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"])

    def run() -> None:
        # Of one thread, whose steps are counted.
        monkeypatch.setattr(hypervisor, "bounded", lambda question, *_: question())
        with mounted(tmp_path) as box:
            cuts = 0
            boundaries = Boundaries(box, monkeypatch)
            for owner, name in ORDERS:
                _count(boundaries, owner, name, monkeypatch)
            while cuts < MANY:
                scene = Scene(host, box.root, image)
                try:
                    if not story(scene, box, boundaries, cuts + 1):
                        break
                finally:
                    boundaries.arm(0)
                    scene.undefine()
                assert not scene.kept.exists()
                assert not list(scene.custody.glob(f"*{scene.uuid}*"))
                cuts += 1
            boundaries.is_open = False
            print(f"{story.__name__}: cut {cuts} times")
            assert 5 < cuts < MANY

    in_own_mounts(run)


def _count(boundaries: Boundaries, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = getattr(owner, name)

    def counted(*arguments: Any) -> Any:
        boundaries.cross(name)
        return call(*arguments)

    monkeypatch.setattr(owner, name, counted)
