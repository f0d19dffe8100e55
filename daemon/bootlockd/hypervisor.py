"""Everything that is asked of libvirt by name or UUID, by the daemon and by the CLI.

libvirt's calls have no time limit of their own, and a connection serves five of them at once: a
hung guest would stand in the way of all others. So each question opens a connection of its own (a
few milliseconds), and ``bounded`` gives up waiting. Nothing here changes a guest, except ``start``;
fences do.

A driver that is not on this host knows no guest; one that does not answer may run any. So "no such
guest" is an answer only if all drivers that there are gave it.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import libvirt

from bootlockd import hostpath
from bootlockd.errors import NoSuchDriver, NotStarted, Unreachable
from bootlockd.keptdefinition import Snapshot
from bootlockd.values import Guest, Power
from lockdb import disks
from lockdb.errors import InvalidValue, NotFound
from lockdb.values import looks_like_uuid, parse_instance

#: Seconds that all questions of one command may take together.
TIME_LIMIT = 10.0

#: Seconds that a start may take: it may read much RAM.
START_LIMIT = 600.0

#: Seconds until libvirtd is asked again for a driver that it does not have: it logs each question.
RECHECK = 600.0

T = TypeVar("T")

_POWER = {
    libvirt.VIR_DOMAIN_PAUSED: Power.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Power.ASLEEP,
}

libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Drivers:
    """What this process has learned of libvirt's drivers, by URI. For any thread."""

    def __init__(self) -> None:
        self._answered: set[str] = set()
        self._absent_until: dict[str, float] = {}

    def is_absent(self, uri: str) -> bool:
        """libvirtd has said so, not long ago: it need not be asked."""
        return time.monotonic() < self._absent_until.get(uri, 0.0)

    def look_again(self) -> None:
        """There may be a new libvirtd, with other drivers."""
        self._absent_until.clear()

    def answers(self, uri: str) -> None:
        """A connection was opened."""
        self._answered.add(uri)
        self._absent_until.pop(uri, None)

    def failure(self, uri: str, error: libvirt.libvirtError) -> Unreachable:
        """Why there is no connection; remembers a driver that libvirtd does not have."""
        said = f"{uri}: {one_line(error)}"
        if error.get_error_code() == libvirt.VIR_ERR_NO_CONNECT:
            # Longer than whoever connects to it again and again leaves it alone.
            self._absent_until[uri] = time.monotonic() + 2 * RECHECK
            return NoSuchDriver(said, "see libvirt.uris")
        has_no_socket = (
            error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR
            and error.get_int1() == errno.ENOENT
        )
        # The daemon of a driver of its own that was there, and has ended, may have guests.
        if has_no_socket and uri not in self._answered:
            return NoSuchDriver(said, "is libvirtd running?")
        return Unreachable(said, "is libvirtd running?")


drivers = Drivers()

#: By what was asked: questions that libvirt has not answered in time, and may yet.
_unanswered: dict[str, threading.Thread] = {}


@dataclass(frozen=True)
class Definition:
    """A domain's XML as it would start, which the hook would see, and its own writable disks."""

    document: str
    #: Keys, see lockdb.disks, with the other names that libvirt and the file system have for them.
    disks: frozenset[str]


@dataclass(frozen=True)
class Stored:
    """What libvirt would define a domain again from."""

    document: str
    autostart: bool
    #: Parents first.
    snapshots: tuple[Snapshot, ...]


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


def observe(uris: Sequence[str], uuid: str, seconds: float = TIME_LIMIT) -> Guest | None:
    """The guest with this UUID, or None if no libvirt here knows it. Raises Unreachable."""
    guests = _ask(uris, lambda c: _by_uuid(c, uuid), seconds, f"look {uuid}")
    # More than one driver can't run it at once; the one that does tells more.
    return max(guests, key=lambda guest: guest.is_active, default=None)


def guests(uri: str, seconds: float = TIME_LIMIT) -> dict[str, Guest]:
    """All domains by UUID. Hangs, up to the limit, with any one guest. Raises Unreachable."""

    def ask() -> dict[str, Guest]:
        with connection(uri) as opened:
            listed = [_guest_or_none(opened, domain) for domain in opened.listAllDomains()]
        return {guest.uuid: guest for guest in listed if guest}

    return bounded(ask, seconds, f"list {uri}")


def definition_of(guest: Guest, seconds: float = TIME_LIMIT) -> Definition | None:
    """The definition of a guest; None if it is gone meanwhile. Raises Unreachable."""

    def ask() -> Definition | None:
        with connection(guest.uri) as opened:
            domain = look_up(opened, guest.uuid)
            return _definition(opened, domain) if domain else None

    return bounded(ask, seconds, f"definition {guest.uuid}")


