"""`make install` and `make uninstall`, run for real on hosts that are thrown away afterwards."""

import json
import subprocess
import time
import uuid as uuids
from pathlib import Path

import pytest

from installing import HOOKS, bootlock, define, is_refused, listing, starts_all_the_time
from privatehost import CommandFailed, PrivateHost
from shells import completed
from waiting import wait_until

pytestmark = pytest.mark.live

# Mode, owner and path of all that an installation adds, less the insides of the program.
EXPECTED = {
    "drwxr-xr-x root:root /etc/bootlock",
    "drwxr-xr-x root:root /etc/libvirt/hooks/libxl.d",
    "drwxr-xr-x root:root /etc/libvirt/hooks/lxc.d",
    "drwxr-xr-x root:root /etc/libvirt/hooks/qemu.d",
    "-rwxr-xr-x root:root /etc/libvirt/hooks/libxl.d/50-bootlock",
    "-rwxr-xr-x root:root /etc/libvirt/hooks/lxc.d/50-bootlock",
    "-rwxr-xr-x root:root /etc/libvirt/hooks/qemu.d/50-bootlock",
    "drwxr-sr-x root:bootlock /run/bootlock",
    "-rwxr-xr-x root:root /usr/bin/bootlock",
    "-rwxr-xr-x root:root /usr/bin/bootlockd",
    "drwxr-xr-x root:root /usr/lib/bootlock",
    "-rw-r--r-- root:root /usr/lib/systemd/system/bootlock-metrics.service",
    "-rw-r--r-- root:root /usr/lib/systemd/system/bootlock-preserve.service",
    "-rw-r--r-- root:root /usr/lib/systemd/system/bootlock-relay.service",
    "-rw-r--r-- root:root /usr/lib/systemd/system/bootlock-sync.service",
    "-rw-r--r-- root:root /usr/lib/systemd/system/bootlockd.service",
    "-rw-r--r-- root:root /usr/lib/systemd/system-preset/50-bootlock.preset",
    "-rw-r--r-- root:root /usr/lib/sysusers.d/bootlock.conf",
    "-rw-r--r-- root:root /usr/lib/tmpfiles.d/bootlock.conf",
    "-rw-r--r-- root:root /usr/share/bash-completion/completions/bootlock",
    "drwxr-xr-x root:root /usr/share/bootlock",
    "-rw-r--r-- root:root /usr/share/bootlock/50-bootlock",
    "-rw-r--r-- root:root /usr/share/bootlock/decide.sql",
    "-rw-r--r-- root:root /usr/share/bootlock/installed",
    "drwxr-xr-x root:root /usr/share/doc/bootlock",
    "-rw-r--r-- root:root /usr/share/doc/bootlock/CHANGELOG.md",
    "-rw-r--r-- root:root /usr/share/doc/bootlock/LICENSE",
    "-rw-r--r-- root:root /usr/share/doc/bootlock/README.md",
    "-rw-r--r-- root:root /usr/share/doc/bootlock/bootlock.toml",
    "-rw-r--r-- root:root /usr/share/fish/vendor_completions.d/bootlock.fish",
    "-rw-r--r-- root:root /usr/share/man/man1/bootlock.1.gz",
    "-rw-r--r-- root:root /usr/share/man/man5/bootlock.toml.5.gz",
    "-rw-r--r-- root:root /usr/share/man/man8/bootlockd.8.gz",
    "-rw-r--r-- root:root /usr/share/zsh/vendor-completions/_bootlock",
}
STATE = {
    "drwxr-s--- root:bootlock /var/lib/bootlock",
    "-rw-r----- root:bootlock /var/lib/bootlock/lock.db",
}
# Nobody's directories where fish is not installed.
FISH = ("/usr/share/fish", "/usr/share/fish/vendor_completions.d")

# A guest that nobody holds.
FREE = "8f3e3a0e-44bb-4f43-9d35-8bd1a1e4b7c5"


def install(host: PrivateHost, tree: Path, *variables: str) -> str:
    return host.run(["make", "-s", "-C", tree, "install", *variables]).stdout


def uninstall(host: PrivateHost, tree: Path, *variables: str) -> str:
    return host.run(["make", "-s", "-C", tree, "uninstall", *variables]).stdout


def contents(host: PrivateHost) -> str:
    """A checksum of each file that was installed."""
    paths = ["/usr/bin/bootlock", "/usr/lib/bootlock", "/usr/share/bootlock", *HOOKS]
    found = ["find", *paths, "/etc/group", "/etc/gshadow", "-type", "f"]
    return host.run([*found, "-exec", "sha256sum", "{}", "+"]).stdout


def added(host: PrivateHost, before: set[str]) -> set[str]:
    new = listing(host) - before
    return {line for line in new if " /usr/lib/bootlock/" not in line}


