"""The harness itself: private hosts are apart from each other, and leave nothing on the machine."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import libvirt
import pytest

import privatehost
from domainxml import container_xml, domain_xml
from live.guests import somebody_new
from privatehost import CommandFailed, PrivateHost, PrivateHostError
from waiting import wait_until

pytestmark = pytest.mark.live

OWN_NAMESPACES = len(["mnt", "uts", "ipc", "net", "pid", "cgroup"])
OUR_PATHS = ("/etc/bootlock", "/run/bootlock", "/usr/share/bootlock", "/var/lib/bootlock")
LIBVIRTS_PATHS = ("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt")


def test_nothing_is_left_of_a_stopped_host() -> None:
    machine = fingerprint()
    with PrivateHost(lxc=True) as host:
        host.install_bootlock()
        guest, container = somebody_new(), somebody_new()
        with closing(host.connect()) as connection:
            connection.createXML(domain_xml(guest.name, guest.uuid))
        with closing(host.connect(host.lxc_uri)) as connection:
            connection.createXML(container_xml(container.name, container.uuid))
        host.popen(["sleep", "infinity"])

        one = next(iter(host.processes()))
        namespaces = namespaces_of(one)
        assert len(namespaces) == OWN_NAMESPACES
        assert len(processes_in(namespaces)) > len(
            ["holder", "virtlogd", "libvirtd", "QEMU", "LXC"]
        )
        cgroups = cgroups_of(one)
        assert cgroups
        assert fingerprint() == machine

    assert not processes_in(namespaces)
    assert not [cgroup for cgroup in cgroups if cgroup.exists()]
    assert not host.root.exists()
    assert str(host.root) not in Path("/proc/self/mountinfo").read_text()
    assert fingerprint() == machine


def test_nothing_is_left_of_a_host_that_failed_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    broken = tmp_path / "libvirtd"
    broken.write_text(
        f"#!/bin/sh\nreadlink /proc/self/ns/* >{seen}\necho no such luck >&2\nexit 9\n"
    )
    broken.chmod(0o755)
    monkeypatch.setattr(privatehost, "_PATH", f"{tmp_path}:{privatehost._PATH}")
    host = PrivateHost(lxc=True)
    with pytest.raises(CommandFailed, match="exit status 9") as failed:
        host.start()
    assert "no such luck" in str(failed.value)
    namespaces = set(seen.read_text().split()) - namespaces_of_this_process()
    assert len(namespaces) == OWN_NAMESPACES
    assert not processes_in(namespaces)
    assert not host.root.exists()
    assert str(host.root) not in Path("/proc/self/mountinfo").read_text()


def test_all_processes_of_a_host_end_when_its_owner_is_killed() -> None:
    script = (
        "import sys; from domainxml import domain_xml; from privatehost import PrivateHost\n"
        "host = PrivateHost(); host.start(); host.connect().createXML(domain_xml('guest'))\n"
        "print(host.root, *host.processes(), flush=True); sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(privatehost.__file__).parent)},
    )
    assert owner.stdout
    root, *pids = owner.stdout.readline().split()
    try:
        namespaces = namespaces_of(pids[0])
        assert len(processes_in(namespaces)) >= len(["holder", "virtlogd", "libvirtd", "QEMU"])
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
        wait_until(lambda: not processes_in(namespaces), "everything inside has ended")
        assert root not in Path("/proc/self/mountinfo").read_text()
    finally:
        owner.kill()
        shutil.rmtree(root)  # alone the files stay: nobody is left to remove them


def test_what_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(privatehost._PROGRAMS, "no-such-program", "its-package")
    host = PrivateHost()
    with pytest.raises(PrivateHostError, match="no-such-program; apt-get install its-package"):
        host.start()
    assert not host.root.exists()


def test_a_directory_in_use_is_neither_taken_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    host = PrivateHost(tmp_path)
    with pytest.raises(PrivateHostError, match="not empty"):
        host.start()
    host.stop()
    assert (tmp_path / "something").exists()


def test_hosts_side_by_side_share_no_guests_and_no_hooks(tmp_path: Path) -> None:
    no = tmp_path / "no"
    no.write_text("#!/bin/sh\necho not here >&2\nexit 1\n")
    guest = somebody_new()
    xml = domain_xml(guest.name, guest.uuid)
    with PrivateHost(name="one") as one, PrivateHost(name="two") as two:
        one.install_hook(no)
        with closing(one.connect()) as first, closing(two.connect()) as second:
            with pytest.raises(libvirt.libvirtError, match="not here"):
                first.createXML(xml)
            second.createXML(xml)
            assert first.listAllDomains() == []
            assert [domain.name() for domain in second.listAllDomains()] == [guest.name]
            assert (first.getHostname(), second.getHostname()) == ("one.test", "two.test")


def test_command_that_takes_too_long_is_ended(host: PrivateHost) -> None:
    with pytest.raises(CommandFailed, match="not done after"):
        host.run(["sleep", "1234567"], timeout=0.2)
    wait_until(
        lambda: "sleep 1234567" not in host.processes().values(), "the command inside has ended"
    )


@pytest.mark.parametrize("path", OUR_PATHS)
def test_fixed_paths_of_bootlock_are_private(host: PrivateHost, path: str) -> None:
    mark = f"{path}/{somebody_new().name}"
    host.run(["mkdir", "-p", path])
    host.run(["touch", mark])
    assert host.outside(mark).exists()
    assert not Path(mark).exists()


def test_reboot_keeps_the_disk_and_forgets_what_ran() -> None:
    guest, kept = somebody_new(), somebody_new()
    with PrivateHost() as host:
        with closing(host.connect()) as connection:
            connection.createXML(domain_xml(guest.name, guest.uuid))
            connection.defineXML(domain_xml(kept.name, kept.uuid)).create()
        host.run(["touch", "/run/bootlock-was-here"])
        host.reboot()
        with closing(host.connect()) as connection:
            (domain,) = connection.listAllDomains()
            assert (domain.name(), domain.isActive()) == (kept.name, 0)
        assert not host.outside("/run/bootlock-was-here").exists()
        assert not [command for command in host.processes().values() if "qemu" in command]


def fingerprint() -> dict[str, object]:
    """What a test run must not change on the machine."""
    kept = [*OUR_PATHS, *LIBVIRTS_PATHS, "/etc", "/usr/share", "/var/lib", "/var/log", "/var/cache"]
    listings: dict[str, object] = {
        path: sorted(os.listdir(path)) if os.path.isdir(path) else os.path.exists(path)
        for path in kept
    }
    return listings | {"mounts": Path("/proc/self/mountinfo").read_text()}


def namespaces_of(pid: int | str) -> set[str]:
    """Those of its namespaces that this process isn't in."""
    links = Path(f"/proc/{pid}/ns").iterdir()
    return {os.readlink(link) for link in links} - namespaces_of_this_process()


def namespaces_of_this_process() -> set[str]:
    return {os.readlink(link) for link in Path("/proc/self/ns").iterdir()}


def processes_in(namespaces: set[str]) -> list[str]:
    """The processes on this machine that are in one of these namespaces."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) in namespaces for link in (process / "ns").iterdir()):
                found.append(process.name)
        except OSError:  # it has ended; or it is one that not even root may look into
            continue
    return found


def cgroups_of(pid: int) -> list[Path]:
    """The cgroup directories of a process that were made for its host."""
    mounts = [
        Path(line.split()[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup" in line
    ]
    groups = {
        line.split(":", 2)[2].strip("/")
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    }
    made = {group.split("/")[0] for group in groups if group.startswith("bootlock-")}
    return [mount / group for mount in mounts for group in made if (mount / group).exists()]
