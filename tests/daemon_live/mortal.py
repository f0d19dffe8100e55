"""bootlockd that kills itself with SIGKILL at the nth boundary of what it does for an instance.

Run inside a private host with the settings' path. It reads lines from standard input:

    N    become a daemon that dies at its Nth boundary, and then say ``died``; 0: one that does not
    end  end that daemon if it lives, and print the boundaries that it has crossed, as JSON

The boundaries are the begin and the end of every call of a fence, of everything that the power
fence does to a domain, and of every report to the database. The daemon is a forked child, so that
dozens of deaths don't cost dozens of start-ups.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bootlockd import config, registry, service
from bootlockd.config import Config
from bootlockd.fences import power
from bootlockd.fences.base import Fence
from bootlockd.values import Case, Outcome
from lockdb import enforcements
from lockdb.enforcements import Enforcement


class Boundaries:
    """Counts them, writes their names to a pipe, and ends the process at the ``fatal`` one."""

    def __init__(self, fatal: int, pipe: int) -> None:
        self._left = fatal
        self._pipe = pipe

    def cross(self, name: str) -> None:
        os.write(self._pipe, f"{name}\n".encode())
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            self.cross(f"before {name}")
            result = call(*args, **named)
            self.cross(f"after {name}")
            return result

        return wrapped


class MortalFence:
    """A fence, with a boundary before and after each of its calls that do or look."""

    def __init__(self, fence: Fence, boundaries: Boundaries) -> None:
        self._fence = fence
        self._boundaries = boundaries
        self.name = fence.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fence, name)

    def apply(self, case: Case) -> Outcome:
        return self._boundaries.around(f"{self.name} apply", self._fence.apply)(case)  # type: ignore[no-any-return]

    def verify(self, case: Case) -> Outcome:
        return self._boundaries.around(f"{self.name} verify", self._fence.verify)(case)  # type: ignore[no-any-return]

    def lift(self, case: Case) -> Outcome:
        return self._boundaries.around(f"{self.name} lift", self._fence.lift)(case)  # type: ignore[no-any-return]


def serve(settings: Config, boundaries: Boundaries) -> None:
    """Be the daemon, until killed."""

    def fences(settings: Config) -> Sequence[Fence]:
        return [MortalFence(fence, boundaries) for fence in registry.fences(settings)]

    def record(lock_db: Any, rows: Sequence[Enforcement]) -> list[Enforcement]:
        states = ",".join(sorted({row.state for row in rows}))
        told: list[Enforcement] = boundaries.around(f"report {states}", original)(lock_db, rows)
        return told

    original = enforcements.record
    enforcements.record = record  # type: ignore[assignment]
    service.fences = fences  # type: ignore[assignment,attr-defined]
    power._act = boundaries.around("power acts", power._act)
    service.Service(settings).run()


def main() -> None:
    settings = config.load(Path(sys.argv[1]))
    while line := _line():
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            serve(settings, Boundaries(int(line), writing))
            os._exit(1)
        os.close(writing)
        crossed = _follow(child, reading)
        os.waitpid(child, 0)
        os.close(reading)
        print(json.dumps(crossed), flush=True)


def _follow(child: int, reading: int) -> list[str]:
    """Until it is to end: the boundaries it has crossed."""
    crossed = b""
    open_ends = [reading, 0]
    while 0 in open_ends or reading in open_ends:
        ready, _, _ = select.select(open_ends, [], [])
        if 0 in ready:
            assert _line() in {"end", ""}
            os.kill(child, signal.SIGKILL)
            open_ends.remove(0)
        if reading in ready:
            more = os.read(reading, 65536)
            crossed += more
            if not more:
                open_ends.remove(reading)
                print("died", flush=True)
    return crossed.decode().splitlines()


def _line() -> str:
    """The next line of standard input, and not a byte more: ``select`` knows of no buffer."""
    line = b""
    while (byte := os.read(0, 1)) not in {b"", b"\n"}:
        line += byte
    return line.decode()


if __name__ == "__main__":
    main()
