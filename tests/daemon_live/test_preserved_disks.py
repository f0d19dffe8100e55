"""What root does by accident to a preserved disk is refused; afterwards all is as it was before."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bootlockd import running
from daemon_live.runner import Daemon, database, power, remove_guests
from daemonhost import NOTE_PID, PROGRAM
from domainxml import domain_xml, file_disk
from fences.preservescene import is_immutable, make_immutable
from live.guests import Identity, somebody_new
from lockdb import journal, preserved
from lockdb.database import open_db
from lockdb.preserved import Role, Stage
from privatehost import PrivateHost
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.live

#: As its unit leaves them to it, and no more.
CAPABILITIES = "-all,+linux_immutable,+dac_override,+fowner,+sys_admin"
PID_FILE = "/run/preserve.pid"
#: A user whom nothing here is run by.
STRANGER = 54321


class Preserver:
    """``bootlockd --preserve`` inside a private host, with the powers that its unit leaves it."""

    def __init__(self, host: PrivateHost) -> None:
        self.host = host
        self.log_file = host.root / "preserve.log"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Preserver:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end("TERM")

    def start(self) -> None:
        confined = [
            "setpriv",
            f"--bounding-set={CAPABILITIES}",
            "--inh-caps=-all",
            "--no-new-privs",
        ]
        note = NOTE_PID.replace("/run/bootlockd.pid", PID_FILE)
        with self.log_file.open("a") as log:
            self._process = self.host.popen(
                ["sh", "-c", note, "sh", *confined, PROGRAM, "--preserve"],
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
        lock = running.lock_of(database(self.host))
        wait_until(lambda: running.is_running(lock), f"it runs: {self.log_file.read_text()}")

    def end(self, how: str) -> None:
        if self._process:
            pid = self.host.outside(PID_FILE).read_text().strip()
            self.host.run(["kill", "-s", how, pid], check=False)
            self._process.wait(PATIENCE)
            self._process = None


class Server:
    """An instance as Nova keeps it: a directory by its UUID, an overlay on a base in it."""

    def __init__(self, host: PrivateHost, who: Identity, base: Path) -> None:
        self.host, self.name, self.uuid, self.base = host, who.name, who.uuid, base
        self.directory = host.images / "instances" / self.uuid
        self.disk = self.directory / "disk"
        self.directory.mkdir(parents=True)
        host.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, self.disk, "8M"]
        )
        host.run(["qemu-io", "-c", "write -P 7 0 1M", self.disk])
        self.define()

    def define(self) -> None:
        document = domain_xml(self.name, self.uuid, disks=[file_disk(self.disk, image="qcow2")])
        with closing(self.host.connect()) as connection:
            connection.defineXML(document)

    def sha256(self) -> str:
        return hashlib.sha256(self.disk.read_bytes()).hexdigest()

    def place(self, *options: str) -> str:
        """Place a hold that preserves, and wait for it; its id."""
        said = self.host.bootlock(
            "place", self.uuid, "--reason", "a court order", "--preserve", "--json", *options
        )
        hold = json.loads(said.stdout)
        assert {row["state"] for row in hold["enforcement"]} <= {"enforced", "not_here"}
        assert is_immutable(self.disk)
        return str(hold["id"])

    def wait_digests(self) -> None:
        wait_until(lambda: all(row.sha256 for row in self.contents()), "its digests are taken")

    def contents(self) -> list[preserved.Preserved]:
        with open_db(database(self.host), read_only=True) as lock_db:
            return [row for row in preserved.of_instance(lock_db, self.uuid) if row.has_content]

    def release(self, *options: str) -> str:
        """What it said to the admin."""
        arguments = ["release", "--instance", self.uuid, "--all", "--reason", "done", *options]
        return self.host.bootlock(*arguments).stderr


@pytest.fixture(scope="module")
def processes(host: PrivateHost) -> Iterator[Preserver]:
    with Daemon(host), Preserver(host) as preserver:
        yield preserver
    # What a failed test left must not keep the host from being removed.
    subprocess.run(["chattr", "-R", "-f", "-i", host.images], check=False)


@pytest.fixture
def base(host: PrivateHost) -> Path:
    base = host.images / "base.img"
    if not base.exists():
        base.write_bytes(bytes(1 << 20))
    return base


@pytest.fixture
def server(host: PrivateHost, processes: Preserver, base: Path) -> Iterator[Server]:
    server = Server(host, somebody_new(), base)
    yield server
    host.bootlock(
        "release", "--instance", server.uuid, "--all", "--reason", "end", "--discard", check=False
    )
    remove_guests(host)
    subprocess.run(["rm", "-rf", server.directory], check=True)
    assert not list(host.images.glob("**/.bootlock/*"))


def refused(host: PrivateHost, *command: str | Path) -> None:
    done = host.run(command, check=False)
    assert done.returncode != 0, done.stdout
    words = ("Operation not permitted", "Read-only", "Permission denied")
    assert any(word in done.stderr + done.stdout for word in words), done.stderr


def test_nothing_that_root_does_by_accident_changes_a_preserved_disk(
    host: PrivateHost, server: Server
) -> None:
    before = server.sha256()
    inode = server.disk.stat().st_ino
    server.place()
    server.wait_digests()
    pool = server.directory.parent
    host.virsh("pool-create-as", "own", "dir", "--target", server.directory)
    disk, directory = server.disk, server.directory
    try:
        refused(host, "virsh", "vol-delete", "--pool", "own", "disk")
        refused(host, "virsh", "vol-wipe", "--pool", "own", "disk")
        refused(host, "virsh", "vol-resize", "--pool", "own", "disk", "16M")
        refused(host, "rm", "-rf", directory)
        refused(host, "mv", directory, pool / f"{server.uuid}_del")
        refused(host, "mv", disk, pool / "taken")
        refused(host, "qemu-io", "-c", "write -P 9 0 4096", disk)
        refused(host, "qemu-img", "resize", disk, "16M")
        refused(host, "qemu-img", "create", "-f", "raw", disk, "1M")
        refused(host, "dd", "if=/dev/zero", f"of={disk}", "count=1", "conv=notrunc")
        refused(host, "truncate", "-s", "0", disk)
        refused(host, "chmod", "777", disk)
        refused(host, "ln", disk, pool / "linked")
        refused(host, "sh", "-c", f"echo x >'{directory}/new'")
        # This one goes through for the domain; virsh says of the storage that it did not.
        said = host.virsh("undefine", server.uuid, "--remove-all-storage", check=False)
        assert "Failed to remove storage volume" in said.stdout + said.stderr
    finally:
        host.virsh("pool-destroy", "own")
    assert server.disk.stat().st_ino == inode
    assert server.sha256() == before
    verified = host.bootlock("verify", server.uuid, "--json")
    verdicts = {Path(one["path"]).name: one for one in json.loads(verified.stdout)}
    assert verdicts["disk"]["sha256"] == verdicts["disk"]["recorded_sha256"] == before
    assert {one["verdict"] for one in verdicts.values()} == {"same"}
    server.define()
    server.release()
    assert sorted(directory.iterdir()) == [disk]
    assert not is_immutable(disk)
    assert not is_immutable(directory)
    assert not (pool / ".bootlock").exists()
    host.virsh("start", server.uuid)
    assert power(host, server.uuid) == "running"


def put_back(server: Server) -> list[list[str]]:
    """Which names the journal says were given back."""
    with open_db(database(server.host), read_only=True) as lock_db, lock_db.read() as db:
        said = [*journal.entries(db, instance=server.uuid, event="preserved_again")]
    entries = [json.loads(entry) for entry in said]
    return [entry["paths"] for entry in entries if entry["found"] == ["it was removed"]]


def test_a_name_that_is_lost_past_the_flag_is_back_within_a_second(
    host: PrivateHost, server: Server
) -> None:
    """The base has no flag; and root can take off the one of the disk."""
    server.place()
    server.wait_digests()
    lost: list[list[str]] = []
    for path in (server.base, server.disk):
        inode = path.stat().st_ino
        seconds = []
        for _ in range(4):
            host.run(["chattr", "-R", "-i", server.directory])
            began = time.monotonic()
            path.unlink()
            wait_until(path.exists, "it is put back")
            seconds.append(time.monotonic() - began)
            lost.append([str(path)])
            assert path.stat().st_ino == inode
            wait_until(lambda: is_immutable(server.disk), "it is immutable again")
            wait_until(lambda: put_back(server) == lost, "it is journalled")
        print(f"{path.name} put back after {sorted(round(1000 * one) for one in seconds)} ms")
        # Not by who looks now and then, which is once a minute. A busy machine may keep it waiting.
        assert min(seconds) < 1
    host.bootlock("verify", server.uuid)


def test_an_rm_of_the_directory_of_an_overlay_and_what_it_is_on_loses_nothing(
    host: PrivateHost, server: Server
) -> None:
    """As external snapshots leave them, side by side in a directory of any name."""
    directory = host.images / "web"
    directory.mkdir()
    lower, top = directory / "disk.qcow2", directory / "disk.snapshot"
    create: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2"]
    host.run([*create, lower, "8M"])
    host.run([*create, "-F", "qcow2", "-b", lower, top])
    host.run(["qemu-io", "-c", "write -P 3 0 1M", lower])
    with closing(host.connect()) as connection:
        connection.defineXML(
            domain_xml(server.name, server.uuid, disks=[file_disk(top, image="qcow2")])
        )
    before = {path: path.read_bytes() for path in (lower, top)}
    placed = host.bootlock("place", server.uuid, "--reason", "x", "--preserve", check=False)
    assert placed.returncode == 0, placed
    server.wait_digests()
    refused(host, "rm", "-rf", directory)
    wait_until(lower.exists, "it is put back")
    wait_until(lambda: put_back(server) == [[str(lower)]], "it is journalled")
    assert {path: path.read_bytes() for path in before} == before
    host.bootlock("verify", server.uuid)
    server.release()
    assert sorted(directory.iterdir()) == [lower, top]
    host.run(["rm", "-rf", directory])


def test_what_was_written_past_the_flag_differs(host: PrivateHost, server: Server) -> None:
    server.place()
    server.wait_digests()
    host.run(["chattr", "-i", server.disk])
    with server.disk.open("r+b") as disk:
        disk.write(b"changed")
    done = host.bootlock("verify", server.uuid, check=False)
    assert done.returncode == 1
    assert "DIFFERS" in done.stdout


@pytest.fixture
def of_another_user(host: PrivateHost) -> Iterator[None]:
    """QEMU's user is not root, as on real hosts: libvirt gives it what it is to open."""
    conf = host.outside("/etc/libvirt/qemu.conf")
    before = conf.read_text()
    roots = 'user = "root"\ngroup = "root"\n'
    assert roots in before
    conf.write_text(before.replace(roots, f'user = "+{STRANGER}"\ngroup = "+{STRANGER}"\n'))
    host.restart_libvirtd()
    yield
    conf.write_text(before)
    host.restart_libvirtd()


