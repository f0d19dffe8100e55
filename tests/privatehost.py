"""A libvirt host of one's own: real virtlogd, libvirtd, QEMU and LXC inside private namespaces.

    with PrivateHost() as host:
        host.virsh("list", "--all")          # that host's libvirt, not the machine's
        host.run(["sqlite3", "/var/lib/bootlock/lock.db", "select 1"])
        host.connect().listAllDomains()      # from this process

Inside, everything has the path it has on a real host: the hooks are in /etc/libvirt/hooks, the
database in /var/lib/bootlock. Outside, those directories are found under ``root`` by the same
names (``host.outside("/etc/libvirt/hooks")``), and the machine's own /etc, /run, /usr and /var
are never written to. ``root`` and what is under it have the same path on both sides, so a disk
image in ``host.images`` can be named in domain XML, read by a test and shared by two hosts.

A holder process keeps the namespaces. It is PID 1 of a PID namespace, and reads a pipe whose
other end is in this process: when the host is stopped, or this process dies in any way, the
holder ends and the kernel kills everything that was started inside, daemons and guests, and frees
the mounts. So nothing has to be found and ended by name.

Needs root and the Debian packages libvirt-daemon-system, libvirt-clients, qemu-system-x86,
qemu-utils, iproute2 and util-linux (for ``lxc=True`` also libvirt-daemon-driver-lxc). What is
missing is an error, never a reason to skip.

Importing this module silences libvirt's habit of printing each error to stderr: it comes as an
exception too.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid as uuids
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import libvirt

from cgroups import Cgroups, mounted_hierarchies
from waiting import PATIENCE, wait_until

DRIVERS = ("qemu", "lxc", "libxl")
"""The libvirt drivers that have a hooks directory."""

# Private directories, at the same path inside as on a real host, kept under `root`.
_OWN = (
    "/run",
    "/etc/libvirt",
    "/etc/bootlock",
    "/usr/share/bootlock",
    "/var/lib/libvirt",
    "/var/lib/bootlock",
    "/var/log/libvirt",
    "/var/cache/libvirt",
)
# Parents that may lack the mount points above: copy-on-write inside, so the machine's stay as is.
_SCRATCH = ("/etc", "/usr/share", "/var/lib", "/var/log", "/var/cache")
# A root below one of these would be hidden inside, or be seen through an overlay.
_HIDING = ("/run", "/proc", "/sys", "/dev")

_PROGRAMS = {
    "libvirtd": "libvirt-daemon-system",
    "virtlogd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SOCKET_PATH_MAX = 107
_SOURCES = Path(__file__).resolve().parents[1]

# The holder. It tells its PID as this process sees it (it reads the old /proc for that), builds the
# mounts and waits for its pipe to close. With SIGCHLD ignored the kernel reaps what it inherits: a
# PID 1 that leaves zombies makes libvirt wait for guests that are long gone.
# Arguments: root, host name, overlaid parents, `--`, cgroup v1 controllers (or `2`, or none).
_HOLDER = r"""
set -eu
read -r pid rest </proc/self/stat
echo "$pid"
root=$1 name=$2; shift 2
mount -t proc proc /proc
umount -R /sys
mount -t sysfs sysfs /sys
ip link set lo up
hostname "$name"
mount -t tmpfs tmpfs "$root/scratch"
while [ "$1" != -- ]; do
    upper=$root/scratch$1
    mkdir -p "$upper/new" "$upper/work"
    mount -t overlay -o "lowerdir=$1,upperdir=$upper/new,workdir=$upper/work" overlay "$1"
    shift
done
shift
for own in OWN_DIRECTORIES; do
    mkdir -p "$own"
    mount --bind "$root$own" "$own"
done
case ${1:-} in
'') ;;
2)
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
    done ;;
*)
    mount -t tmpfs tmpfs /sys/fs/cgroup
    for controllers; do
        mkdir "/sys/fs/cgroup/$controllers"
        mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$controllers"
    done ;;
esac
echo ready
exec env --ignore-signal=CHLD cat >/dev/null
""".replace("OWN_DIRECTORIES", " ".join(_OWN))

_END_AND_WAIT = r"""
kill -s "$1" "$2" 2>/dev/null || exit 0
while kill -0 "$2" 2>/dev/null; do sleep 0.02; done
"""


class PrivateHostError(Exception):
    """The private host can't do what was asked; the text says why and what to do."""


