"""The network fence on its own, run by the tests inside a private host.

    fenceinside.py DATABASE LINK_DOWN INSTANCE NAME

For each word on a line of stdin, ``apply``, ``verify``, ``lift``, ``watch`` or ``kill N``, it does
that and prints the outcome. ``kill N``: SIGKILL before the N-th change that comes after.
"""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bootlockd import links, nft
from bootlockd.downed import Downed
from bootlockd.errors import BootlockdError
from bootlockd.fences.network import NetworkFence
from bootlockd.values import Case, Guest, Outcome, Power
from lockdb.enforcements import State
from lockdb.values import Hold, Kind, OnRunning

HOLD = dict.fromkeys(Hold.__dataclass_fields__, None) | {
    "id": "f" * 12,
    "kind": Kind.BOOT_LOCK,
    "on_running": OnRunning.LEAVE,
    "isolate": True,
    "placed_at": 0,
}


def case(instance: str, name: str) -> Case:
    guest = Guest("qemu:///system", name, instance, Power.RUNNING, 1, True, False)
    held = Hold(**(HOLD | {"instance": instance}))  # type: ignore[arg-type]
    return Case(instance, int(time.time()), [held], guest=guest)


def kill_before(change: int) -> None:
    """End this process before its n-th change to the world."""
    count = itertools.count(1)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(count) == change:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    nft.run = counted(nft.run)
    links.set_up = counted(links.set_up)
    Downed.add = counted(Downed.add)  # type: ignore[method-assign]
    Downed.forget = counted(Downed.forget)  # type: ignore[method-assign]


def told(step: Callable[[Case], Outcome], of: Case) -> Outcome:
    try:
        return step(of)
    except BootlockdError as error:
        return Outcome(State.FAILED, f"{error}; {error.hint}")


def main() -> None:
    database, link_down, instance, name = sys.argv[1:5]
    fence = NetworkFence(Path(database), link_down=link_down == "yes")
    woken: list[str] = []
    for line in sys.stdin:
        word, *rest = line.split()
        outcome = Outcome(State.PENDING)
        if word == "kill":
            kill_before(int(rest[0]))
        elif word == "watch":
            fence.start(lambda wake: woken.append(wake.reason))
        else:
            outcome = told(getattr(fence, word), case(instance, name))
        print(json.dumps([outcome.state, outcome.detail]), flush=True)
    fence.stop()


if __name__ == "__main__":
    main()