@pytest.mark.usefixtures("of_another_user")
def test_others_start_from_the_base_of_a_preserved_instance(
    host: PrivateHost, server: Server, base: Path
) -> None:
    os.chown(base, 0, 0)
    base.chmod(0o600)
    server.place()
    other = Server(host, somebody_new(), base)
    make_immutable(base)
    try:
        refusal = host.virsh("start", other.uuid, check=False)
        assert "Permission denied" in refusal.stderr, "it is what would break their starts"
    finally:
        make_immutable(base, wanted=False)
    host.virsh("start", other.uuid)
    assert power(host, other.uuid) == "running"
    assert base.stat().st_uid == STRANGER
    assert not is_immutable(base)
    roles = {row.path: row.role for row in server.contents()}
    assert roles[str(base)] is Role.BACKING
    server.wait_digests()
    host.virsh("destroy", other.uuid)
    server.release()
    assert base.stat().st_nlink == 1


def test_one_that_runs_is_stopped_then_preserved(host: PrivateHost, server: Server) -> None:
    host.virsh("start", server.uuid)
    server.place("--on-running", "destroy")
    assert power(host, server.uuid) == "off"
    shown = host.bootlock("show", server.uuid).stdout
    assert f"preserved disk {server.disk}: kept" in shown
    assert "preserve: 1 disk, 1 backing file by a link, 1 directory" in shown


