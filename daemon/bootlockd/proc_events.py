"""The kernel's process events (its proc connector, cn_proc): every exec on this host, at once.

A raw netlink socket: through pyroute2 the same events cost five times the CPU and come later. A
filter in the kernel lets only EXEC through, so that a host full of forking shells wakes nobody.

The kernel tells these events only to root in the first network and PID namespaces. In another
network namespace subscribing fails (ECONNREFUSED); in another PID namespace it is ignored in
silence. So who subscribes must prove that events arrive before relying on them.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import socket
import struct
from dataclasses import dataclass

log = logging.getLogger(__name__)

#: From linux/netlink.h, linux/connector.h, linux/cn_proc.h and asm-generic/socket.h.
_NETLINK_CONNECTOR = 11
_CN_IDX_PROC = 1
_CN_VAL_PROC = 1
_LISTEN = 1
_IGNORE = 2
_EVENT_EXEC = 2
_NLMSG_DONE = 3
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33

#: struct nlmsghdr, struct cn_msg.
_NETLINK = struct.Struct("=IHHII")
_CONNECTOR = struct.Struct("=IIIIHH")
#: struct proc_event of an exec: what, cpu, timestamp_ns, process_pid, process_tgid.
_EXEC = struct.Struct("=IIQII")
_EVENT_AT = _NETLINK.size + _CONNECTOR.size

#: About 300,000 execs: with 32 MiB a reader that was stopped for a second lost nothing.
_BUFFER = 32 << 20
_DATAGRAM = 4096
#: Read at once, before the reader looks whether it is to stop.
_BATCH = 64


@dataclass(frozen=True)
class Exec:
    """A process has become another program. ``at``: when, in nanoseconds of CLOCK_MONOTONIC."""

    pid: int
    at: int


class EventsLost(Exception):
    """The reader was too slow: the only way to know what happened is to look."""


class ProcEvents:
    """A subscription, until closed. Raises OSError if the kernel refuses it."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_CONNECTOR
        )
        try:
            self._attach_filter()
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._socket.bind((0, _CN_IDX_PROC))
            self._tell(_LISTEN)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For poll()."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the subscription."""
        try:
            self._tell(_IGNORE)
        except OSError as error:
            # Closing ends it as well; older kernels then go on counting a listener.
            log.debug("process events: %s", error)
        self._socket.close()

    def read(self) -> list[Exec]:
        """What has arrived; does not block. Raises EventsLost."""
        found: list[Exec] = []
        while len(found) < _BATCH:
            try:
                data, (sender, _groups) = self._socket.recvfrom(_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise EventsLost from None
                raise
            # Only the kernel has port 0: nobody else may tell of processes.
            if sender == 0 and (event := parse(data)):
                found.append(event)
        return found

    def _tell(self, operation: int) -> None:
        message = _CONNECTOR.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, 4, 0)
        message += struct.pack("=I", operation)
        header = _NETLINK.pack(_NETLINK.size + len(message), _NLMSG_DONE, 0, 0, os.getpid())
        self._socket.sendto(header + message, (0, 0))

    def _attach_filter(self) -> None:
        program = filter_program()
        code = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog; the kernel copies the code during the call.
        described = struct.pack("HL", len(program) // 8, ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def filter_program() -> bytes:
    """Classic BPF: the whole datagram if its ``what`` is EXEC, else nothing."""
    # BPF loads words in network order, the kernel wrote this one in the machine's.
    wanted = int.from_bytes(struct.pack("=I", _EVENT_EXEC), "big")
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, _EVENT_AT),  # load the word at this offset
            (0x15, 0, 1, wanted),  # equal: go on; else skip one
            (0x06, 0, 0, 0xFFFFFFFF),  # accept
            (0x06, 0, 0, 0),  # drop
        )
    )


def parse(datagram: bytes) -> Exec | None:
    """The exec that a datagram tells of; None if it is something else."""
    if len(datagram) < _EVENT_AT + _EXEC.size:
        return None
    what, _cpu, at, _pid, process = _EXEC.unpack_from(datagram, _EVENT_AT)
    return Exec(process, at) if what == _EVENT_EXEC else None
