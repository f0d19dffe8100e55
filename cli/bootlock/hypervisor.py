"""What the CLI asks of libvirt: which guest has this name, does it run, which disks are its own.

Every question has a time limit: libvirt's own calls have none, and a hold must be placed whatever
state libvirtd is in. Nothing here changes a guest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import libvirt

from bootlock.exits import Unreachable
from lockdb import disks
from lockdb.errors import InvalidValue, NotFound
from lockdb.values import looks_like_uuid, parse_instance

DEFAULT_URIS = ("qemu:///system", "lxc:///system", "xen:///system")

#: Seconds that all questions of one command may take together.
TIME_LIMIT = 10.0

T = TypeVar("T")

libvirt.registerErrorHandler(lambda _context, _error: None, None)


@dataclass(frozen=True)
class Guest:
    """A domain that a libvirt of this host knows."""

    uri: str
    name: str
    uuid: str
    running: bool
    #: The XML of the guest as it would start: what the hook would see.
    document: str
    #: Keys of its own writable disks, see lockdb.disks.
    disks: frozenset[str]


def resolve(uris: Sequence[str], instance: str) -> str:
    """The UUID that INSTANCE means; libvirt is asked only for a name.

    Raises InvalidValue, NotFound or Unreachable.
    """
    if looks_like_uuid(instance):
        return parse_instance(instance)
    if not instance.strip() or "\0" in instance:
        raise InvalidValue("instance", "must be a UUID or a domain name")
    found = {guest.uuid for guest in _ask(uris, lambda c: _by_name(c, instance))}
    if not found:
        raise NotFound(
            f"no domain {instance[:80]!r} is known to libvirt here",
            "'virsh list --all' shows the names; any instance can be given by its UUID",
        )
    if len(found) > 1:
        raise InvalidValue("instance", f"{instance[:80]!r} is more than one domain: give the UUID")
    return parse_instance(found.pop())


def observe(uris: Sequence[str], uuid: str) -> Guest | None:
    """The guest with this UUID, or None if no libvirt here knows it. Raises Unreachable."""
    guests = _ask(uris, lambda c: _by_uuid(c, uuid))
    # More than one driver can't run it at once; the one that does tells more.
    return max(guests, key=lambda guest: guest.running, default=None)


def names(uris: Sequence[str]) -> list[str]:
    """The names of all domains. Raises Unreachable."""
    return sorted(_ask(uris, lambda c: [domain.name() for domain in c.listAllDomains()]))


def bounded(question: Callable[[], T], seconds: float = TIME_LIMIT) -> T:
    """The answer to a question that might hang. Raises Unreachable after ``seconds``."""
    result: list[T] = []
    failure: list[BaseException] = []

    def ask() -> None:
        try:
            result.append(question())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not result:
        raise Unreachable(f"libvirt did not answer within {seconds:g} s", "see 'bootlock doctor'")
    return result[0]


@contextmanager
def connection(uri: str, *, read_only: bool = True) -> Iterator[Any]:
    """An open libvirt connection; what libvirt refuses in it raises Unreachable."""
    try:
        with closing(libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)) as opened:
            yield opened
    except libvirt.libvirtError as error:
        raise Unreachable(f"{uri}: {one_line(error)}", "is libvirtd running?") from error


def reachable(uris: Sequence[str]) -> list[str]:
    """Those of ``uris`` that answer. Raises Unreachable with the first's error if none does."""
    answers, failure = _each(uris, lambda _: [None])
    if not answers and failure:
        raise failure
    return [uri for uri, _ in answers]


def one_line(error: Exception) -> str:
    """An error of libvirt's, whose text may hold a hook's whole output, as one line."""
    return " ".join(str(error).split())


def _ask(uris: Sequence[str], question: Callable[[Any], list[T]]) -> list[T]:
    answers, failure = _each(uris, question)
    if not answers and failure:
        raise failure
    return [answer for _, found in answers for answer in found]


def _each(
    uris: Sequence[str], question: Callable[[Any], list[T]]
) -> tuple[list[tuple[str, list[T]]], Unreachable | None]:
    def ask_all() -> tuple[list[tuple[str, list[T]]], Unreachable | None]:
        answers: list[tuple[str, list[T]]] = []
        failure: Unreachable | None = None
        for uri in uris:
            try:
                with connection(uri) as opened:
                    answers.append((uri, question(opened)))
            except Unreachable as error:
                failure = failure or error
        return answers, failure

    return bounded(ask_all)


def _by_name(opened: Any, name: str) -> list[Guest]:
    return _guests(opened, lambda: opened.lookupByName(name))


def _by_uuid(opened: Any, uuid: str) -> list[Guest]:
    return _guests(opened, lambda: opened.lookupByUUIDString(uuid))


def _guests(opened: Any, look_up: Callable[[], Any]) -> list[Guest]:
    try:
        domain = look_up()
        stored = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        keys = disks.keys_of(stored) | disks.keys_of(domain.XMLDesc())
        return [
            Guest(
                uri=opened.getURI(),
                name=domain.name(),
                uuid=domain.UUIDString(),
                running=bool(domain.isActive()),
                document=stored,
                disks=keys | _aliases(opened, keys),
            )
        ]
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return []
        raise


def _aliases(opened: Any, keys: frozenset[str]) -> frozenset[str]:
    """Other names of the same disks: a link's target, a volume's path, a path's volume."""
    aliases = set()
    for key in keys:
        kind, _, name = key.partition(":")
        if kind == "path":
            aliases.add(disks.path_key(os.path.realpath(name)))
            aliases.update(_volume_of(opened, name))
        elif kind == "volume":
            aliases.update(_paths_of(opened, *name.split("/", 1)))
    return frozenset(aliases)


def _volume_of(opened: Any, path: str) -> list[str]:
    try:
        volume = opened.storageVolLookupByPath(path)
        return [disks.volume_key(volume.storagePoolLookupByVolume().name(), volume.name())]
    except libvirt.libvirtError:
        # In no pool: that is the ordinary case.
        return []


def _paths_of(opened: Any, pool: str, volume: str) -> list[str]:
    try:
        path = opened.storagePoolLookupByName(pool).storageVolLookupByName(volume).path()
    except libvirt.libvirtError:
        # The pool is gone or inactive: the volume's own key still holds.
        return []
    return [disks.path_key(path), disks.path_key(os.path.realpath(path))]
