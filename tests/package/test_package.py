"""The Debian package: built, and installed by a real dpkg on hosts with a real libvirtd.

After each step of its life libvirt is asked to start a held guest and one that nobody holds.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

import installing
from installing import HOOKS, bootlock, define, is_refused, listing, starts_all_the_time
from privatehost import CommandFailed, PrivateHost
from shells import completed
from waiting import wait_until

DATABASE = "/var/lib/bootlock/lock.db"
FREE = "8f3e3a0e-44bb-4f43-9d35-8bd1a1e4b7c5"
HELD = "1d0c1a52-7d5c-4c0c-9a57-2f1f0c9b7b11"

live = pytest.mark.live


def dpkg(host: PrivateHost, *args: str | Path, check: bool = True) -> str:
    done = host.run(["dpkg", "--force-unsafe-io", *args], check=check)
    return done.stdout + done.stderr


def state(host: PrivateHost) -> str:
    """dpkg's: version and status."""
    asked = ["dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "bootlock"]
    return host.run(asked, check=False).stdout


def version(package: Path) -> str:
    asked = ["dpkg-deb", "-f", str(package), "Version"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def hold(host: PrivateHost, uuid: str) -> None:
    bootlock(host, "place", uuid, "--reason", "unpaid", "--notice", "call the desk", "--no-wait")


def answer(host: PrivateHost, uuid: str) -> str:
    """What the hook in place says to a start; empty if it allows it, or is not there."""
    xml = f"<domain><name>guest</name><uuid>{uuid}</uuid></domain>"
    asked = [HOOKS[0], "guest", "prepare", "begin", "-"]
    if not host.outside(HOOKS[0]).exists():
        return ""
    done = host.run(asked, input=xml, check=False)
    return done.stderr if done.returncode else ""


def enforces(host: PrivateHost) -> bool:
    return answer(host, FREE) == "" and "call the desk" in answer(host, HELD)


# -- the file -------------------------------------------------------------------------------------


def test_the_same_sources_give_the_same_bytes(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In another directory, at another time, of another user's habits."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "a-longer-name"
    other = {
        "TZ": "Asia/Tokyo",
        "LANG": "C",
        "PYTHONHASHSEED": "7",
        "TMPDIR": str(elsewhere.parent),
    }
    mask = os.umask(0o077)
    try:
        installing.built(elsewhere, "deb", other)
    finally:
        os.umask(mask)
    assert (elsewhere / "dist" / package.name).read_bytes() == package.read_bytes()


def test_each_part_of_the_program_has_a_fixed_version(tree: Path) -> None:
    lines = (tree / "packaging/constraints.txt").read_text("utf-8").splitlines()
    fixed = {line.partition("==")[0].replace("-", "_") for line in lines if "==" in line}
    used = {wheel.name.partition("-")[0] for wheel in tree.glob("build/wheels/*.whl")}
    assert used - {"bootlock"} <= fixed


def test_lintian_has_nothing_to_say(package: Path) -> None:
    lintian = ["lintian", "--allow-root", "--fail-on", "error,warning", str(package)]
    done = subprocess.run(lintian, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_libvirt_sees_nothing_that_dpkg_unpacks(package: Path) -> None:
    """dpkg has names of its own for files on their way, and libvirt runs whatever it finds."""
    listed = ["dpkg-deb", "-c", str(package)]
    lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    files = {line.split()[5] for line in lines if not line.startswith("d")}
    assert "./usr/lib/bootlock/host/decide.sql" in files
    outside = {path for path in files if not path.startswith(("./usr/lib/", "./usr/share/"))}
    assert outside == {"./usr/bin/bootlock", "./usr/bin/bootlockd"}
    assert not any(path.startswith("./usr/share/bootlock/") for path in files)


def test_every_unit_of_ours_is_in_it(tree: Path, package: Path) -> None:
    contents = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, check=True).stdout
    other = {".sysusers", ".tmpfiles", ".preset"}
    units = [path for path in (tree / "systemd").iterdir() if path.suffix not in other]
    assert units
    for unit in units:
        assert f" ./usr/lib/systemd/system/{unit.name}\n".encode() in contents


# -- its life -------------------------------------------------------------------------------------


@live
def test_installed_removed_installed_again_and_purged(host: PrivateHost, package: Path) -> None:
    """libvirtd ran before there was a hook: without a word from the package it would not look."""
    held, uuid = define(host, "held")
    free, _ = define(host, "free")
    assert not is_refused(host, held)
    before = listing(host)
    group = host.run(["cat", "/etc/group"]).stdout

    assert "told libvirtd" in dpkg(host, "-i", package)
    hold(host, uuid)
    wait_until(lambda: is_refused(host, held), "libvirtd has noticed the hook")
    assert not is_refused(host, free)
    bootlock(host, "--connect", "qemu:///system", "doctor")
    assert dpkg(host, "--verify", "bootlock") == ""

    assert "held guests can start" in dpkg(host, "-r", "bootlock")
    assert not is_refused(host, held)
    left = {line.split()[2] for line in listing(host) - before}
    assert DATABASE in left
    assert [path for path in left if path.startswith(("/etc/libvirt", "/usr/lib/bootlock"))] == []

    dpkg(host, "-i", package)
    wait_until(lambda: is_refused(host, held), "the hold outlived the package")
    assert not is_refused(host, free)

    dpkg(host, "-P", "bootlock")
    assert not is_refused(host, held)
    assert _ours(listing(host) - before) == set()
    assert host.run(["cat", "/etc/group"]).stdout == group


def _ours(lines: set[str]) -> set[str]:
    """Without what dpkg and the tools that it calls write down for themselves."""
    theirs = ("/var/lib/dpkg/", "/var/lib/systemd/deb-systemd-helper-", "/usr/share/fish")
    return {line for line in lines if not line.split()[2].startswith(theirs)}


@live
def test_holds_are_refused_throughout_an_upgrade(
    host: PrivateHost, package: Path, next_package: Path
) -> None:
    """And no others, not even by one that changes what the hook reads: meanwhile it waits."""
    dpkg(host, "-i", package)
    hold(host, HELD)
    with starts_all_the_time(host, HELD) as held, starts_all_the_time(host, FREE) as free:
        dpkg(host, "-i", package)
        dpkg(host, "-i", next_package)
    assert held.allowed == 0
    assert all("call the desk" in said for said in held.refused)
    assert len(held.refused) > 10
    assert free.refused == ()
    assert free.allowed > 10
    assert enforces(host)


@live
def test_a_downgrade_that_can_not_read_the_database_changes_nothing(
    host: PrivateHost, package: Path, next_package: Path
) -> None:
    dpkg(host, "-i", next_package)
    hold(host, HELD)
    with starts_all_the_time(host, HELD) as held, starts_all_the_time(host, FREE) as free:
        said = dpkg(host, "-i", package, check=False)
    assert "written by a newer bootlock (m9999_next)" in said
    assert state(host) == f"{version(next_package)} installed"
    assert free.refused == ()
    assert held.allowed == 0
    assert enforces(host)
    # Nor is there a way around.
    dpkg(host, "-r", "bootlock")
    assert "written by a newer bootlock" in dpkg(host, "-i", package, check=False)
    assert not host.outside(HOOKS[0]).exists()


@live
def test_a_downgrade_that_can_read_the_database_is_one_like_an_upgrade(
    host: PrivateHost, package: Path
) -> None:
    dpkg(host, "-i", package)
    hold(host, HELD)
    host.run(["sed", "-i", "s/^Version: .*/Version: 9.9/", "/var/lib/dpkg/status"])
    assert "downgrading" in dpkg(host, "-i", package)
    assert state(host) == f"{version(package)} installed"
    assert enforces(host)


@live
def test_killed_at_any_moment_it_refuses_what_it_refused_and_can_be_repeated(
    host: PrivateHost, package: Path
) -> None:
    began = time.monotonic()
    dpkg(host, "-i", package)
    took = time.monotonic() - began
    hold(host, HELD)
    killing = 'setsid dpkg --force-unsafe-io -i "$1" & sleep "$2"; kill -s KILL -- "-$!"; wait'
    for part in (0.3, 0.6, 0.9):
        killed = ["sh", "-c", killing, "sh", str(package), str(part * took)]
        host.run(killed, check=False)
        # It was there before, so it is all the time.
        assert enforces(host), part
    dpkg(host, "-i", package)
    assert state(host) == f"{version(package)} installed"
    assert dpkg(host, "--verify", "bootlock") == ""
    for part in (0.5, 0.9):
        dpkg(host, "-P", "bootlock")
        host.run(["sh", "-c", killing, "sh", str(package), str(part * took)], check=False)
        assert answer(host, FREE) == "", part
        dpkg(host, "-i", package)
        hold(host, HELD)
        assert enforces(host)


@live
def test_removed_half_way_through_an_upgrade(
    host: PrivateHost, package: Path, next_package: Path
) -> None:
    """dpkg then does not run prerm."""
    dpkg(host, "-i", package)
    hold(host, HELD)
    dpkg(host, "--unpack", next_package)
    assert enforces(host)
    with starts_all_the_time(host, FREE) as free:
        dpkg(host, "-r", "bootlock")
    assert free.refused == ()
    assert not any(host.outside(hook).exists() for hook in HOOKS)
    dpkg(host, "-i", next_package)
    assert enforces(host)


@live
def test_no_hook_that_can_not_decide_and_configured_once_it_can(
    host: PrivateHost, package: Path
) -> None:
    host.run(["mv", "/usr/bin/sqlite3", "/usr/bin/sqlite3.away"])
    host.run(["ln", "-s", "/bin/false", "/usr/bin/sqlite3"])
    with pytest.raises(CommandFailed, match="so it was not put in place"):
        dpkg(host, "-i", package)
    assert state(host).endswith(" half-configured")
    assert not any(host.outside(hook).exists() for hook in HOOKS)
    host.run(["mv", "/usr/bin/sqlite3.away", "/usr/bin/sqlite3"])
    dpkg(host, "--configure", "bootlock")
    hold(host, HELD)
    assert enforces(host)


@live
def test_neither_an_upgrade_nor_its_removal_make_a_lost_database_anew(
    host: PrivateHost, package: Path
) -> None:
    dpkg(host, "-i", package)
    host.run(["sh", "-c", f"rm {DATABASE}*"])
    with pytest.raises(CommandFailed, match="restore a backup"):
        dpkg(host, "-i", package)
    assert "cannot decide" in answer(host, HELD)
    # The way out of everything: libvirt works again.
    dpkg(host, "-r", "bootlock")
    assert not any(host.outside(hook).exists() for hook in HOOKS)


@live
def test_it_takes_over_from_make_install_and_does_not_let_it_take_over(
    host: PrivateHost, tree: Path, package: Path
) -> None:
    host.run(["make", "-s", "-C", tree, "install"])
    hold(host, HELD)
    with starts_all_the_time(host, HELD) as held:
        dpkg(host, "-i", package)
    assert held.allowed == 0
    assert enforces(host)
    assert dpkg(host, "--verify", "bootlock") == ""
    for action in ("install", "uninstall"):
        done = host.run(["make", "-s", "-C", tree, action], check=False)
        assert "package" in done.stderr
        assert enforces(host)


@live
def test_one_with_another_prefix_is_no_neighbour(
    host: PrivateHost, tree: Path, package: Path
) -> None:
    host.run(["make", "-s", "-C", tree, "install", "PREFIX=/usr/local"])
    place = ["/usr/local/bin/bootlock", "place", HELD, "--reason", "unpaid"]
    host.run([*place, "--notice", "call the desk", "--no-wait"])
    with pytest.raises(CommandFailed, match="there is one in /usr/local/lib/bootlock"):
        dpkg(host, "-i", package)
    assert enforces(host)


@live
def test_units_are_enabled_and_what_an_admin_disabled_stays_so(
    host: PrivateHost, package: Path
) -> None:
    """Where no systemd runs, as in an image that is being built."""
    offline = {"SYSTEMD_OFFLINE": "1"}
    dpkg(host, "-i", package)

    def is_enabled() -> str:
        asked = ["systemctl", "is-enabled", "bootlockd.service"]
        return host.run(asked, check=False, env=offline).stdout.strip()

    assert is_enabled() == "enabled"
    host.run(["systemctl", "disable", "bootlockd.service"], env=offline)
    dpkg(host, "-i", package)
    assert is_enabled() == "disabled"


@live
def test_manual_and_completions_are_where_they_are_looked_for(
    host: PrivateHost, package: Path
) -> None:
    dpkg(host, "-i", package)
    for page in ("1/bootlock.1", "8/bootlockd.8", "5/bootlock.toml.5"):
        assert ".Sh NAME" in host.run(["zcat", f"/usr/share/man/man{page}.gz"]).stdout
    for shell in ("bash", "zsh", "fish"):
        assert completed(host, shell, "bootlock pla") == "place"
        assert completed(host, shell, "bootlock place web --not") == "--notice"