def test_one_that_is_left_running_is_preserved_when_it_is_off(
    host: PrivateHost, server: Server
) -> None:
    host.virsh("start", server.uuid)
    host.bootlock("place", server.uuid, "--reason", "x", "--preserve")
    assert not is_immutable(server.disk)
    host.virsh("destroy", server.uuid)
    wait_until(lambda: is_immutable(server.disk), "it is preserved")
    server.wait_digests()


def test_a_permit_does_not_lift_it(host: PrivateHost, server: Server) -> None:
    server.place()
    permit = ["permit", server.uuid, "--op", "start", "--for", "1h", "--reason", "x"]
    done = host.bootlock(*permit, check=False)
    assert done.returncode == 4
    assert "are preserved by hold" in done.stderr
    server.release()
    host.bootlock("place", server.uuid, "--reason", "without")
    host.bootlock(*permit)


def test_a_deleted_instance_is_left_to_whoever_released_it(
    host: PrivateHost, server: Server
) -> None:
    before = server.sha256()
    server.place()
    host.virsh("undefine", server.uuid)
    said = server.release()
    (link,) = [row.link for row in server.contents() if row.role is Role.DISK]
    assert "it was deleted meanwhile" in said
    assert link in said
    host.run(["rm", "-rf", server.directory])
    assert hashlib.sha256(Path(link).read_bytes()).hexdigest() == before
    assert {row.stage for row in server.contents()} == {Stage.LEFT}
    for row in server.contents():
        Path(row.link).unlink()


