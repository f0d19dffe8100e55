"""QEMUs by hand with a held UUID or a held disk are killed before their guest runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import uuid as uuids
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fences.watchscene import Bench, assert_killed, assert_runs, is_alive
from privatehost import PrivateHost
from rawqemu import QEMU, RawQemu
from waiting import wait_until

pytestmark = pytest.mark.live

LOADER = "/lib64/ld-linux-x86-64.so.2"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


# -- by UUID --------------------------------------------------------------------------------------


def test_a_held_uuid_is_killed_before_its_guest_runs(bench: Bench) -> None:
    bench.watched()
    process = bench.start(uuid=bench.instance)
    assert_killed(bench, process, "uuid")
    (entry,) = bench.entries()
    assert entry["exe"] == str(QEMU)
    assert entry["uid"] == os.getuid()


def test_another_uuid_runs(bench: Bench) -> None:
    bench.watched()
    assert_runs(bench, bench.start(uuid=str(uuids.uuid4())))


@pytest.mark.parametrize("form", ["upper", "double-dash", "last-of-two", "smbios"])
def test_other_ways_to_give_the_uuid(bench: Bench, form: str) -> None:
    bench.watched()
    given = {
        "upper": ["-uuid", bench.instance.upper()],
        "double-dash": ["--uuid", bench.instance],
        "last-of-two": ["-uuid", str(uuids.uuid4()), "-uuid", bench.instance],
        "smbios": ["-smbios", f"type=1,uuid={bench.instance}"],
    }[form]
    assert_killed(bench, bench.start(*given), "uuid")


def test_a_renamed_copy_is_killed(bench: Bench) -> None:
    bench.watched()
    copy = bench.directory / "backup-tool"
    shutil.copy(QEMU, copy)
    assert_killed(bench, bench.start(uuid=bench.instance, program=[copy]), "uuid")


def test_a_program_run_through_the_dynamic_linker_is_killed(bench: Bench) -> None:
    bench.watched()
    process = bench.start(uuid=bench.instance, program=[LOADER, QEMU])
    assert_killed(bench, process, "uuid")


def test_a_script_that_becomes_qemu_is_killed(bench: Bench) -> None:
    bench.watched()
    script = bench.directory / "run"
    script.write_text('#!/bin/sh\nexec "$@"\n')
    script.chmod(0o755)
    process = bench.start(uuid=bench.instance, program=[script, QEMU])
    assert_killed(bench, process, "uuid")


def test_libvirts_embedded_driver_is_killed_before_its_guest_runs(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    # In a private host: the embedded driver wants a virtlogd.
    with PrivateHost() as host:
        qemu = RawQemu(host.images)
        domain = host.images / "domain.xml"
        root = host.root / "embedded"
        (root / "etc").mkdir(parents=True)
        shutil.copy(host.outside("/etc/libvirt/qemu.conf"), root / "etc")
        embed: list[str | Path] = ["virt-qemu-run", "-r", root, domain]
        # One that nobody holds tells that it runs: the same guest, and what it says is heard.
        domain.write_text(qemu.domain_xml("free", str(uuids.uuid4())))
        free = host.popen(embed)
        wait_until(lambda: qemu.ran, "the guest of another one runs")
        host.run(["pkill", "-x", "virt-qemu-run"])
        free.wait(120)
        qemu.output.unlink()

        bench.place()
        bench.fence(pid_directory=host.outside("/run/libvirt/qemu")).apply(bench.case())
        domain.write_text(qemu.domain_xml("held", bench.instance))
        embedded = host.popen(embed)
        wait_until(bench.entries, "the kill is in the journal")
        # It fails as its QEMU is gone.
        assert embedded.wait(120) != 0
        assert not qemu.ran
        assert not [at for at in host.processes().values() if bench.instance in at]
    (said,) = [record for record in caplog.messages if "matched=uuid killed" in record]
    print(f"qemu:///embed: {said.partition('killed ')[2]} from its exec to its end")
    (entry,) = bench.entries()
    assert entry["matched"] == "uuid"
    assert entry["instance"] == bench.instance
    assert entry["exe"] == str(QEMU)


# -- by disk --------------------------------------------------------------------------------------


def _symlink(bench: Bench) -> Path:
    link = bench.directory / "link"
    link.symlink_to(bench.disk)
    return link


def _hard_link(bench: Bench) -> Path:
    link = bench.directory / "hard"
    link.hardlink_to(bench.disk)
    return link


def _moved(bench: Bench) -> Path:
    return bench.disk.rename(bench.directory / "elsewhere")


@pytest.mark.parametrize("name", [lambda bench: bench.disk, _symlink, _hard_link, _moved])
def test_a_held_disk_is_killed(bench: Bench, name: Callable[[Bench], Path]) -> None:
    bench.watched()
    process = bench.start("-drive", f"file={name(bench)},format=raw,if=virtio")
    assert_killed(bench, process, f"disk {bench.directory / 'disk.raw'}")


def test_an_overlay_of_a_held_disk_is_killed(bench: Bench) -> None:
    bench.watched()
    overlay = bench.directory / "overlay"
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(bench.disk)]
    subprocess.run([*make, str(overlay)], check=True)
    process = bench.start("-drive", f"file={overlay},format=qcow2,if=virtio")
    assert_killed(bench, process, f"disk {bench.disk}")


def test_a_renamed_copy_with_a_held_disk_that_ignores_locks_is_killed(bench: Bench) -> None:
    bench.watched()
    copy = bench.directory / "cp"
    shutil.copy(QEMU, copy)
    drive = f"file={bench.disk},format=raw,if=virtio,file.locking=off,readonly=on"
    assert_killed(bench, bench.start("-drive", drive, program=[copy]), f"disk {bench.disk}")


def test_a_disk_opened_before_exec_is_killed(bench: Bench) -> None:
    bench.watched()
    script = bench.directory / "run"
    script.write_text(f'#!/bin/bash\nexec 9<>{bench.disk}\nexec "$@"\n')
    script.chmod(0o755)
    drive = ["-add-fd", "fd=9,set=1", "-drive", "file=/dev/fdset/1,format=raw,if=virtio"]
    assert_killed(bench, bench.start(*drive, program=[script, QEMU]), f"disk {bench.disk}")


def test_a_qemu_that_goes_into_the_background_is_killed(bench: Bench) -> None:
    bench.watched()
    pid_file = bench.directory / "pid"
    drive = f"file={bench.disk},format=raw,if=virtio"
    bench.start("-daemonize", "-pidfile", pid_file, "-drive", drive).wait(60)
    wait_until(bench.entries, "the kill is in the journal")
    (entry,) = bench.entries()
    wait_until(lambda: not is_alive(int(str(entry["pid"]))), "it is gone")
    assert not bench.qemu.ran


def test_a_disk_attached_later_is_killed(bench: Bench) -> None:
    bench.watched()
    monitor = bench.directory / "monitor"
    process = bench.start("-monitor", f"unix:{monitor},server=on,wait=off")
    assert_runs(bench, process)
    add = f"drive_add 0 if=none,id=d,format=raw,file={bench.disk}\n"
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(monitor))
        link.sendall(add.encode())
        assert process.wait(60) == -9


def test_another_disk_runs(bench: Bench) -> None:
    bench.watched()
    other = bench.directory / "other"
    other.write_bytes(bytes(1 << 20))
    assert_runs(bench, bench.start("-drive", f"file={other},format=raw,if=virtio"))