def document_of(guest: Guest, *, inactive: bool, seconds: float = TIME_LIMIT) -> str | None:
    """A guest's XML as it runs, or as it would start; None if it is gone. Raises Unreachable."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0

    def ask() -> str | None:
        with connection(guest.uri) as opened:
            domain = look_up(opened, guest.uuid)
            return str(domain.XMLDesc(flags)) if domain else None

    return bounded(ask, seconds, f"document {guest.uuid}")


def stored_of(guest: Guest, *, secure: bool = False, seconds: float = TIME_LIMIT) -> Stored | None:
    """What libvirt has stored of a guest; None if it is gone. Raises Unreachable.

    ``secure``: with passwords, which libvirt shows only to who may change the guest.
    """

    def ask() -> Stored | None:
        with connection(guest.uri, read_only=not secure) as opened:
            domain = look_up(opened, guest.uuid)
            return _found(lambda: read_stored(domain, secure=secure)) if domain else None

    return bounded(ask, seconds, f"stored {guest.uuid}")


def documents(uri: str, seconds: float = TIME_LIMIT) -> dict[str, str]:
    """The XML of all domains as they would start, by UUID. Raises Unreachable."""

    def ask() -> dict[str, str]:
        with connection(uri) as opened:
            return {
                domain.UUIDString(): document
                for domain in opened.listAllDomains()
                if (document := _stored(domain)) is not None
            }

    return bounded(ask, seconds, f"documents {uri}")


def volume_path(uris: Sequence[str], key: str, seconds: float = TIME_LIMIT) -> str | None:
    """Where the volume with this key (lockdb.disks) is; None if nobody here knows it.

    Raises Unreachable.
    """
    pool, _, volume = key.partition(":")[2].partition("/")
    found = _ask(uris, lambda opened: _volume_path(opened, pool, volume), seconds, key)
    return found[0] if found else None


def start(guest: Guest, seconds: float = START_LIMIT) -> None:
    """Start a guest, from its managed save if it has one. Raises NotStarted or Unreachable."""

    def ask() -> None:
        with connection(guest.uri, read_only=False) as opened:
            try:
                domain = look_up(opened, guest.uuid)
                if domain is None:
                    raise NotStarted(f"{guest.uuid} is not defined any more", "see 'virsh list'")
                domain.create()
            except libvirt.libvirtError as error:
                raise NotStarted(one_line(error), "see 'bootlock check'") from error

    bounded(ask, seconds)


def names(uris: Sequence[str]) -> list[str]:
    """The names of all domains. Raises Unreachable."""
    return sorted(_ask(uris, lambda c: [domain.name() for domain in c.listAllDomains()]))


def reachable(uris: Sequence[str]) -> list[str]:
    """Those of ``uris`` that answer. Raises Unreachable with the first's error if none does."""
    answers, failures = bounded(lambda: _each(uris, lambda _: [None]))
    if not answers and failures:
        raise failures[0]
    return [uri for uri, _ in answers]


def bounded(question: Callable[[], T], seconds: float = TIME_LIMIT, about: str = "") -> T:
    """The answer to a question that might hang. Raises Unreachable after ``seconds``.

    ``about``: what is asked. The same is not asked again while it hangs: each question that hangs
    keeps a thread and a connection, and libvirt may hang for days.
    """
    deadline = time.monotonic() + seconds
    earlier = _unanswered.get(about)
    if earlier:
        earlier.join(seconds)
        if earlier.is_alive():
            raise Unreachable(f"libvirt does not answer: {about}", "see 'bootlock doctor'")
        _unanswered.pop(about, None)
    result: list[T] = []
    failure: list[BaseException] = []

    def ask() -> None:
        try:
            result.append(question())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise Unreachable(f"libvirt is not asked: {error}", "see TasksMax= of its unit") from error
    thread.join(max(0.0, deadline - time.monotonic()))
    if failure:
        raise failure[0]
    if not result:
        if about:
            _unanswered[about] = thread
        raise Unreachable(f"libvirt did not answer within {seconds:g} s", "see 'bootlock doctor'")
    return result[0]


@contextmanager
def connection(uri: str, *, read_only: bool = True) -> Iterator[Any]:
    """An open libvirt connection; what libvirt refuses in it raises Unreachable."""
    try:
        opened = libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise drivers.failure(uri, error) from error
    drivers.answers(uri)
    try:
        with closing(opened):
            yield opened
    except libvirt.libvirtError as error:
        raise Unreachable(f"{uri}: {one_line(error)}", "is libvirtd running?") from error


def look_up(opened: Any, uuid: str) -> Any | None:
    """The domain with this UUID on a connection, or None. Raises libvirtError."""
    return _found(lambda: opened.lookupByUUIDString(uuid))


