"""The threads that hear of libvirt's events: nothing ends them, and nothing is worn out by them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import libvirt
import pytest

from bootlockd import events, hypervisor
from bootlockd.errors import NoSuchDriver, Unreachable
from bootlockd.events import EventFeeder
from bootlockd.values import Wake
from waiting import wait_until

HERE = "test:///default"


@contextmanager
def feeding(feeder: EventFeeder) -> Iterator[None]:
    feeder.start()
    try:
        yield
    finally:
        feeder.stop()


class Connecting:
    """Stands for the opening of a connection: fails as told, and notes when it was tried."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure
        self.tried: list[float] = []

    @contextmanager
    def __call__(self, _uri: str) -> Iterator[None]:
        self.tried.append(time.monotonic())
        raise self.failure
        yield


class Silent:
    """A connection that takes everything and tells nothing."""

    def setKeepAlive(self, *_: object) -> None:  # noqa: N802 - libvirt's name
        pass

    def registerCloseCallback(self, *_: object) -> None:  # noqa: N802 - libvirt's name
        pass

    def domainEventRegisterAny(self, *_: object) -> None:  # noqa: N802 - libvirt's name
        pass


def test_libvirts_loop_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its thread no event would ever come again, and nobody would know."""
    monkeypatch.setattr(events, "LOOP_RETRY", 0.0)
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise libvirt.libvirtError("an error of its own")
        if turns == 3:
            raise SystemExit

    monkeypatch.setattr(libvirt, "virEventRunDefaultImpl", turn)
    with pytest.raises(SystemExit):
        events._run_forever()
    assert turns == 3


def test_what_nobody_foresaw_does_not_end_the_feeder(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = Connecting(ZeroDivisionError("a defect"))
    monkeypatch.setattr(events, "connection_to", connecting)
    with feeding(EventFeeder(HERE, lambda _wake: None)):
        wait_until(lambda: len(connecting.tried) >= 3, "it tries again")


def test_one_that_breaks_each_connection_is_left_alone_longer_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each connection has everything looked at, and a canary tried."""
    monkeypatch.setattr(events, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(events, "connection_to", lambda _uri: nullcontext(Silent()))
    wakes: list[float] = []

    def woken(_wake: Wake) -> None:
        wakes.append(time.monotonic())
        feeder._lost.set()

    feeder = EventFeeder(HERE, woken)
    with feeding(feeder):
        wait_until(lambda: len(wakes) >= 6, "it connects again and again")
    pauses = [later - earlier for earlier, later in pairwise(wakes)]
    assert pauses[4] > 4 * pauses[0]


def test_a_driver_that_is_not_here_is_tried_again_when_another_one_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = hypervisor.Drivers()
    monkeypatch.setattr(known, "is_absent", lambda _uri: True)
    monkeypatch.setattr(events, "drivers", known)
    connecting = Connecting(NoSuchDriver("xen:///system: no such driver"))
    monkeypatch.setattr(events, "connection_to", connecting)
    feeder = EventFeeder("xen:///system", lambda _wake: None)
    with feeding(feeder):
        wait_until(lambda: connecting.tried, "it tries")
        # Ordinary ones would be over by now, ten times.
        time.sleep(2.0)
        assert len(connecting.tried) == 1
        connecting.failure = Unreachable("still nobody")
        feeder.again()
        wait_until(lambda: len(connecting.tried) == 2, "it tries again at once")
