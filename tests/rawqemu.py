"""QEMUs started past libvirt, with a guest that tells whether it ever ran.

The guest is a ROM whose first instructions write one byte to QEMU's debug port, which QEMU appends
to a file. So the file holds a byte exactly if the guest's first instruction has run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

QEMU = Path("/usr/bin/qemu-system-x86_64")

_ROM_SIZE = 64 << 10
#: Where the processor begins: mov al,'X'; out 0xe9,al; then hlt for ever.
_RESET = bytes.fromhex("b058 e6e9 f4 ebfd").ljust(16, b"\0")


class RawQemu:
    """Command lines for one such guest, whose files are in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._rom = directory / "rom"
        self._rom.write_bytes(bytes(_ROM_SIZE - len(_RESET)) + _RESET)
        self.output = directory / "output"

    @property
    def ran(self) -> bool:
        """The guest's first instruction has run."""
        return self.output.exists() and self.output.stat().st_size > 0

    def arguments(self, *more: str | Path, uuid: str | None = None) -> list[str]:
        """All but the program."""
        known = ["-uuid", uuid] if uuid else []
        return [
            *known,
            *("-machine", "pc,accel=kvm:tcg", "-m", "16", "-nodefaults", "-no-user-config"),
            *("-display", "none", "-bios", str(self._rom)),
            *("-chardev", f"file,id=out,path={self.output}"),
            *("-device", "isa-debugcon,iobase=0xe9,chardev=out"),
            *map(str, more),
        ]

    def domain_xml(self, name: str, uuid: str) -> str:
        """The same guest as a domain of libvirt's."""
        return (
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
            f"<name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory>"
            "<os><type arch='x86_64' machine='pc'>hvm</type>"
            f"<loader readonly='yes' type='rom'>{self._rom}</loader></os>"
            "<devices><controller type='usb' model='none'/><memballoon model='none'/></devices>"
            "<qemu:commandline>"
            "<qemu:arg value='-chardev'/>"
            f"<qemu:arg value='file,id=out,path={self.output}'/>"
            "<qemu:arg value='-device'/>"
            "<qemu:arg value='isa-debugcon,iobase=0xe9,chardev=out'/>"
            "</qemu:commandline></domain>"
        )

    def start(
        self, *more: str | Path, uuid: str | None = None, program: Sequence[str | Path] = (QEMU,)
    ) -> subprocess.Popen[bytes]:
        """Start it by hand. The caller ends and reaps it."""
        return subprocess.Popen(
            [*map(str, program), *self.arguments(*more, uuid=uuid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
