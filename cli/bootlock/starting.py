"""``release --start``: starting an instance when nothing holds it, or holds it back, any more."""

from __future__ import annotations

from collections.abc import Sequence

from bootlock import output
from bootlock.app import App
from bootlock.exits import Exit
from bootlockd import hypervisor
from bootlockd.errors import NotStarted, Unreachable
from bootlockd.values import Guest
from lockdb.enforcements import Enforcement
from lockdb.errors import NotFound
from lockdb.values import Hold


def known_guest(app: App, uuid: str) -> Guest:
    """The guest that is to be started. Raises NotFound or Unreachable."""
    guest = hypervisor.observe(app.uris, uuid)
    if guest is None:
        raise NotFound(f"libvirt here knows no domain {uuid}", "release it without --start")
    return guest


def start(guest: Guest, remaining: Sequence[Hold], standing: Sequence[Enforcement]) -> Exit:
    """Start it: from its saved RAM, if it has any. Says why, if it can't be."""
    if remaining:
        output.note("not started: it is still held")
        return Exit.REFUSED
    if standing:
        # Its disks may be locked still; or its RAM be in custody, and it would begin without.
        output.note("not started: see 'bootlock status', then 'virsh start'")
        return Exit.REFUSED
    try:
        hypervisor.start(guest)
    except NotStarted as error:
        output.note(f"not started: {error}; {error.hint}")
        return Exit.REFUSED
    except Unreachable as error:
        output.note(f"not started: {error}; {error.hint}")
        return Exit.UNREACHABLE
    return Exit.DONE