def has_no_systemd(host: PrivateHost) -> None:
    host.run(["rm", "-f", "/usr/bin/systemd-sysusers", "/usr/bin/systemd-tmpfiles"])


def test_everything_is_where_it_belongs_and_goes_again(host: PrivateHost, built: Path) -> None:
    before = listing(host)
    group = host.run(["cat", "/etc/group", "/etc/gshadow"]).stdout
    install(host, built)
    new = {line for line in added(host, before) if not line.endswith(FISH)}
    assert new == EXPECTED | STATE

    uninstall(host, built)
    assert added(host, before) == STATE
    uninstall(host, built, "PURGE=1")
    assert listing(host) == before
    assert host.run(["cat", "/etc/group", "/etc/gshadow"]).stdout == group


def test_without_systemd(host: PrivateHost, built: Path) -> None:
    has_no_systemd(host)
    before = listing(host)
    install(host, built)
    assert added(host, before) > STATE
    assert "drwxr-sr-x root:bootlock /run/bootlock" in added(host, before)
    assert "bootlock:x:" in host.run(["getent", "group", "bootlock"]).stdout
    uninstall(host, built, "PURGE=1")
    assert listing(host) == before


def test_libvirt_asks_the_hook_from_then_on_and_until_it_is_removed(
    host: PrivateHost, built: Path
) -> None:
    """libvirtd ran before there was a hook: without a word from the installer it would not look."""
    name, uuid = define(host)
    assert not is_refused(host, name)
    assert "told libvirtd" in install(host, built)
    bootlock(host, "place", uuid, "--reason", "unpaid", "--notice", "call the desk")
    wait_until(lambda: is_refused(host, name), "libvirtd has noticed the hook")
    bootlock(host, "--connect", "qemu:///system", "doctor")
    uninstall(host, built)
    assert not is_refused(host, name)

    install(host, built)
    wait_until(lambda: is_refused(host, name), "the hold outlived the program")
    bootlock(host, "release", "--instance", uuid, "--all", "--reason", "paid")
    assert not is_refused(host, name)


def test_libvirt_of_another_host_is_not_told(host: PrivateHost, built: Path) -> None:
    """The machine sees the processes of its containers; their libvirt looks at other hooks."""
    reloads = (host.root / "reloads").read_text()
    own_etc = 'mount -t tmpfs none /etc/libvirt && exec "$1"/packaging/tell-libvirt'
    outside = subprocess.run(
        ["unshare", "--mount", "sh", "-c", own_etc, "sh", built],
        check=True,
        capture_output=True,
        text=True,
    )
    assert outside.stdout.startswith("no libvirt daemon runs here")
    assert (host.root / "reloads").read_text() == reloads


def test_installing_again_changes_nothing(host: PrivateHost, built: Path) -> None:
    install(host, built)
    bootlock(host, "place", str(uuids.uuid4()), "--reason", "unpaid")
    files, texts, holds = listing(host), contents(host), bootlock(host, "list")
    install(host, built)
    assert (listing(host), contents(host), bootlock(host, "list")) == (files, texts, holds)


def test_an_upgrade_removes_what_the_new_version_no_longer_has(
    host: PrivateHost, built: Path
) -> None:
    install(host, built)
    files = listing(host)
    host.run(["touch", "/usr/lib/old-part"])
    host.run(["sh", "-c", "echo 'file /usr/lib/old-part' >>/usr/share/bootlock/installed"])
    install(host, built)
    assert listing(host) == files


