"""The RPM package, installed by a real rpm on hosts with a real libvirtd. They are Debian's.

What only RHEL has is not there: SELinux's tools are stand-ins that note how they are called.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from installing import HOOKS, SOURCES, bootlock, define, is_refused, starts_all_the_time
from privatehost import CommandFailed, PrivateHost
from waiting import wait_until

DATABASE = "/var/lib/bootlock/lock.db"
FREE = "8f3e3a0e-44bb-4f43-9d35-8bd1a1e4b7c5"
HELD = "1d0c1a52-7d5c-4c0c-9a57-2f1f0c9b7b11"

live = pytest.mark.live


@pytest.fixture(scope="module")
def built(tree: Path) -> Path:
    """The package."""
    # The time of the build of `tree`, see installing.built: what was built is taken as it is.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1790000000"}
    make = ["make", "-s", "-C", str(tree), "rpm"]
    subprocess.run(make, check=True, capture_output=True, env=environment)
    (built,) = tree.glob("dist/bootlock-*.rpm")
    return built


@pytest.fixture
def ask(built: Path, tmp_path: Path) -> Callable[..., str]:
    """rpm about the package."""

    def ask(*query: str) -> str:
        asked = ["rpm", "--dbpath", str(tmp_path), "-qp", *query, str(built)]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout

    return ask


def rpm(host: PrivateHost, *args: str | Path) -> str:
    """Raises CommandFailed."""
    # Dependencies have other names here. Debian's rpm has its database in the home directory.
    done = host.run(["rpm", "--force-debian", "--nodeps", *args], env=home(host))
    return done.stdout + done.stderr


def home(host: PrivateHost) -> dict[str, str]:
    return {"HOME": str(host.images)}


def hold(host: PrivateHost, uuid: str) -> None:
    bootlock(host, "place", uuid, "--reason", "unpaid", "--notice", "call the desk", "--no-wait")


# -- the file -------------------------------------------------------------------------------------


def test_it_has_the_files_of_the_debian_package(ask: Callable[..., str], package: Path) -> None:
    listed = ["dpkg-deb", "-c", str(package)]
    lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    fields = [line.split()[:6] for line in lines]
    debian = {f"{mode} {owner.replace('/', ':')} {path[1:]}" for mode, owner, *_, path in fields}
    wanted = {line for line in debian if not line.startswith("d")}
    query = r"[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]"
    found = {line for line in ask("--qf", query).splitlines() if not line.startswith("d")}
    own = {
        "-rwxr-xr-x root:root /usr/lib/bootlock/host/selinux",
        "-rw-r--r-- root:root /usr/share/selinux/packages/bootlock.cil",
        "-rw-r--r-- root:root /usr/share/licenses/bootlock/LICENSE",
        "-rw-r--r-- root:root /usr/share/zsh/site-functions/_bootlock",
        "-rw-r--r-- root:root /usr/share/doc/bootlock/CHANGELOG.md",
        # Known to rpm, and not in the package: see below.
        *(f"-rwxr-xr-x root:root {hook}" for hook in HOOKS),
    }
    assert found - wanted == own
    debians = ("zsh/vendor-completions", "lintian", "copyright", "changelog.gz", "CHANGELOG.md.gz")
    assert [line for line in wanted - found if not any(part in line for part in debians)] == []


def test_libvirt_sees_nothing_that_rpm_unpacks(ask: Callable[..., str]) -> None:
    # rpm2cpio and cpio may be missing; rpm itself says what has content: %ghost is flag g.
    flags = ask("--qf", r"[%{FILEFLAGS:fflags} %{FILENAMES}\n]")
    hooks = [line for line in flags.splitlines() if "50-bootlock" in line and "/etc/" in line]
    assert sorted(hooks) == sorted(f"g {hook}" for hook in HOOKS)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_every_shell_can_read_its_scripts(
    ask: Callable[..., str], shell: str, tmp_path: Path
) -> None:
    said = ask("--scripts")
    parts = re.split(r"^\w+ scriptlet \(using /bin/sh\):\n", said, flags=re.MULTILINE)[1:]
    assert len(parts) == 4
    for number, script in enumerate(parts):
        (tmp_path / str(number)).write_text(script, "utf-8")
        subprocess.run([*shell.split(), "-n", tmp_path / str(number)], check=True)


# -- its life -------------------------------------------------------------------------------------


@live
def test_installed_upgraded_removed_and_installed_again(host: PrivateHost, built: Path) -> None:
    held, uuid = define(host, "held")
    free, _ = define(host, "free")
    assert "told libvirtd" in rpm(host, "-i", built)
    hold(host, uuid)
    wait_until(lambda: is_refused(host, held), "libvirtd has noticed the hook")
    assert not is_refused(host, free)
    bootlock(host, "--connect", "qemu:///system", "doctor")
    assert rpm(host, "-V", "bootlock") == ""

    with (
        starts_all_the_time(host, uuid) as held_starts,
        starts_all_the_time(host, FREE) as free_starts,
    ):
        rpm(host, "-U", "--replacepkgs", built)
    assert (held_starts.allowed, free_starts.refused) == (0, ())
    assert len(held_starts.refused) > 10

    assert "held guests can start" in rpm(host, "-e", "bootlock")
    assert not is_refused(host, held)
    assert not any(host.outside(hook).exists() for hook in HOOKS)
    for gone in ("/usr/lib/bootlock", "/usr/share/bootlock", "/usr/bin/bootlock"):
        assert host.run(["test", "-e", gone], check=False).returncode == 1

    rpm(host, "-i", built)
    wait_until(lambda: is_refused(host, held), "the hold outlived the package")


@live
def test_what_it_can_not_read_it_leaves_alone(host: PrivateHost, built: Path) -> None:
    rpm(host, "-i", built)
    hold(host, HELD)
    newer = "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('x', 'm9', 0)"
    host.run(["sqlite3", DATABASE, newer])
    with pytest.raises(CommandFailed, match=r"written by a newer bootlock \(m9\)"):
        rpm(host, "-U", "--replacepkgs", built)
    hold(host, FREE)
    for action in ("install", "uninstall"):
        make = ["make", "-s", "-C", str(built.parents[1]), action]
        done = host.run(make, check=False, env=home(host))
        assert "rpm --erase bootlock" in done.stderr


# -- SELinux --------------------------------------------------------------------------------------

_NOTING = '#!/bin/sh\necho "${0##*/} $*" >>/run/selinux-calls\n'


def stand_ins(host: PrivateHost, **scripts: str) -> None:
    tools = ("selinuxenabled", "getsebool", "semodule", "setsebool", "restorecon")
    for tool in tools:
        text = _NOTING + scripts.get(tool, "")
        host.run(["sh", "-c", f"cat >/usr/sbin/{tool}; chmod 755 /usr/sbin/{tool}"], input=text)


def calls(host: PrivateHost) -> list[str]:
    return host.run(["cat", "/run/selinux-calls"]).stdout.splitlines()


@live
def test_selinux_knows_of_the_hook_before_libvirt_does(host: PrivateHost, built: Path) -> None:
    hook = HOOKS[0]
    stand_ins(
        host,
        restorecon=f'[ ! -e {hook} ] || echo "too late" >>/run/selinux-calls',
        semodule='[ "$1" != --list-modules ] || echo bootlock',
    )
    rpm(host, "-i", built)
    assert calls(host) == [
        "selinuxenabled ",
        "getsebool virt_hooks_unconfined",
        "semodule --install=/usr/share/selinux/packages/bootlock.cil",
        "setsebool -P virt_hooks_unconfined on",
        "restorecon -R /etc/libvirt/hooks",
    ]
    assert host.outside(hook).exists()
    rpm(host, "-e", "bootlock")
    assert calls(host)[-1] == "semodule --remove=bootlock"


@live
def test_no_hook_where_selinux_would_keep_libvirt_from_running_it(
    host: PrivateHost, built: Path
) -> None:
    """Every start would fail."""
    stand_ins(host, semodule="exit 1")
    rpm(host, "-i", built)
    assert not any(host.outside(hook).exists() for hook in HOOKS)


#: As much of a policy as the module speaks of.
_POLICY = """
(handleunknown allow)
(mls true)
(class file (getattr ioctl lock read write append open execute map))
(class fifo_file (getattr ioctl lock read write append))
(class process (transition sigchld))
(class fd (use))
(classorder (file fifo_file process fd))
(sensitivity s0) (sensitivityorder (s0)) (category c0) (categoryorder (c0))
(sensitivitycategory s0 (c0)) (level low (s0)) (levelrange range ((s0) (s0)))
(sid kernel) (sidorder (kernel)) (sidcontext kernel (u r kernel_t range))
(user u) (userrole u r) (userlevel u low) (userrange u range) (role r) (roletype r kernel_t)
(type kernel_t) (allow kernel_t kernel_t (fd (use)))
"""
_HOOKS = """
(type shell_exec_t) (type virt_hook_t) (type virt_hook_unconfined_t)
(boolean virt_hooks_unconfined false)
"""
_VIRTQEMUD = "(type virtqemud_t)"
_NEVER = "(neverallow virtqemud_t virt_hook_t (file (execute)))"


def compiles(directory: Path, parts: Sequence[str]) -> bool:
    base = directory / "base.cil"
    base.write_text("\n".join(parts), "utf-8")
    module = SOURCES / "packaging/rpm/bootlock.cil"
    out = ["-o", str(directory / "policy"), "-f", str(directory / "contexts")]
    done = subprocess.run(["secilc", *out, base, module], capture_output=True, check=False)
    return done.returncode == 0


def test_the_policy_module_fits_policies_with_and_without_what_it_is_about(tmp_path: Path) -> None:
    assert compiles(tmp_path, [_POLICY])
    assert compiles(tmp_path, [_POLICY, _HOOKS])
    assert compiles(tmp_path, [_POLICY, _HOOKS, _VIRTQEMUD])
    # It does say what it is there for.
    assert not compiles(tmp_path, [_POLICY, _HOOKS, _VIRTQEMUD, _NEVER])
