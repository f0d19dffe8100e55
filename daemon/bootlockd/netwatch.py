"""The network fence's watcher: one thread that cuts again before anything else is asked.

It hears of links and of our rules by netlink. After a new device it looks, every few milliseconds
for some seconds, whether a guarded process has opened it: a guest gets its device from libvirt
later than QEMU gets the descriptor, so it is cut before the guest can use it. Devices that turn
out to be others' are never touched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from bootlockd import guestnics, links, realtime
from bootlockd.errors import BootlockdError
from bootlockd.links import Changes, Link, NetlinkEvents
from bootlockd.values import Guest

log = logging.getLogger(__name__)

#: Seconds for which a new device is looked for in guarded processes, at first more often, and
#: between two looks.
CHASE = 5.0
CHASE_CLOSELY = 1.0
CHASE_STEP = 0.004
CHASE_LATE_STEP = 0.025

#: A look that takes long makes the pause longer, by this factor: at most a fifth of one core.
CHASE_SHARE = 4

#: Seconds until what failed is tried again: often something was only just going or coming.
SHORTEST_REST = 0.005
LONGEST_REST = 1.0


class Guarded(Protocol):
    """What the watcher needs of the fence."""

    def targets(self) -> dict[str, Guest]:
        """The instances that are guarded."""

    def owners(self, link: Link) -> set[str]:
        """The instances that a link belongs to, by its index or its name."""

    def knows(self, instance: str, link: Link) -> bool:
        """Whether this very link was cut for the instance."""

    def has_cut(self, instance: str, devices: set[str | int]) -> bool:
        """Whether all these devices, by name or index, were cut for the instance."""

    def cut(self, instances: Iterable[str]) -> set[str]:
        """Make it so that all devices of these are cut. Those that were not."""

    def set_down(self, instance: str, found: Iterable[Link]) -> bool:
        """Set links down, if that is configured."""

    def woken(self, instances: Iterable[str], reason: str) -> None:
        """Have the instances' jobs look."""

    def guard(self, isolated: Mapping[str, Guest | None]) -> None:
        """Guard these and look out for those without a guest."""

    def discover(self, *, search: bool = False) -> set[str]:
        """Guard those that were looked out for and are found to run. Who they are."""

    def sweep(self, known: set[str]) -> None:
        """Undo what is cut for instances whose holds ended unseen."""


@dataclass(frozen=True)
class _Followed:
    """What the cycle has seen: all instances, and those to be isolated."""

    known: set[str]
    isolated: Mapping[str, Guest | None]


class NetWatch:
    """``start`` it, ``stop`` it; the rest happens in its thread."""

    def __init__(self, fence: Guarded) -> None:
        self._fence = fence
        self._events = NetlinkEvents()
        self._stopping = False
        self._seen: set[int] = set()
        self._chase_until = 0.0
        self._chase_pause = CHASE_STEP
        self._all_again = True
        self._rest = 0.0
        self._followed: SimpleQueue[_Followed] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="network watch", daemon=True)

    @property
    def is_alive(self) -> bool:
        """It watches."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        realtime.make(self._thread.start)

    def stop(self) -> None:
        """End, and wait for the end."""
        self._stopping = True
        self._events.wake()
        self._thread.join()
        self._events.close()

    def follow(self, known: set[str], isolated: Mapping[str, Guest | None]) -> None:
        """From any thread: guard ``isolated``; have looked for what belongs to none of ``known``.

        ``isolated`` has the guests that libvirt shows, and None for one that it does not.
        """
        self._followed.put(_Followed(known, isolated))
        self._events.wake()

    def _run(self) -> None:
        _hurry()
        self._try(lambda: self._seen.update(link.index for link in links.links().values()))
        while not self._stopping:
            changes = self._events.wait(self._pause())
            self._try(lambda told=changes: self._react(told))

    def _try(self, action: object) -> None:
        assert callable(action)
        try:
            action()
        except Exception as error:
            # Whatever it was, the thread must go on: nobody else is as quick.
            level = logging.WARNING if isinstance(error, BootlockdError) else logging.ERROR
            log.log(level, "network watch: %s: %s", type(error).__name__, error)
            self._all_again = True
            self._fence.woken(self._fence.targets(), "network watch failed")
            self._rest = min(max(2 * self._rest, SHORTEST_REST), LONGEST_REST)
            time.sleep(self._rest)
        else:
            self._rest = 0.0

    def _pause(self) -> float | None:
        if self._all_again:
            return 0.0
        return self._chase_pause if self._chases else None

    @property
    def _chases(self) -> bool:
        return time.monotonic() < self._chase_until

    def _react(self, changes: Changes) -> None:
        everything = self._all_again or changes.rules or changes.lost
        self._all_again = False
        followed = self._last_followed()
        if followed:
            self._fence.guard(followed.isolated)
        if followed or everything:
            self._cut(self._fence.discover(search=True), "found without libvirt")
        concerned = set(self._fence.targets()) if everything else set()
        for link in changes.links:
            concerned |= self._linked(link)
        self._cut(concerned, "rules" if everything else "links")
        if self._chases:
            self._chase()
        if followed:
            self._fence.sweep(followed.known)

    def _last_followed(self) -> _Followed | None:
        last = None
        with suppress(Empty):
            while True:
                last = self._followed.get_nowait()
        return last

    def _linked(self, link: Link) -> set[str]:
        """Do at once what one link needs; the instances whose rules have to be looked at too."""
        owners = self._fence.owners(link)
        if link.is_gone:
            self._seen.discard(link.index)
            return owners
        if link.index not in self._seen:
            self._seen.add(link.index)
            self._chase_until = time.monotonic() + CHASE
        unknown = set()
        for instance in owners:
            if not self._fence.knows(instance, link):
                unknown.add(instance)
            elif link.is_up and self._fence.set_down(instance, [link]):
                log.warning("instance=%s device=%s was set up: down again", instance, link.name)
                self._fence.woken([instance], f"{link.name} was set up")
        return unknown

    def _chase(self) -> None:
        began = time.monotonic()
        self._cut(self._fence.discover(), "found without libvirt")
        new = {
            instance
            for instance, guest in self._fence.targets().items()
            if not self._fence.has_cut(instance, guestnics.glimpse(guest))
        }
        self._cut(new, "new device")
        took = time.monotonic() - began
        fresh = began < self._chase_until - CHASE + CHASE_CLOSELY
        self._chase_pause = max(CHASE_STEP if fresh else CHASE_LATE_STEP, CHASE_SHARE * took)

    def _cut(self, instances: set[str], reason: str) -> None:
        changed = self._fence.cut(instances) if instances else set()
        for instance in changed:
            log.warning("instance=%s cut again: %s", instance, reason)
        self._fence.woken(changed, f"cut again: {reason}")


def _hurry() -> None:
    """Run before whatever loads the host, and with us the nft processes that this thread starts."""
    try:
        realtime.take()
    except OSError as error:
        log.info("network watch: at ordinary priority, slower on a loaded host: %s", error)
