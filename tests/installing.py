"""What tests of the installation and of the package share: a built tree, a host to put it on."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import uuid as uuids
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from domainxml import domain_xml
from privatehost import PrivateHost

SOURCES = Path(__file__).resolve().parents[1]

HOOKS = tuple(f"/etc/libvirt/hooks/{driver}.d/50-bootlock" for driver in ("qemu", "lxc", "libxl"))

# What a private host keeps outside of its /etc, /usr and /var: directories of its own, bound there.
_BOUND = ("/etc/bootlock", "/usr/share/bootlock", "/var/lib/bootlock")


def built(tree: Path, target: str, env: Mapping[str, str] | None = None) -> Path:
    """A copy of the sources at ``tree`` in which ``make TARGET`` was run; ours stays as it is."""
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "__pycache__")
    shutil.copytree(SOURCES, tree, symlinks=True, ignore=unwanted)
    # No commit here that the time of the build could be taken from.
    done = subprocess.run(
        ["make", "-C", tree, target],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1790000000", **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    return tree


def built_once(run: Path, tree: Path) -> Path:
    """A copy at ``tree`` of one tree in which `make deb` was run, whoever needs it first.

    ``run``: a directory that all processes of this run of tests share.
    """
    original = run / "built-once"
    with (run / "built-once.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not original.exists():
            built(run / "built-once.new", "deb").rename(original)
    return shutil.copytree(original, tree, symlinks=True)


def following(package: Path, directory: Path) -> Path:
    """A package of a later version, whose hook decides from a database of another format."""
    unpacked = directory / "bootlock"
    subprocess.run(["dpkg-deb", "-R", package, unpacked], check=True)
    (lockdb,) = unpacked.glob("usr/lib/bootlock/lib/python3*/site-packages/lockdb")
    _edit(unpacked / "DEBIAN/control", "\nVersion: ", "\nVersion: 9.")
    _edit(unpacked / "DEBIAN/preinst", "name NOT IN (", "name NOT IN ('m9999_next', ")
    for decide in (lockdb / "decide.sql", unpacked / "usr/lib/bootlock/host/decide.sql"):
        ((ours, number),) = re.findall(
            r"(= 'decision'\) IS NOT '(\d+)')", decide.read_text("utf-8")
        )
        _edit(decide, ours, ours.replace(f"'{number}'", "'999'"))
    with (lockdb / "migrations.py").open("a") as file:
        file.write(_NEXT_STEP)
    package = unpacked.with_suffix(".deb")
    build = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(unpacked), str(package)]
    subprocess.run(build, check=True, capture_output=True)
    return package


_NEXT_STEP = """

@migrations()
def m9999_next(db: Database) -> None:
    db.execute("UPDATE meta SET value = '999' WHERE key = 'decision'")
"""


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, path
    path.write_text(text.replace(old, new), "utf-8")


@contextmanager
def new_host() -> Iterator[PrivateHost]:
    """A host that bootlock was never on. All it gets in /usr, /etc and /var/lib is thrown away."""
    with PrivateHost(scratch=("/usr",)) as host:
        for directory in _BOUND:
            host.run(["umount", directory])
            host.run(["rmdir", directory])
        yield host


def listing(host: PrivateHost) -> set[str]:
    """What the host has that the machine has not: type, mode, owner, path, where a link leads."""
    written = {top: f"{host.root}/scratch{top}/new" for top in ("/etc", "/usr", "/var/lib")}
    written |= {own: str(host.outside(own)) for own in ("/etc/libvirt", "/run")}
    found: set[str] = set()
    for top, where in written.items():
        ours = ["-mindepth", "1", "-path", f"{where}/libvirt", "-prune", "-o"]
        line = ["-printf", rf"%M %u:%g {top}/%P %l\n"]
        lines = host.run(["find", where, *ours, *line]).stdout.splitlines()
        found.update(line.rstrip() for line in lines)
    return {line for line in found if not _is_of_no_interest(line)}


def _is_of_no_interest(line: str) -> bool:
    path = Path(line.split()[2])
    # Copies of the machine's directories; what SQLite and the system's tools leave and reuse.
    passing = ("lock.db-wal", "lock.db-shm", "group", "gshadow", "group-", "gshadow-", ".pwd.lock")
    return path.is_dir() or path.name in passing


def define(host: PrivateHost, name: str = "guest") -> tuple[str, str]:
    """A guest that is off; its name and UUID."""
    uuid = str(uuids.uuid4())
    xml = host.images / f"{name}.xml"
    xml.write_text(domain_xml(name, uuid))
    host.virsh("define", xml)
    return name, uuid


def bootlock(host: PrivateHost, *args: str, check: bool = True) -> str:
    """What the installed command says."""
    return host.run(["/usr/bin/bootlock", *args], check=check).stdout


def is_refused(host: PrivateHost, name: str) -> bool:
    """Whether libvirt, asked to start the guest, answers with our line."""
    done = host.virsh("start", name, check=False)
    if done.returncode == 0:
        host.virsh("destroy", name)
        return False
    assert "bootlock: start refused: " in done.stderr
    return True


@dataclass
class Answers:
    """What a hook's script said to each of many starts; complete when the ``with`` block ends."""

    allowed: int = 0
    refused: tuple[str, ...] = ()


@contextmanager
def starts_all_the_time(host: PrivateHost, uuid: str) -> Iterator[Answers]:
    """Does meanwhile what libvirt does at a start of the guest ``uuid``, over and over."""
    xml, stop, said = (host.images / f"{uuid}.{what}" for what in ("xml", "stop", "said"))
    xml.write_text(f"<domain><name>guest</name><uuid>{uuid}</uuid></domain>")
    loop = """
        while [ ! -e "$2" ]; do
            for hook in /etc/libvirt/hooks/qemu.d/* /etc/libvirt/hooks/qemu.d/.[!.]*; do
                [ -f "$hook" ] && [ -x "$hook" ] || continue
                [ "${hook##*/}" = 50-bootlock ] || echo "libvirt would run $hook" >>"$3"
                said=$("$hook" guest prepare begin - <"$1" 2>&1) && status=0 || status=$?
                # 126, 127: switched off, removed since we looked, as may happen to libvirt.
                case $status in 0 | 126 | 127) said=allowed ;; esac
                echo "$said" >>"$3"
            done
        done
    """
    answers = Answers()
    process = host.popen(["sh", "-c", loop, "sh", xml, stop, said])
    yield answers
    stop.touch()
    process.wait(60)
    lines = said.read_text().splitlines()
    answers.refused = tuple(line for line in lines if line != "allowed")
    answers.allowed = len(lines) - len(answers.refused)
