"""What the live tests say about guests: whether one runs, is held, and is refused."""

import json
import uuid as uuids
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import libvirt
import pytest

from privatehost import PrivateHost

_NOTHING_KEPT = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)


@dataclass(frozen=True)
class Identity:
    """The name and UUID of a guest that nobody has seen before."""

    name: str
    uuid: str


def somebody_new() -> Identity:
    uuid = str(uuids.uuid4())
    return Identity(name_of(uuid), uuid)


def name_of(uuid: str) -> str:
    return f"guest-{uuid[:8]}"


@dataclass(frozen=True)
class Refusal:
    """A hold that was placed, as the caller of a refused start sees it."""

    hold: str
    notice: str

    def line(self, operation: str = "start") -> str:
        return f"bootlock: {operation} refused: {self.notice} [hold {self.hold}]"


def place(host: PrivateHost, uuid: str) -> Refusal:
    notice = f"unpaid since {uuid[:4]}, see <desk> & 'call'"
    reason = "a reason that only staff may read"
    placed = host.bootlock(
        "place", uuid, "--reason", reason, "--notice", notice, "--no-wait", "--json"
    )
    return Refusal(json.loads(placed.stdout)["id"], notice)


def release(host: PrivateHost, uuid: str) -> None:
    host.bootlock("release", "--instance", uuid, "--all", "--reason", "paid")


@contextmanager
def refused(refusal: Refusal, operation: str = "start") -> Iterator[None]:
    """What happens within is refused by libvirt, with our hook's line and without the reason."""
    with pytest.raises(libvirt.libvirtError) as caught:
        yield
    assert caught.value.get_error_code() == libvirt.VIR_ERR_HOOK_SCRIPT_FAILED
    assert str(caught.value).endswith(f": {refusal.line(operation)}\n")
    assert "only staff" not in str(caught.value)


def runs(host: PrivateHost, uuid: str) -> bool:
    """Whether the QEMU guest runs. libvirt's word and the host's processes must agree on it."""
    with closing(host.connect()) as connection:
        active = _active(connection)
    assert (uuid in active) == (qemu_pid(host, uuid) is not None)
    return uuid in active


def _active(connection: libvirt.virConnect) -> set[str]:
    running = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
    return {domain.UUIDString() for domain in connection.listAllDomains(running)}


def qemu_pid(host: PrivateHost, uuid: str) -> int | None:
    """The process of the QEMU guest, by the PID it has outside; None if there is none."""
    found = [pid for pid, command in host.processes().items() if f" -uuid {uuid} " in command]
    assert len(found) <= 1
    return found[0] if found else None


def container_runs(host: PrivateHost, uuid: str) -> bool:
    """Whether the container runs. libvirt's word and the host's processes must agree on it."""
    with closing(host.connect(host.lxc_uri)) as connection:
        active = _active(connection)
    assert (uuid in active) == (container_pid(host, uuid) is not None)
    return uuid in active


def container_pid(host: PrivateHost, uuid: str) -> int | None:
    """libvirt's process for the container, by the PID it has outside; None if there is none."""
    found = [
        pid
        for pid, command in host.processes().items()
        if f"libvirt_lxc --name {name_of(uuid)} " in command
    ]
    return found[0] if found else None


def starts_only_when_not_held(
    host: PrivateHost,
    uuid: str,
    start: Callable[[], object],
    *,
    off: Callable[[], object],
    held: str | None = None,
    running: Callable[[PrivateHost, str], bool] = runs,
) -> None:
    """``start()`` makes guest ``uuid`` run before and after, but not while ``held`` is held.

    ``held``: the held instance, if it isn't the one that starts. ``off()`` makes the started
    guest ready for ``start()`` again. ``running``: how to tell that a guest runs.
    """
    start()
    assert running(host, uuid)
    off()
    assert not running(host, uuid)
    refusal = place(host, held or uuid)
    with refused(refusal):
        start()
    assert not running(host, uuid)
    release(host, held or uuid)
    start()
    assert running(host, uuid)


def remove_all(host: PrivateHost) -> None:
    with closing(host.connect()) as connection:
        for domain in connection.listAllDomains():
            try:
                remove(domain)
            except libvirt.libvirtError as error:
                # Transient, and gone since it was listed.
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise


def remove(domain: libvirt.virDomain) -> None:
    """End the guest and forget everything that libvirt knows of it."""
    if domain.isActive():
        persistent = domain.isPersistent()
        domain.destroy()
        if not persistent:
            return
    domain.undefineFlags(_NOTHING_KEPT)
