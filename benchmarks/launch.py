"""Starting a hook and taking the time until it is reaped, in two ways.

``LibvirtLauncher`` is libvirt's own code, ``virCommandRun``, called as ``virHookCall`` calls it:
fork, close what is not the hook's, exec, the XML through a pipe, stdout and stderr read to their
end, wait. What comes out is how long libvirt waits for a hook. A fork takes the longer the more
memory a process has, so this is done by a process that has hardly more than that library, and is
about as big as a libvirtd.

``spawn`` is the cheapest way Linux has, ``posix_spawn``: nothing but the hook itself.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

#: What libvirt leaves of the environment.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}


_SOURCES = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """One process from its start until it was reaped."""

    seconds: float
    status: int


Launcher = Callable[[Sequence[str], bytes], Run]


def spawn(argv: Sequence[str], document: bytes) -> Run:
    """Start a hook by ``posix_spawn``."""
    stdin, feed = os.pipe()
    said, stderr = os.pipe()
    streams = [
        (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    ]
    begin = time.perf_counter()
    pid = os.posix_spawn(
        argv[0], list(argv), ENVIRONMENT, file_actions=streams, setsigdef=[signal.SIGPIPE]
    )
    os.close(stdin)
    os.close(stderr)
    with suppress(BrokenPipeError), open(feed, "wb") as pipe:  # a hook need not read its XML
        pipe.write(document)
    with open(said, "rb") as pipe:
        pipe.read()
    _, status = os.waitpid(pid, 0)
    return Run(time.perf_counter() - begin, os.waitstatus_to_exitcode(status))


class LibvirtLauncher:
    """A process that starts hooks as libvirt does. A context manager; called like ``spawn``."""

    def __enter__(self) -> Self:
        self._connection, theirs = multiprocessing.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "benchmarks.launch", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=_SOURCES,
        )
        theirs.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.wait()

    def __call__(self, argv: Sequence[str], document: bytes) -> Run:
        """Start a hook and wait for it."""
        self._connection.send((argv, document))
        return Run(*self._connection.recv())


def _serve(connection: Connection) -> None:
    """Be that process, until the connection is closed."""
    launch = _LibvirtCommand()
    with suppress(EOFError):
        while True:
            run = launch(*connection.recv())
            connection.send((run.seconds, run.status))


class _LibvirtCommand:
    """Starts a hook by libvirt's ``virCommandRun``.

    A private function of libvirt's library, but an exported one, and in every version of the last
    ten years: the only way to time what libvirt does without a libvirtd in between.
    """

    def __init__(self) -> None:
        self._libvirt = library = ctypes.CDLL("libvirt.so.0")
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        library.virCommandNewArgs.restype = pointer
        library.virCommandNewArgs.argtypes = [ctypes.POINTER(text)]
        library.virCommandAddEnvPassCommon.argtypes = [pointer]
        library.virCommandSetInputBuffer.argtypes = [pointer, text]
        library.virCommandRun.argtypes = [pointer, ctypes.POINTER(ctypes.c_int)]
        library.virCommandFree.argtypes = [pointer]
        library.virInitialize()

    def __call__(self, argv: Sequence[str], document: bytes) -> Run:
        arguments = [*map(os.fsencode, argv), None]
        command = self._libvirt.virCommandNewArgs((ctypes.c_char_p * len(arguments))(*arguments))
        try:
            self._libvirt.virCommandAddEnvPassCommon(command)
            self._libvirt.virCommandSetInputBuffer(command, document)
            status = ctypes.c_int(-1)
            begin = time.perf_counter()
            failed = self._libvirt.virCommandRun(command, ctypes.byref(status))
            seconds = time.perf_counter() - begin
        finally:
            self._libvirt.virCommandFree(command)
        if failed:
            raise OSError(f"libvirt could not run {argv[0]}")
        return Run(seconds, status.value)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
