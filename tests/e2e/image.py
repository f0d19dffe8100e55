"""The disk of a Debian 12 host that bootlock was never on, built once and kept.

It has systemd, dbus, polkit, AppArmor, libvirtd and libvirt-guests, as Debian configures them, and
nothing of ours. What the package needs besides (``MIRROR``) is not installed but lies in a
repository on the disk, the only one that its apt knows: the package is installed as on any host,
and that needs no network.

It is kept in the cache under a name that follows from this file: whatever is changed here makes
another. Older ones are removed, unless one is in use.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cache import alone, cache, remove_unused, use

log = logging.getLogger(__name__)

SUITE = "bookworm"
SIZE = "6G"

#: What the host has.
PACKAGES = (
    "apparmor",
    "apparmor-utils",
    "apt",
    "btrfs-progs",
    "dbus",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "libvirt-clients",
    "libvirt-daemon-system",
    "linux-image-cloud-amd64",
    "lvm2",
    "openssh-server",
    "polkitd",
    "procps",
    "python3",
    "qemu-system-x86",
    "qemu-utils",
    "systemd-sysv",
    "udev",
    "xfsprogs",
)
#: What its apt can install: what our package depends on and that is missing, and what Ansible does.
MIRROR = ("nftables", "python3-apt", "sqlite3")

# Slirp's addresses never change, so nothing waits for DHCP. No agetty and no timer takes the
# processor from what is tested, and sshd starts no session manager for each login.
_FILES = {
    "etc/hostname": "host\n",
    "etc/hosts": "127.0.0.1 localhost host\n",
    "etc/fstab": "/dev/nvme0n1 / ext4 defaults,errors=remount-ro 0 0\n",
    # A new one at the first boot.
    "etc/machine-id": "",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/systemd/network/10-slirp.network": """\
[Match]
Name=en*
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
IPv6AcceptRA=no
LinkLocalAddressing=no
""",
    "etc/ssh/sshd_config.d/e2e.conf": """\
PermitRootLogin prohibit-password
UseDNS no
UsePAM no
LogLevel ERROR
""",
    "etc/apt/sources.list": "deb [trusted=yes] file:/srv/mirror ./\n",
    "etc/apt/apt.conf.d/50e2e": 'Acquire::Languages "none"; DPkg::Lock::Timeout "120";\n',
}
_ENABLED = ("systemd-networkd", "ssh")
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_reap.service",
    "getty@tty1.service",
    "man-db.timer",
    "serial-getty@ttyS0.service",
    "systemd-networkd-wait-online.service",
)


@dataclass(frozen=True)
class Image:
    """A disk to start from, the kernel that boots it, the key that opens it."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def key(self) -> Path:
        return self.directory / "key"


@contextmanager
def image() -> Iterator[Image]:
    """The image, to be used; built if it is not there. As root, from Debian's mirror: minutes."""
    name = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    found = Image(cache() / name)
    with alone():
        remove_unused(found.directory)
        if not found.directory.exists():
            _build(found)
        fd = use(found.directory)
    try:
        yield found
    finally:
        os.close(fd)


def _build(image: Image) -> None:
    began = time.monotonic()
    log.info("building the machine's disk (once; it is kept in %s)", image.directory)
    draft = Image(image.directory.with_suffix(".new"))
    draft.directory.mkdir()
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bootlock-e2e", "-f", draft.key)
    tree = draft.directory / "tree"
    _install(tree)
    log.info("Debian is unpacked after %.0f s", time.monotonic() - began)
    _stock_mirror(tree)
    _configure(tree, draft.key.with_suffix(".pub"))
    (kernel,) = tree.glob("boot/vmlinuz-*")
    shutil.copyfile(kernel, draft.kernel)
    _run("truncate", "-s", SIZE, draft.disk)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, draft.disk)
    shutil.rmtree(tree)
    draft.disk.chmod(0o444)
    draft.directory.rename(image.directory)
    log.info("built it in %.0f s", time.monotonic() - began)


def _install(tree: Path) -> None:
    """Debian from the mirrors of this machine, if it has that release, and through its proxy."""
    _run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        *(f"--aptopt={line}" for line in _proxy()),
        *(f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("doc", "locale", "man")),
        "--dpkgopt=force-unsafe-io",
        "--skip=cleanup/apt",
        SUITE,
        tree,
        *_mirrors(),
        # The kernel has what it needs to find its disk.
        env={"INITRD": "No"},
    )


def _proxy() -> list[str]:
    asked = ["apt-config", "dump", "--format", '%f "%v";%n', "Acquire::http::Proxy"]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if not line.endswith('"";')]


def _mirrors() -> list[Path]:
    """apt's sources here; none, if it has not the release: then mmdebstrap knows one."""
    if f"VERSION_CODENAME={SUITE}\n" not in Path("/etc/os-release").read_text():
        return []
    apt = Path("/etc/apt")
    files = [apt / "sources.list", *apt.glob("sources.list.d/debian*.sources")]
    return [file for file in files if file.exists() and file.stat().st_size]


def _stock_mirror(tree: Path) -> None:
    mirror = tree / "srv/mirror"
    mirror.mkdir()
    keep = ("-o", "Dir::Cache::archives=/srv/mirror", "--no-install-recommends")
    _run("chroot", tree, "apt-get", "-y", "--download-only", *keep, "install", *MIRROR)
    for rest in ("lock", "partial"):
        _run("rm", "-rf", mirror / rest)
    index = _run("dpkg-scanpackages", "--multiversion", ".", cwd=mirror)
    (mirror / "Packages").write_text(index)


def _configure(tree: Path, key: Path) -> None:
    for sources in (tree / "etc/apt/sources.list.d", tree / "etc/apt/apt.conf.d"):
        for file in sources.glob("*mmdebstrap*"):
            file.unlink()
    shutil.rmtree(tree / "etc/apt/sources.list.d")
    (tree / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").unlink(missing_ok=True)
    for name, text in _FILES.items():
        file = tree / name
        file.unlink(missing_ok=True)
        file.write_text(text)
    keys = tree / "root/.ssh/authorized_keys"
    keys.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(key, keys)
    _run("chroot", tree, "systemctl", "--quiet", "enable", *_ENABLED)
    _run("chroot", tree, "systemctl", "--quiet", "mask", *_MASKED)
    _run("chroot", tree, "apt-get", "clean")
    for list_ in (tree / "var/lib/apt/lists").iterdir():
        if list_.is_file():
            list_.unlink()
    _run("chroot", tree, "apt-get", "-q", "update")


def _run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
    )
    assert done.returncode == 0, f"{command[0]} failed: {done.stderr[-2000:]}"
    return done.stdout
