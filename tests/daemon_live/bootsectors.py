"""Guests of one sector: 16 bits of code that the BIOS loads from the disk and runs.

They do what a bare BIOS doesn't: obey the power button, go to sleep, reboot by themselves, tell
that they run. The ports are those of QEMU's `pc` machine: PIIX4 power management at 0x600.
"""

from __future__ import annotations

from pathlib import Path

_SECTOR = 512
#: hlt; jmp back to it
_IDLE = "f4 eb fd"

#: Turns itself off when the power button is pressed: it enables the event, writes a byte to its
#: serial port, and polls.
OBEDIENT = f"""
    ba 02 06 b8 00 01 ef        mov dx, 0x602; mov ax, 0x100; out dx, ax
    ba f8 03 b0 2e ee           mov dx, 0x3f8; mov al, '.'; out dx, al
    ba 00 06 ed f6 c4 01 74 f7  again: mov dx, 0x600; in ax, dx; test ah, 1; jz again
    ba 04 06 b8 00 20 ef        mov dx, 0x604; mov ax, 0x2000; out dx, ax
    {_IDLE}                     hlt
"""

#: Suspends itself to RAM (S3), once: a wake-up boots it again, and the clock's RAM remembers.
SLEEPY = f"""
    b0 40 e6 70 e4 71 3c 5a     mov al, 0x40; out 0x70, al; in al, 0x71; cmp al, 0x5a
    74 0b                       je idle
    b0 5a e6 71                 mov al, 0x5a; out 0x71, al
    ba 04 06 b8 00 24 ef        mov dx, 0x604; mov ax, 0x2400; out dx, ax
    {_IDLE}                     idle: hlt
"""

#: Resets itself as soon as it has booted, for ever.
RESTLESS = f"""
    b0 fe e6 64                 mov al, 0xfe; out 0x64, al
    {_IDLE}                     hlt
"""

#: Writes to its first serial port, for ever, pausing some thousand turns of a loop in between.
TALKATIVE = """
    ba f8 03                    mov dx, 0x3f8
    b0 2e ee                    again: mov al, '.'; out dx, al
    b9 00 40 e2 fe              mov cx, 0x4000; wait: loop wait
    eb f6                       jmp again
"""

#: Writes one byte to its serial port, then rewrites half a megabyte of its memory, for ever.
BUSY = """
    ba f8 03 b0 2e ee           mov dx, 0x3f8; mov al, '.'; out dx, al
    b8 00 10                    again: mov ax, 0x1000
    8e c0 31 ff                 next: mov es, ax; xor di, di
    26 ff 05 81 c7 00 10 75 f7  page: inc word [es:di]; add di, 0x1000; jnz page
    05 00 10 3d 00 90 72 ea     add ax, 0x1000; cmp ax, 0x9000; jb next
    eb e5                       jmp again
"""


def write(path: Path, program: str) -> Path:
    """Make ``path`` a disk that runs one of these programs."""
    code = b"".join(_bytes_of(line) for line in program.strip().splitlines())
    path.write_bytes(code.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa" + bytes(2047 * _SECTOR))
    return path


def _bytes_of(line: str) -> bytes:
    """The leading words of a listing that are bytes in hexadecimal."""
    code = bytearray()
    for word in line.split():
        if len(word) != 2 or set(word) - set("0123456789abcdef"):
            break
        code.append(int(word, 16))
    return bytes(code)
