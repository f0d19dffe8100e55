"""What a process has used so far, from /proc: processor time, wake-ups, memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Totals since the process began, or the difference of two; memory is as it is."""

    #: Processor time, of all its threads, those that have ended too.
    seconds: float
    #: Times that a thread went to sleep or was sent to; of the threads that there are.
    switches: int
    memory: str

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.seconds - earlier.seconds, self.switches - earlier.switches, self.memory)

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s of processor time, {self.switches} switches"


def of(pid: int) -> Usage:
    """The usage of a process."""
    process = Path(f"/proc/{pid}")
    ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    seconds = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return Usage(seconds, sum(map(_switches, process.glob("task/*"))), _memory(process))


def _switches(task: Path) -> int:
    try:
        lines = (task / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def _memory(process: Path) -> str:
    sizes = {}
    for line in (process / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in {"VmRSS", "RssAnon", "RssFile"}:
            sizes[name] = int(value.split()[0]) / 1024
    return (
        f"resident {sizes['VmRSS']:.0f} MiB: {sizes['RssAnon']:.0f} its own (Python's objects, the"
        f" modules' code), {sizes['RssFile']:.0f} of files shared with others (libraries)"
    )
