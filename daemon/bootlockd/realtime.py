"""Real-time priority without the privilege to take it.

systemd starts the daemon under SCHED_RR (``CPUSchedulingPolicy=``). Giving that up takes no
privilege, and a thread or a process begins with what its maker has. So one thread keeps it, makes
those that must be fast whenever they are needed, and does nothing else; all others are ordinary.

Without systemd, as root, those that must be fast take it themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Made = TypeVar("_Made")

#: Above everything ordinary, below what kernels and audio use. The unit names the same.
PRIORITY = 5

#: The thread that has kept it, if there is one.
_keeper: ThreadPoolExecutor | None = None


def keep() -> None:
    """Keep what priority this process was started with in a thread of its own.

    Called while there is only the calling thread, which is ordinary afterwards.
    """
    global _keeper  # noqa: PLW0603 - a process is started with it once
    if _keeper or not _have():
        return
    _keeper = ThreadPoolExecutor(1, "real-time")
    # It makes its thread when there is something to do.
    _keeper.submit(_have).result()
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def make(maker: Callable[[], _Made]) -> _Made:
    """Call ``maker``, which starts a thread or a process: if any was kept, with that priority."""
    return _keeper.submit(maker).result() if _keeper else maker()


def take() -> None:
    """For a thread that must be fast: take it, unless it was made with it. Raises OSError."""
    if not _have():
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))


def _have() -> bool:
    policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    return policy in {os.SCHED_RR, os.SCHED_FIFO}