def guest_of(opened: Any, domain: Any) -> Guest:
    """What libvirt shows of a domain now. Raises libvirtError."""
    state, _reason = domain.state()
    active = bool(domain.isActive())
    return Guest(
        uri=opened.getURI(),
        name=domain.name(),
        uuid=domain.UUIDString(),
        power=_POWER.get(state, Power.RUNNING) if active else Power.OFF,
        run=domain.ID() if active else None,
        persistent=bool(domain.isPersistent()),
        has_managed_save=_has_managed_save(domain),
    )


def read_stored(domain: Any, *, secure: bool) -> Stored:
    """What libvirt has stored of a domain. Raises libvirtError."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | (libvirt.VIR_DOMAIN_XML_SECURE if secure else 0)
    of_snapshots = libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE if secure else 0
    return Stored(
        document=str(domain.XMLDesc(flags)),
        autostart=is_autostarted(domain),
        snapshots=tuple(
            Snapshot(snapshot.getName(), str(snapshot.getXMLDesc(of_snapshots)))
            for snapshot in snapshots_of(domain)
        ),
    )


def snapshots_of(domain: Any) -> list[Any]:
    """libvirt's objects of a domain's snapshots, parents first. Raises libvirtError."""
    parents_first = libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL
    return _if_supported(lambda: list(domain.listAllSnapshots(parents_first)), [])


def is_autostarted(domain: Any) -> bool:
    """A domain starts with its host. Raises libvirtError."""
    return _if_supported(lambda: bool(domain.autostart()), False)


def one_line(error: Exception) -> str:
    """An error of libvirt's, whose text may hold a hook's whole output, as one line."""
    return " ".join(str(error).split())


def _ask(
    uris: Sequence[str],
    question: Callable[[Any], list[T]],
    seconds: float = TIME_LIMIT,
    about: str = "",
) -> list[T]:
    answers, failures = bounded(lambda: _each(uris, question), seconds, about)
    found = [answer for _, found in answers for answer in found]
    lost = [failure for failure in failures if not isinstance(failure, NoSuchDriver)]
    if not found and lost:
        raise lost[0]
    if not answers and failures:
        raise failures[0]
    return found


def _each(
    uris: Sequence[str], question: Callable[[Any], list[T]]
) -> tuple[list[tuple[str, list[T]]], list[Unreachable]]:
    answers: list[tuple[str, list[T]]] = []
    failures: list[Unreachable] = []
    for uri in uris:
        if drivers.is_absent(uri):
            failures.append(NoSuchDriver(f"{uri}: libvirtd has no such driver", "see libvirt.uris"))
            continue
        try:
            with connection(uri) as opened:
                answers.append((uri, question(opened)))
        except Unreachable as error:
            failures.append(error)
    return answers, failures


def _by_name(opened: Any, name: str) -> list[Guest]:
    domain = _found(lambda: opened.lookupByName(name))
    return [guest_of(opened, domain)] if domain else []


def _by_uuid(opened: Any, uuid: str) -> list[Guest]:
    domain = look_up(opened, uuid)
    guest = _guest_or_none(opened, domain) if domain else None
    return [guest] if guest else []


def _guest_or_none(opened: Any, domain: Any) -> Guest | None:
    # It may be undefined between two questions.
    return _found(lambda: guest_of(opened, domain))


def _found(question: Callable[[], T]) -> T | None:
    try:
        return question()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _has_managed_save(domain: Any) -> bool:
    return _if_supported(lambda: bool(domain.hasManagedSaveImage()), False)


def _if_supported(question: Callable[[], T], otherwise: T) -> T:
    """The answer, or what it is with a driver that has no such thing."""
    try:
        return question()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return otherwise
        raise


def _definition(opened: Any, domain: Any) -> Definition:
    stored = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    keys = disks.keys_of(stored) | disks.keys_of(domain.XMLDesc())
    return Definition(stored, keys | _aliases(opened, keys))


def _aliases(opened: Any, keys: frozenset[str]) -> frozenset[str]:
    """Other names of the same disks: a link's target, a volume's path, a path's volume."""
    aliases = set()
    for key in keys:
        kind, _, name = key.partition(":")
        if kind == "path":
            aliases.add(disks.path_key(hostpath.real(name)))
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
    return [
        disks.path_key(name)
        for path in _volume_path(opened, pool, volume)
        for name in (path, hostpath.real(path))
    ]


def _volume_path(opened: Any, pool: str, volume: str) -> list[str]:
    try:
        return [opened.storagePoolLookupByName(pool).storageVolLookupByName(volume).path()]
    except libvirt.libvirtError:
        # The pool is gone or inactive: the volume's own key still holds.
        return []


def _stored(domain: Any) -> str | None:
    return _found(lambda: str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
