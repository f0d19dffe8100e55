"""What the process watch leaves alone: what is no foreign QEMU, and what the holds leave."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from bootlockd.config import Config, Database, Libvirt, ProcessWatch, WatchAction
from bootlockd.cycle import Cycle, Stop
from bootlockd.fences.process_watch import REPORTING, WATCHED_FOR, WATCHING, ProcessWatchFence
from bootlockd.values import Case, Guest, Power, Wake
from domainxml import domain_xml
from fences.watchscene import NOW, Bench, assert_killed, assert_runs, is_watched_for
from lockdb import database, permits
from lockdb.enforcements import Enforcement, State
from lockdb.values import Kind, OnRunning, Operation
from privatehost import PrivateHost
from rawqemu import QEMU
from waiting import wait_until

pytestmark = pytest.mark.live


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


# -- what is no foreign QEMU ----------------------------------------------------------------------


def test_tools_with_the_disk_and_the_uuid_are_left_alone(bench: Bench) -> None:
    fence = bench.watched()
    disk, uuid = str(bench.disk), bench.instance
    stays = [
        # Named and called like QEMU, with all of its arguments.
        bench.run(
            *("bash", "-c", 'exec -a qemu-system-x86_64 "$@"', "bash"),
            *(sys.executable, "-c", "import time; time.sleep(600)", "-uuid", uuid, "-drive", disk),
        ),
        bench.run("sh", "-c", "read x", "qemu-system-x86_64", "-uuid", uuid, stdin=subprocess.PIPE),
        bench.run("tail", "-f", disk),
        bench.run("qemu-nbd", "-r", "-t", "-k", bench.directory / "nbd", "-f", "raw", disk),
        bench.run("qemu-storage-daemon", "--blockdev", f"file,node-name=d,filename={disk}"),
        bench.run(sys.executable, "-c", f"f = open({disk!r}); import time; time.sleep(600)"),
    ]
    for process in stays[2:]:
        wait_until(partial(_has_open, process, bench.disk), f"{process.args!r} has it open")
    for command in (
        ["qemu-img", "info", "-U", "-f", "raw", disk],
        ["qemu-img", "convert", "-U", "-f", "raw", "-O", "qcow2", disk, f"{disk}.copy"],
        ["cp", disk, f"{disk}.backup"],
        ["dd", f"if={disk}", "of=/dev/null", "status=none"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    # This process is the daemon here; its image lock keeps the disk open.
    with bench.disk.open("rb"):
        assert fence.verify(bench.case()).state is State.ENFORCED
    # Something that is killed for sure comes after them all.
    assert_killed(bench, bench.start(uuid=uuid), "uuid")
    assert [process.poll() for process in stays] == [None] * len(stays)


def test_libvirts_own_is_left_alone_and_a_twin_by_hand_is_not(bench: Bench) -> None:
    bench.place(OnRunning.LEAVE)
    with PrivateHost() as host:
        disk = host.images / "disk.raw"
        disk.write_bytes(bytes(1 << 20))
        bench.disk = disk
        pid_directory = host.outside("/run/libvirt/qemu")
        # Probed again with the watch on, by a libvirtd that knows of no QEMU yet.
        fence = bench.fence(pid_directory=pid_directory)
        fence.apply(bench.case())
        host.run(["sh", "-c", "rm -rf /var/cache/libvirt/qemu/capabilities"])
        host.restart_libvirtd()
        host.virsh("domcapabilities")
        xml = host.images / "domain.xml"
        xml.write_text(domain_xml("-rf $(id).pid", bench.instance, disks=[disk]))
        host.virsh("create", xml)
        assert fence.verify(bench.case()).detail == WATCHING
        assert_killed(bench, bench.start(uuid=bench.instance), "uuid")
        assert fence.verify(bench.case()).state is State.ENFORCED
        assert host.virsh("domstate", bench.instance).stdout.split() == ["running"]
        # Without the lock in that directory, the very same process is nobody's.
        fence.stop()
        foreign = bench.fence()
        assert "by its uuid" in foreign.verify(_guarding(foreign, bench)).detail


def _guarding(fence: ProcessWatchFence, bench: Bench) -> Case:
    """The case, after the fence began to guard it without acting on what it found."""
    assert "left running" in fence.apply(bench.case()).detail
    row = bench.case().holds[0]
    known = Enforcement(row.id, fence.name, bench.instance, State.ENFORCED, WATCHING, NOW, NOW)
    return bench.case(rows={(row.id, fence.name): known})


def test_a_pid_file_alone_makes_nobody_libvirts(bench: Bench) -> None:
    bench.place()
    pid_directory = bench.directory / "run"
    pid_directory.mkdir()
    fence = bench.fence(pid_directory=pid_directory)
    fence.apply(bench.case())
    script = bench.directory / "run-it"
    # Its PID is in it, it is open, and nobody has locked it.
    script.write_text(f'#!/bin/bash\nexec 9<>{pid_directory}/x.pid\necho $$ >&9\nexec "$@"\n')
    script.chmod(0o755)
    (pid_directory / "x.pid").touch()
    process = bench.start(uuid=bench.instance, program=[script, QEMU])
    assert_killed(bench, process, "uuid")


def test_in_the_cycle_a_hold_is_enforced_and_what_comes_is_ended(bench: Bench) -> None:
    with PrivateHost() as host:
        host.virsh("define", _written(host, domain_xml("mine", bench.instance, disks=[bench.disk])))
        watch = ProcessWatch(pid_directory=host.outside("/run/libvirt/qemu"))
        config = Config(
            database=Database(bench.database),
            libvirt=Libvirt((host.uri,)),
            process_watch=watch,
        )
        cycle = Cycle(config, [ProcessWatchFence(watch, bench.database)])
        thread = threading.Thread(target=cycle.run)
        thread.start()
        try:
            bench.place()
            cycle.wake(Wake("placed"))
            wait_until(lambda: bench.rows() == [(State.ENFORCED, WATCHING)], "it is enforced")
            drive = f"file={bench.disk},format=raw,if=virtio"
            assert bench.start("-drive", drive).wait(60) == -9
            assert not bench.qemu.ran
            wait_until(bench.entries, "the kill is in the journal")
            bench.release()
            cycle.wake(Wake("released"))
            wait_until(lambda: bench.rows() == [(State.LIFTED, "")], "it is lifted")
            process = bench.start("-drive", drive)
            wait_until(lambda: bench.qemu.ran, "the guest runs")
            assert process.poll() is None
        finally:
            cycle.inbox.put(Stop())
            thread.join()


def _written(host: PrivateHost, xml: str) -> Path:
    path = host.images / "domain.xml"
    path.write_text(xml)
    return path


# -- what the holds order -------------------------------------------------------------------------


def test_one_that_ran_before_is_left_if_that_is_the_order(bench: Bench) -> None:
    before = bench.start("-drive", f"file={bench.disk},format=raw", uuid=bench.instance)
    assert_runs(bench, before)
    bench.place(OnRunning.LEAVE)
    fence = bench.fence()
    outcome = fence.apply(bench.case())
    assert outcome.state is State.ENFORCED
    assert f"process {before.pid}," in outcome.detail
    hold = bench.case().holds[0]
    row = Enforcement(hold.id, fence.name, bench.instance, State.ENFORCED, outcome.detail, 0, 0)
    known = bench.case(rows={(hold.id, fence.name): row})
    bench.disk.read_bytes()  # has all QEMUs looked at
    assert fence.verify(known) == outcome
    # Another one is not the one that was left.
    bench.qemu.output.unlink()
    assert_killed(bench, bench.start(uuid=bench.instance), "uuid")
    assert before.poll() is None


def test_one_that_ran_before_is_killed_otherwise(bench: Bench) -> None:
    before = bench.start(uuid=bench.instance)
    assert_runs(bench, before)
    bench.place(OnRunning.SHUTDOWN)
    fence = bench.fence()
    assert fence.apply(bench.case()).detail == WATCHING
    assert before.wait(60) == -9
    wait_until(bench.entries, "the kill is in the journal")


def test_one_that_came_while_the_daemon_was_down_is_killed(bench: Bench) -> None:
    first = bench.watched(OnRunning.LEAVE)
    first.stop()
    came = bench.start(uuid=bench.instance)
    assert_runs(bench, came)
    hold = bench.case().holds[0]
    row = Enforcement(hold.id, first.name, bench.instance, State.ENFORCED, WATCHING, 0, 0)
    case = bench.case(rows={(hold.id, first.name): row})
    second = bench.fence()
    second.follow([bench.case(disks=False)])
    wait_until(lambda: bench.wakes, "it is found")
    assert bench.wakes[-1].instance == bench.instance
    assert second.verify(case).state is State.FAILED
    assert second.apply(case).state is State.ENFORCED
    assert came.wait(60) == -9


def test_report_kills_nothing_and_says_it_once(bench: Bench) -> None:
    bench.place()
    fence = bench.fence(WatchAction.REPORT)
    assert fence.apply(bench.case()).detail == REPORTING
    process = bench.start("-drive", f"file={bench.disk},format=raw", uuid=bench.instance)
    wait_until(lambda: bench.qemu.ran, "the guest runs")
    outcome = fence.apply(bench.case())
    assert outcome.state is State.FAILED
    assert f"process {process.pid}," in outcome.detail
    fence.stop()
    assert process.poll() is None
    (entry,) = bench.entries()
    assert entry["action"] == "reported"


def test_off_watches_nothing(bench: Bench) -> None:
    bench.place()
    fence = bench.fence(WatchAction.OFF)
    assert not fence.wanted(bench.case())
    assert not any(fence.asks(hold) for hold in bench.case().holds)
    fence.follow([bench.case()])
    assert fence.lift(bench.case()).state is State.LIFTED
    assert_runs(bench, bench.start(uuid=bench.instance))


def test_a_state_lock_and_a_permit_stop_nothing(bench: Bench) -> None:
    bench.place(kind=Kind.STATE_LOCK)
    fence = bench.fence()
    assert not fence.wanted(bench.case())
    fence.follow([bench.case()])
    free = bench.start(uuid=bench.instance)
    assert_runs(bench, free)
    free.kill()
    free.wait()
    bench.place()
    assert fence.apply(bench.case()).state is State.ENFORCED
    with database.open_db(bench.database) as lock_db:
        until = NOW + 60
        permits.grant(
            lock_db, bench.instance, Operation.START, until=until, reason="r", by="t", now=NOW
        )
    assert not fence.wanted(bench.case())
    assert fence.lift(bench.case()).state is State.LIFTED
    bench.qemu.output.unlink()
    assert_runs(bench, bench.start(uuid=bench.instance))


def test_its_disks_are_watched_for_before_libvirt_has_told_of_it(bench: Bench) -> None:
    bench.place()
    fence = bench.fence()
    assert fence.prepare(bench.case(disks=False)) is None
    outcome = fence.prepare(bench.case())
    assert outcome
    assert outcome.state is State.ENFORCED
    drive = f"file={bench.disk},format=raw,file.locking=off"
    assert_killed(bench, bench.start("-drive", drive), f"disk {bench.disk}")


def test_an_instance_that_is_not_here_is_watched_for(bench: Bench) -> None:
    bench.place()
    fence = bench.fence()
    absent = bench.case(disks=False)
    assert not fence.reaches(absent)
    fence.follow([absent])
    wait_until(partial(is_watched_for, fence, bench), "it is watched for")
    process = bench.start(uuid=bench.instance)
    assert_killed(bench, process, "uuid")
    outcome = fence.apply(absent)
    assert (outcome.state, outcome.detail) == (State.NOT_HERE, WATCHED_FOR)
    guest = Guest("test:///", "g", bench.instance, Power.OFF, None, True, False)
    assert fence.reaches(bench.case(disks=False, guest=guest))
    assert fence.reaches(bench.case())
    fence.apply(bench.case())
    assert not fence.reaches(bench.case())


def _has_open(process: subprocess.Popen[bytes], file: Path) -> bool:
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        # It may be closed meanwhile.
        with suppress(FileNotFoundError):
            if descriptor.readlink() == file:
                return True
    return False