def test_with_discard_nothing_is_left(host: PrivateHost, server: Server) -> None:
    server.place()
    host.virsh("undefine", server.uuid)
    assert "deleted" not in server.release("--discard")
    assert not (server.directory.parent / ".bootlock").exists()


def test_what_is_not_on_this_host_is_said_to_be_not_preserved(
    host: PrivateHost, server: Server
) -> None:
    rbd = (
        "<disk type='network' device='disk'><source protocol='rbd' name='vms/x'>"
        "<host name='ceph'/></source><target dev='vdb' bus='virtio'/></disk>"
    )
    own = file_disk(server.disk, image="qcow2")
    with closing(host.connect()) as connection:
        connection.defineXML(domain_xml(server.name, server.uuid, disks=[own, rbd]))
    placed = host.bootlock("place", server.uuid, "--reason", "x", "--preserve", check=False)
    assert placed.returncode == 1
    assert "preserve: FAILED: NOT PRESERVED: 'net:rbd:vms/x' is not on this host" in placed.stdout
    assert is_immutable(server.disk), "what can be, is"
    assert host.bootlock("status", check=False).returncode == 1


def test_released_while_nobody_runs_it_is_undone_at_the_next_start(
    host: PrivateHost, processes: Preserver, server: Server
) -> None:
    server.place()
    processes.end("KILL")
    try:
        refused(host, "rm", "-rf", server.directory)
        findings = host.bootlock("status", check=False).stdout
        assert "systemctl enable --now bootlock-preserve" in findings
        arguments = ["release", "--instance", server.uuid, "--all", "--reason", "done"]
        done = host.bootlock(*arguments, check=False)
        assert done.returncode == 6
        assert "bootlock-preserve.service does not run" in done.stderr
        assert is_immutable(server.disk)
        placed = host.bootlock("place", server.uuid, "--reason", "x", "--preserve", check=False)
        assert placed.returncode == 6
        host.bootlock(*arguments, check=False)
    finally:
        processes.start()
    wait_until(lambda: not is_immutable(server.disk), "it is undone")
    wait_until(lambda: not (server.directory.parent / ".bootlock").exists(), "its link is gone")
