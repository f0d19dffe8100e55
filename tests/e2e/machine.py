"""A Debian 12 host in QEMU: booted, rebooted, its power cut, commands run in it as root.

    with Machine() as machine:
        machine.run("virsh list --all").stdout
        machine.cut_power()
        machine.boot()

``address``, ``port`` and ``key`` are what ssh, and what is built on it, needs to reach it; the user
is root. The disk starts as ``image()`` made it; what becomes of it goes with the machine. Beside it
is ``SPARE``, an empty one of 64 MiB.

It uses KVM where the processor has it, else it emulates: a boot then takes most of a minute, and a
guest in it most of another half. So time limits here are long, and only end what hangs.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from e2e.cache import alone, cache, use
from e2e.image import image

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds after which a boot or a command has failed."""

SPARE = "/dev/vda"

MEMORY = 2048
CPUS = 2


class MachineFailed(Exception):
    """The machine, or a command in it, did not do what it was to."""


class Machine:
    """One host, from ``boot()`` on; as a context manager it is booted, and gone afterwards."""

    address = "127.0.0.1"

    def __init__(self) -> None:
        self._resources = ExitStack()
        self.image = self._resources.enter_context(image())
        with alone():
            self.directory = Path(tempfile.mkdtemp(prefix="run-", dir=cache()))
            self._in_use = use(self.directory)
        self._resources.callback(shutil.rmtree, self.directory)
        self._resources.callback(os.close, self._in_use)
        self.port = 0
        self.key = self.directory / "key"
        self._console = self.directory / "console"
        self._qemu: subprocess.Popen[bytes] | None = None
        self._boot_id = ""
        self._disk = self.directory / "disk.qcow2"
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b"]
        subprocess.run([*make, self.image.disk, self._disk], check=True)
        self._spare = self.directory / "spare.raw"
        with self._spare.open("wb") as spare:
            spare.truncate(64 << 20)
        shutil.copy(self.image.key, self.key)

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    # -- power ----------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on, and wait until systemd has started everything."""
        began = time.monotonic()
        self._switch_on()
        self._wait_for_boot(began)

    def reboot(self) -> None:
        """As an admin does it."""
        began = time.monotonic()
        self.run("systemctl reboot", check=False)
        self._wait_for_boot(began)

    def cut_power(self) -> None:
        """From one instant to the next; what nobody synced went with its memory."""
        assert self._qemu
        self._qemu.kill()
        log.info("the power was cut")
        self._qemu.wait()
        self._qemu = None
        self._hang_up()

    def remove(self) -> None:
        """End it, and leave nothing of it."""
        if self._qemu:
            self.cut_power()
        self._resources.close()

    # -- doing things in it -----------------------------------------------------------------------

    def run(
        self,
        command: str,
        *,
        check: bool = True,
        timeout: float = PATIENCE,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
    ) -> subprocess.CompletedProcess[str]:
        """A line of shell, as root. ``check``: raise MachineFailed for a status other than 0."""
        done = self._ssh(command, timeout=timeout, input=input)
        if check and done.returncode:
            raise MachineFailed(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def copy_in(self, file: Path, where: str) -> None:
        """A file of this machine, to a path or a directory in that one."""
        self._copy(str(file), f"root@{self.address}:{where}")

    def copy_out(self, path: str, where: Path) -> None:
        """A file of that machine, to a path or a directory in this one."""
        self._copy(f"root@{self.address}:{path}", str(where))

    @property
    def ssh_options(self) -> list[str]:
        """For ssh and scp: who it is, and how it is reached."""
        options = {
            "Port": self.port,
            "IdentityFile": self.key,
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            # It is a new host with each image, on a port of this machine's own.
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": 30,
            "ServerAliveInterval": 15,
            "ServerAliveCountMax": 8,
        }
        return ["-F", "none", *(f"-o{name}={value}" for name, value in options.items())]

    @property
    def console(self) -> str:
        """What the kernel and systemd said on the console since it was switched on."""
        return self._console.read_text(errors="replace")

    # -- inside -----------------------------------------------------------------------------------

    def _switch_on(self) -> None:
        # Between the choice of a port and its use another program may take it.
        for _ in range(5):
            self.port = _free_port()
            self._qemu = subprocess.Popen(
                # It ends with this process, however that ends.
                ["setpriv", "--pdeathsig", "KILL", *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=(said := (self.directory / "qemu.log").open("wb")),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            said.close()
            if self._has_port():
                log.info("booting; ssh on port %d", self.port)
                return
        raise MachineFailed((self.directory / "qemu.log").read_text())

    def _command(self) -> list[str]:
        if _has_kvm():
            processor = ["-accel", "kvm", "-cpu", "host"]
        else:
            # Without la57: emulating a fifth level of page tables costs, and gives nothing.
            processor = ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off"]
        # What the guest syncs need not be on this machine's disk: here nobody cuts the power.
        disk = "cache.no-flush=on,file.cache.no-flush=on"
        network = f"user,id=net,hostfwd=tcp:{self.address}:{self.port}-:22"
        kernel = "root=/dev/nvme0n1 rw console=ttyS0 quiet mitigations=off cryptomgr.notests"
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35,usb=off,vmport=off", *processor),
            *("-smp", str(CPUS), "-m", str(MEMORY)),
            *("-kernel", str(self.image.kernel), "-append", kernel),
            *(
                "-blockdev",
                f"qcow2,node-name=disk,file.driver=file,file.filename={self._disk},{disk}",
            ),
            *("-device", "nvme,drive=disk,serial=root"),
            *(
                "-blockdev",
                f"raw,node-name=spare,file.driver=file,file.filename={self._spare},{disk}",
            ),
            *("-device", "virtio-blk-pci,drive=spare"),
            *("-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-device", "virtio-rng-pci", "-serial", f"file:{self._console}"),
        ]

    def _has_port(self) -> bool:
        """QEMU runs and holds the port; false: it ended."""
        assert self._qemu
        while self._qemu.poll() is None:
            with suppress(OSError), socket.create_connection((self.address, self.port), 5):
                return True
            time.sleep(0.05)
        return False

    def _wait_for_boot(self, began: float) -> None:
        while (boot_id := self._ask_boot_id()) in {"", self._boot_id}:
            if (
                time.monotonic() > began + PATIENCE
                or not self._qemu
                or self._qemu.poll() is not None
            ):
                raise MachineFailed(f"it did not boot:\n{self.console[-4000:]}")
            time.sleep(0.2)
        self._boot_id = boot_id
        state = self.run("systemctl is-system-running --wait", check=False).stdout.strip()
        log.info("up after %.0f s: %s", time.monotonic() - began, state)

    def _ask_boot_id(self) -> str:
        self._hang_up()
        with suppress(subprocess.TimeoutExpired):
            return self._ssh("cat /proc/sys/kernel/random/boot_id", timeout=60).stdout.strip()
        return ""

    def _ssh(
        self,
        command: str,
        *,
        timeout: float,
        input: str | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:
        """One connection serves all: to open it takes seconds where the machine is emulated."""
        shared = ["-oControlMaster=auto", f"-oControlPath={self._control}", "-oControlPersist=yes"]
        return subprocess.run(
            ["ssh", *self.ssh_options, *shared, f"root@{self.address}", "--", command],
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=False,
            timeout=timeout,
            **({"stdin": subprocess.DEVNULL} if input is None else {"input": input}),
        )

    def _hang_up(self) -> None:
        if self._control.exists():
            leave = ["ssh", "-F", "none", f"-oControlPath={self._control}", "-O", "exit", "host"]
            subprocess.run(leave, capture_output=True, check=False, timeout=30)
            self._control.unlink(missing_ok=True)

    @property
    def _control(self) -> Path:
        """The socket of the connection: in ``directory``, by a name as short as sockets need it."""
        return Path(f"/proc/{os.getpid()}/fd/{self._in_use}/ssh")

    def _copy(self, source: str, target: str) -> None:
        copy = ["scp", "-q", *self.ssh_options, f"-oControlPath={self._control}", source, target]
        done = subprocess.run(copy, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode:
            raise MachineFailed(f"{source} to {target}: {done.stderr}")


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind((Machine.address, 0))
        return int(unused.getsockname()[1])


def _has_kvm() -> bool:
    """Whether the processor has it. Where it is software, emulating is faster."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and bool(flags & {"vmx", "svm"})
