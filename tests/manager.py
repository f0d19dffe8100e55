"""A service manager that hears what a daemon says."""

from __future__ import annotations

import select
import socket
import threading
from pathlib import Path


class Manager:
    """systemd's side of sd_notify(3): a datagram socket, which must hear everything.

    All the time, as systemd does: after ten messages that nobody took, who sends one is blocked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._turn = threading.Lock()
        self._end, self._ended = socket.socketpair()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def lines(self) -> list[str]:
        """All that was said before this was called."""
        with self._turn:
            try:
                while True:
                    self.heard += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return list(self.heard)

    def count(self, line: str) -> int:
        return self.lines().count(line)

    def close(self) -> None:
        self._end.close()
        self._listener.join()
        self._ended.close()
        self._socket.close()
        self.path.unlink()

    def _listen(self) -> None:
        while self._ended not in select.select([self._socket, self._ended], [], [])[0]:
            self.lines()