def test_the_program_hears_only_its_own_python(
    host: PrivateHost, built: Path, tmp_path: Path
) -> None:
    install(host, built)
    for name in ("bootlock", "click", "lockdb", "sqlite3", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')")
    hostile = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONHOME": str(tmp_path),
        "PYTHONSTARTUP": "/dev/null",
    }
    there = ["sh", "-c", f"cd {tmp_path} && bootlock --version"]
    assert host.run(there, env=hostile).stdout.startswith("bootlock ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_work_in_each_shell(host: PrivateHost, built: Path, shell: str) -> None:
    install(host, built)
    uuid = str(uuids.uuid4())
    hold = json.loads(bootlock(host, "place", uuid, "--reason", "unpaid", "--json"))["id"]
    assert completed(host, shell, "bootlock pla") == "place"
    assert completed(host, shell, "bootlock journal ver") == "verify"
    assert completed(host, shell, "bootlock place web --not") == "--notice"
    assert completed(host, shell, "bootlock place web --on-running man") == "managed-save"
    assert completed(host, shell, f"bootlock release {hold[:4]}") == hold
    assert completed(host, shell, f"bootlock list --instance {uuid[:4]}") == uuid
    permit = ["permit", uuid, "--op", "start", "--for", "1h", "--reason", "image", "--json"]
    granted = json.loads(bootlock(host, *permit))["id"]
    assert completed(host, shell, f"bootlock permit --revoke {granted[:4]}") == granted


def test_another_prefix_moves_the_program_alone(host: PrivateHost, built: Path) -> None:
    before = listing(host)
    install(host, built, "PREFIX=/usr/local")
    assert host.run(["bootlock", "--version"]).stdout.startswith("bootlock ")
    new = {line.split()[2] for line in added(host, before)}
    assert {"/usr/local/bin/bootlock", "/usr/local/lib/bootlock", *HOOKS} < new
    assert "/usr/bin/bootlock" not in new
    # Nobody needs to remember the prefix.
    uninstall(host, built, "PURGE=1")
    assert listing(host) == before


def test_no_start_is_refused_while_it_is_installed_upgraded_or_removed(
    host: PrivateHost, built: Path
) -> None:
    with starts_all_the_time(host, FREE) as answers:
        install(host, built)
        time.sleep(0.2)
        install(host, built)
        uninstall(host, built)
        install(host, built)
        uninstall(host, built, "PURGE=1")
    assert answers.refused == ()
    assert answers.allowed > 10


def test_killed_at_any_moment_it_can_be_repeated_and_undone(host: PrivateHost, built: Path) -> None:
    before = listing(host)
    install(host, built)
    complete = listing(host)
    killing = 'setsid "$1/packaging/install" & sleep "$2"; kill -s KILL -- "-$!"; wait'
    for moment in (0.03, 0.1, 0.2, 0.3, 0.5, 0.7):
        uninstall(host, built, "PURGE=1")
        host.run(["sh", "-c", killing, "sh", built, str(moment)], check=False)
        if moment < 0.3:
            uninstall(host, built, "PURGE=1")
            assert listing(host) == before
        install(host, built)
        assert listing(host) == complete


def test_no_hook_without_the_sqlite3_that_it_needs(host: PrivateHost, built: Path) -> None:
    host.run(["rm", "/usr/bin/sqlite3"])
    before = listing(host)
    with pytest.raises(CommandFailed, match="needs /usr/bin/sqlite3"):
        install(host, built)
    assert listing(host) == before


def test_no_hook_that_can_not_decide(host: PrivateHost, built: Path) -> None:
    """As with a sqlite3 shell that is too old or broken."""
    host.run(["ln", "-sf", "/bin/false", "/usr/bin/sqlite3"])
    with pytest.raises(CommandFailed, match="not put in place"):
        install(host, built)
    assert not any(host.outside(hook).exists() for hook in HOOKS)


def test_a_lost_database_is_not_replaced_by_an_empty_one(host: PrivateHost, built: Path) -> None:
    install(host, built)
    host.run(["rm", "-r", "/var/lib/bootlock"])
    with pytest.raises(CommandFailed, match="restore a backup"):
        install(host, built)
    assert "/var/lib/bootlock/lock.db" not in "\n".join(listing(host))


def test_an_old_hook_stays_when_the_database_can_not_be_upgraded(
    host: PrivateHost, built: Path
) -> None:
    install(host, built)
    host.run(["sh", "-c", "echo not SQLite >/var/lib/bootlock/lock.db"])
    with pytest.raises(CommandFailed, match="database"):
        install(host, built)
    assert all(host.outside(hook).exists() for hook in HOOKS)


def test_staging_below_destdir(built: Path, tmp_path: Path) -> None:
    """For those who make packages: needs no root, touches nothing else, names no other place."""
    stage = tmp_path / "stage"
    done = subprocess.run(
        ["make", "-s", "-C", built, "install", f"DESTDIR={stage}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "staged" in done.stdout
    paths = {f"/{path.relative_to(stage)}" for path in stage.rglob("*")}
    elsewhere = {"/run/bootlock", "/usr/share/bootlock/installed"}
    assert {line.split()[2] for line in EXPECTED} - elsewhere <= paths
    assert not any(path.startswith(("/var", "/run")) for path in paths)
    naming = subprocess.run(
        ["grep", "-rlF", "-e", str(tmp_path), "-e", str(built), stage],
        check=False,
        capture_output=True,
        text=True,
    )
    assert naming.stdout == ""


def test_only_root_installs_on_the_host(host: PrivateHost, built: Path) -> None:
    before = listing(host)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    # The tests' directory is closed to others; nobody is let in to read, and no more.
    let_in = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    for action in ("install", "uninstall"):
        done = host.run([*nobody, *let_in, f"{built}/packaging/{action}"], check=False)
        assert "only root" in done.stderr
    assert listing(host) == before
