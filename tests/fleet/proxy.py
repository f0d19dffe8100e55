"""Something in between that can keep a request for a while, or swallow everything.

A relay or a host is given its address instead of a member's.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Passes connections on to one member; a context manager."""

    def __init__(self, member: str) -> None:
        address = urlsplit(member)
        assert address.hostname
        assert address.port
        self._member = address.hostname, address.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._wanted = b""
        self._go = threading.Event()
        #: Nothing passes, and nobody is told: as a cable that was cut.
        self.is_cut = False
        #: A request that was to be caught is kept.
        self.caught = threading.Event()
        #: The member has answered to it, after it was let go.
        self.answered = threading.Event()

    @property
    def url(self) -> str:
        """What to give as endpoint."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._go.set()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def catch(self, words: bytes) -> None:
        """Keep the next request with these words in it."""
        self._wanted = words

    def let_go(self) -> None:
        """Let it go to the member."""
        self._go.set()

    def _run(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                asking, _ = self._listener.accept()
                try:
                    answering = socket.create_connection(self._member)
                except ConnectionRefusedError:
                    asking.close()
                    continue
                self._sockets += [asking, answering]
                was_caught = threading.Event()
                self._run(self._ask, asking, answering, was_caught)
                self._run(self._answer, answering, asking, was_caught)

    def _ask(
        self, asking: socket.socket, answering: socket.socket, was_caught: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := asking.recv(65536):
                if self._wanted and self._wanted in data:
                    self._wanted = b""
                    self.caught.set()
                    self._go.wait()
                    was_caught.set()
                if not self.is_cut:
                    answering.sendall(data)
            answering.shutdown(socket.SHUT_RDWR)

    def _answer(
        self, answering: socket.socket, asking: socket.socket, was_caught: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := answering.recv(65536):
                if not self.is_cut:
                    asking.sendall(data)
                if was_caught.is_set():
                    self.answered.set()
            # The member has hung up.
            asking.shutdown(socket.SHUT_RDWR)