class CommandFailed(PrivateHostError):
    """A command inside ended with a status other than 0, or not in time. Holds its output."""

    def __init__(self, done: subprocess.CompletedProcess[str], why: str) -> None:
        self.done = done
        super().__init__(
            f"{' '.join(map(str, done.args))}: {why}\n"
            f"stdout: {_tail(done.stdout)}\nstderr: {_tail(done.stderr)}"
        )


class PrivateHost:
    """One libvirt host, from ``start()`` to ``stop()``; a context manager for just that.

    ``root``: a directory that doesn't exist yet or is empty, with a short path (unix sockets allow
    107 characters); removed at the end. Without it: a new one where temporary files go.
    ``name``: its host name, so that two hosts can tell each other apart.
    ``lxc``: give it cgroups of its own, without which libvirt starts no container. Guests of QEMU
    need none, and without them nothing is made outside.
    ``network_of``: share the network namespace of that host (to migrate over loopback) instead of
    having an own one, which holds just a loopback device.
    ``scratch``: further directories that can be written to inside, without any trace outside
    (``"/usr"``, to install into).
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        name: str = "host",
        lxc: bool = False,
        network_of: PrivateHost | None = None,
        scratch: Sequence[str] = (),
    ) -> None:
        self.root = (root or _unused_directory()).resolve()
        self.name = name
        self.images = self.root / "images"
        self._lxc = lxc
        self._network_of = network_of
        self._scratch = tuple(dict.fromkeys((*_SCRATCH, *scratch)))
        self._holder: subprocess.Popen[str] | None = None
        self._holder_pid = 0
        self._pid_namespace = ""
        self._cgroups = Cgroups()
        self._background: list[subprocess.Popen[str]] = []
        self._made_root = False

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Make the namespaces and start both daemons. On any failure nothing stays behind."""
        self._check()
        try:
            self._make_directories()
            self._power_on()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything inside, guests included, and remove ``root``. Can be called again."""
        self._power_off()
        if self._made_root:
            shutil.rmtree(self.root)
            self._made_root = False

    def reboot(self) -> None:
        """Cut the power and boot again: guests end, /run is empty, autostart happens.

        What was written to /etc and /var by libvirt and bootlock stays; ``scratch`` is forgotten.
        """
        self._power_off()
        shutil.rmtree(self.outside("/run"))
        self.outside("/run").mkdir()
        self._power_on()

    # -- doing things inside ------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = PATIENCE,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside as root and return what it said.

        ``check``: raise CommandFailed, with the output, for a status other than 0. A command that
        takes longer than ``timeout`` is killed and raises CommandFailed in any case. ``env`` is
        added to this process's environment, which has the system's PATH inside, and nothing that
        would lead libvirt's tools or bootlock elsewhere. A daemon that keeps the output open is
        waited for: start it with ``popen``.
        """
        process = subprocess.Popen(
            self._entering(argv),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            env=self._environment(env),
            start_new_session=True,
        )
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired as late:
            os.killpg(process.pid, signal.SIGKILL)
            self._background.append(process)
            so_far = [(said or b"").decode(errors="replace") for said in (late.stdout, late.stderr)]
            done = subprocess.CompletedProcess(list(argv), -signal.SIGKILL, *so_far)
            raise CommandFailed(done, f"not done after {timeout:g} s") from None
        done = subprocess.CompletedProcess(list(argv), process.returncode, out, err)
        if check and process.returncode != 0:
            raise CommandFailed(done, f"exit status {process.returncode}")
        return done

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command inside and leave it running; ``stop()`` ends it if nothing else does.

        The process returned is nsenter's, which passes on the exit status but no signal: to
        signal the command, use ``run(["kill", ...])`` with the PID it has inside.
        """
        process = subprocess.Popen(
            self._entering(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=self._environment(env),
            start_new_session=True,
        )
        self._background.append(process)
        return process

    def virsh(
        self, *args: str | Path, check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """``virsh ARGS`` inside, where the default URI, qemu:///system, is this host's."""
        return self.run(["virsh", *args], check=check, timeout=timeout)

    def bootlock(
        self,
        *args: str | Path,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """``bootlock ARGS`` inside: the command installed beside the Python that runs this."""
        program = Path(sys.executable).parent / "bootlock"
        return self.run([program, *args], check=check, input=input, env=env)

    def processes(self) -> dict[int, str]:
        """The command line of everything that runs inside, by its PID outside.

        Containers are not included, only what libvirt runs for each of them on the host.
        """
        return {
            pid: command
            for pid, command in _all_processes()
            if _namespace(pid, "pid") == self._pid_namespace
        }

    def outside(self, path: str | Path) -> Path:
        """Where this process finds a path of the inside, one of libvirt's or bootlock's own."""
        for own in _OWN:
            if Path(path).is_relative_to(own):
                return self.root / Path(path).relative_to("/")
        raise ValueError(f"{path} is not one of this host's own directories: {', '.join(_OWN)}")

    @property
    def pid(self) -> int:
        """The process that keeps its namespaces, by its PID outside."""
        if self._holder is None:
            raise PrivateHostError(f"{self.name} doesn't run")
        return self._holder_pid

    # -- libvirt ------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """QEMU on this host, for clients inside, outside, and on other private hosts."""
        return f"qemu+unix:///system?socket={self._socket}"

    @property
    def lxc_uri(self) -> str:
        """LXC on this host, likewise."""
        return f"lxc+unix:///system?socket={self._socket}"

    def connect(self, uri: str | None = None) -> libvirt.virConnect:
        """A new connection of this process to this host. The caller closes it."""
        return libvirt.open(uri or self.uri)

    def start_libvirtd(self) -> None:
        """Start libvirtd; on return autostart is done and clients are served."""
        self.run(["libvirtd", "-d", "-p", "/run/libvirtd.pid"])
        try:
            wait_until(self._libvirt_answers, f"libvirtd of {self.name} answers")
        except TimeoutError as error:
            log = self.outside("/var/log/libvirt/libvirtd.log")
            said = log.read_text(errors="replace") if log.exists() else "(no log)"
            raise PrivateHostError(f"{error}; its log ends: {_tail(said)}") from error

    def stop_libvirtd(self, how: str = "TERM") -> None:
        """End libvirtd (``how``: the signal's name) and wait until it is gone. Guests stay."""
        pid = self.outside("/run/libvirtd.pid").read_text().strip()
        self.run(["sh", "-c", _END_AND_WAIT, "sh", how, pid])

    def restart_libvirtd(self) -> None:
        """Stop libvirtd and start it again. Guests stay; connections break."""
        self.stop_libvirtd()
        self.start_libvirtd()

    def sighup(self) -> None:
        """Make libvirtd look again which hooks there are; wait until it has."""
        reloads = self.root / "reloads"
        pid = self.outside("/run/libvirtd.pid").read_text().strip()
        before = reloads.read_text()
        self.run(["kill", "-s", "HUP", pid])
        wait_until(lambda: reloads.read_text() != before, "libvirtd has read its hooks anew")

    def install_bootlock(self) -> None:
        """The part of an installation that refuses starts: an empty database, and the hook.

        All of it straight from the source tree that this file is in.
        """
        shutil.copy(_SOURCES / "lockdb/lockdb/decide.sql", self.outside("/usr/share/bootlock"))
        self.bootlock("init")
        self.install_hook(_SOURCES / "hooks/50-bootlock")

    def install_hook(self, source: Path, drivers: Iterable[str] = DRIVERS) -> None:
        """Install a script as 50-bootlock for each driver, and have libvirtd notice it."""
        for driver in drivers:
            directory = self.outside(f"/etc/libvirt/hooks/{driver}.d")
            directory.mkdir(parents=True, exist_ok=True)
            new = directory / ".new"
            shutil.copyfile(source, new)
            new.chmod(0o755)
            new.rename(directory / "50-bootlock")
        self.sighup()

    # -- how it is done -----------------------------------------------------------------------

    @property
    def _socket(self) -> Path:
        return self.outside("/run/libvirt/libvirt-sock")

    def _libvirt_answers(self) -> bool:
        try:
            connection = self.connect()
        except libvirt.libvirtError:
            return False
        connection.close()
        return True

    def _check(self) -> None:
        if self._made_root:
            raise PrivateHostError(f"{self.name} was started already")
        if os.geteuid() != 0:
            raise PrivateHostError("a private libvirt host needs root")
        missing = {p: deb for p, deb in _PROGRAMS.items() if not shutil.which(p, path=_PATH)}
        if missing:
            raise PrivateHostError(
                f"not installed: {', '.join(missing)}; "
                f"apt-get install {' '.join(sorted(set(missing.values())))}"
            )
        if any(self.root.is_relative_to(hiding) for hiding in (*_HIDING, *self._scratch)):
            raise PrivateHostError(f"{self.root}: not here, it would be hidden inside; use /tmp")
        longest = self.outside("/run/libvirt/libvirt-admin-sock")
        if len(bytes(longest)) > _SOCKET_PATH_MAX:
            raise PrivateHostError(f"{self.root}: too long a path for a unix socket; use /tmp")
        if self.root.exists() and any(self.root.iterdir()):
            raise PrivateHostError(f"{self.root}: not empty, and it would be removed at the end")

    def _power_on(self) -> None:
        self._hold_namespaces()
        self.run(["virtlogd", "-d"])
        self.start_libvirtd()

    def _power_off(self) -> None:
        if self._holder is not None:
            assert self._holder.stdin
            self._holder.stdin.close()
            try:
                self._holder.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._holder.kill()  # unshare --kill-child takes the holder along
                self._holder.wait(PATIENCE)
            assert self._holder.stdout
            self._holder.stdout.close()
            self._holder = None
        for process in self._background:
            process.wait(PATIENCE)
            for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
                stream.close()
        self._background.clear()
        self._cgroups.remove()

    def _make_directories(self) -> None:
        self._made_root = True
        self.images.mkdir(parents=True)
        (self.root / "scratch").mkdir()
        for own in _OWN:
            self.outside(own).mkdir(parents=True)
        etc = self.outside("/etc/libvirt")
        (etc / "libvirtd.conf").write_text(
            f'host_uuid = "{uuids.uuid4()}"\nauth_unix_rw = "none"\n', encoding="utf-8"
        )
        # As root, guests reach images below a directory that only root may enter.
        (etc / "qemu.conf").write_text(
            'user = "root"\ngroup = "root"\nsecurity_driver = "none"\n', encoding="utf-8"
        )
        (etc / "lxc.conf").write_text('security_driver = "none"\n', encoding="utf-8")
        # libvirtd calls it after having looked for hooks; present from the start, it is not
        # subject to what it reports.
        reloads = self.root / "reloads"
        reloads.touch()
        hook = etc / "hooks/daemon.d/10-reloads"
        hook.parent.mkdir(parents=True)
        hook.write_text(f"#!/bin/sh\necho \"$2\" >>'{reloads}'\n", encoding="utf-8")
        hook.chmod(0o755)

    def _hold_namespaces(self) -> None:
        unshare = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        # slave: what the machine unmounts goes away here too, and nothing goes the other way.
        argv = [*unshare, "--propagation", "slave"]
        if self._network_of is None:
            argv.append("--net")
        else:
            argv = ["nsenter", f"--net=/proc/{self._network_of._holder_pid}/ns/net", *argv]
        if self._lxc:
            hierarchies = mounted_hierarchies()
            if not hierarchies:
                raise PrivateHostError(
                    "no cgroups are mounted here, so libvirt can't start containers"
                )
            self._cgroups = Cgroups.make(f"bootlock-{secrets.token_hex(4)}", hierarchies)
            argv = self._cgroups.rooting(argv)
        holder = ["sh", "-c", _HOLDER, "holder", str(self.root), f"{self.name}.test"]
        self._holder = subprocess.Popen(
            [*argv, *holder, *self._scratch, "--", *self._cgroups.controllers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment(None),
            start_new_session=True,  # a Ctrl-C is for the tests, which then stop the host
        )
        assert self._holder.stdout
        said = []
        for line in self._holder.stdout:
            said.append(line)
            if line == "ready\n":
                self._holder_pid = int(said[0])
                self._pid_namespace = _namespace(self._holder_pid, "pid")
                return
        raise PrivateHostError(f"could not make the namespaces: {''.join(said).strip()}")

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        leading_elsewhere = ("LIBVIRT_", "VIRSH_", "BOOTLOCK_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(leading_elsewhere)}
        return kept | {"PATH": _PATH, "LC_ALL": "C.UTF-8"} | dict(extra or {})

    def _entering(self, argv: Sequence[str | Path]) -> list[str]:
        if self._holder is None:
            raise PrivateHostError(f"{self.name} doesn't run")
        into = ["--mount", "--uts", "--ipc", "--net", "--pid", "--wd=/"]
        if self._lxc:
            into.append("--cgroup")
        enter = ["nsenter", f"--target={self._holder_pid}", *into, "--", *map(str, argv)]
        return self._cgroups.joining(enter)


def _all_processes() -> Iterator[tuple[int, str]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(process.name), b" ".join(words).decode(errors="backslashreplace").strip()


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:  # it has ended; or it is one that not even root may look into
        return "unknown"


def _unused_directory() -> Path:
    return Path(tempfile.gettempdir(), f"bl-{secrets.token_hex(4)}")


def _tail(text: str, size: int = 4000) -> str:
    return text if len(text) <= size else f"... {text[-size:]}"


def _ignore_error(context: object, error: object) -> None:
    pass


libvirt.registerErrorHandler(_ignore_error, None)
