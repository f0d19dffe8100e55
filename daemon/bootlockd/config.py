"""``/etc/bootlock/bootlock.toml``: every setting, its default, and errors that name the key.

Every setting has a default, and a missing file is a file without settings. What is unknown is an
error: a setting that was misspelt must not be off in silence.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from bootlockd.errors import ConfigError
from lockdb.database import DEFAULT_PATH
from lockdb.values import OnRunning

DEFAULT_CONFIG = Path("/etc/bootlock/bootlock.toml")
DEFAULT_URIS = ("qemu:///system", "lxc:///system", "xen:///system")

#: Every number is of seconds or of things; more than a year of either is a slip.
MOST = 366 * 86400

_FLEET_PREFIX = re.compile(r"[A-Za-z0-9._/-]{1,100}/")
_FLEET_NAME = re.compile(r"[A-Za-z0-9._-]{0,64}")

T = TypeVar("T")


@dataclass(frozen=True)
class Daemon:
    """``[daemon]``"""

    #: Seconds between two looks at everything; events are acted on at once, whatever this says.
    interval: int = 60
    #: Seconds between two canaries.
    canary_interval: int = 300
    #: Seconds after which an instance whose job has not ended is reported as stuck.
    patience: int = 30
    #: How many instances are worked on at once; stuck ones don't count.
    workers: int = 16
    control_socket: Path = Path("/run/bootlock/control.sock")


@dataclass(frozen=True)
class Database:
    """``[database]``"""

    path: Path = DEFAULT_PATH


@dataclass(frozen=True)
class Libvirt:
    """``[libvirt]``"""

    uris: tuple[str, ...] = DEFAULT_URIS


@dataclass(frozen=True)
class Metrics:
    """``[metrics]``"""

    #: A loopback address and port; empty: no metrics.
    listen: str = "127.0.0.1:9644"

    def __post_init__(self) -> None:
        if self.listen:
            parse_listen(self.listen)


@dataclass(frozen=True)
class Custody:
    """``[custody]``"""

    #: Beside libvirt's own directories, under the same mount as /var/lib/libvirt/qemu/save; and
    #: not in /var/lib/libvirt/qemu, which QEMU's user may own.
    directory: Path = Path("/var/lib/libvirt/bootlock-custody")


class Restore(StrEnum):
    """When the kept definition of a held instance is defined again."""

    #: Of instances that Nova made at release, of others at once.
    AUTO = "auto"
    AT_ONCE = "at_once"
    #: Only if it is not defined then, and its disks are on this host.
    AT_RELEASE = "at_release"
    #: Never; none is kept.
    OFF = "off"


@dataclass(frozen=True)
class Definition:
    """``[definition]``"""

    restore: Restore = Restore.AUTO


@dataclass(frozen=True)
class ImageLock:
    """``[image_lock]``"""

    #: Off for hosts whose imaging or backup opens the disks of held instances with QEMU's tools.
    enabled: bool = True


class WatchAction(StrEnum):
    """What happens to a QEMU that was started past libvirt with something held."""

    KILL = "kill"
    REPORT = "report"
    OFF = "off"


@dataclass(frozen=True)
class ProcessWatch:
    """``[process_watch]``"""

    action: WatchAction = WatchAction.KILL
    #: Where libvirt keeps the PID files of its guests: what is locked there is libvirt's own.
    pid_directory: Path = Path("/run/libvirt/qemu")


@dataclass(frozen=True)
class Polkit:
    """``[polkit]``"""

    #: Off: no rules are written, and those that were are removed.
    enabled: bool = True
    #: Before all others: of what rules answer the first counts.
    rules_file: Path = Path("/etc/polkit-1/rules.d/00-bootlock.rules")
    #: Who may do to held instances what they may do to others, besides root.
    privileged_users: tuple[str, ...] = ()
    privileged_groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rules_file.suffix != ".rules":
            raise ValueError("rules_file: must end in .rules, or polkit does not read it")


@dataclass(frozen=True)
class Network:
    """``[network]``"""

    #: Set an isolated instance's devices down, besides dropping their frames.
    link_down: bool = True


@dataclass(frozen=True)
class Sync:
    """``[sync]``"""

    #: Seconds between two looks at sources that have to be asked.
    interval: int = 60
    #: How many holds of one source, and which share, may end within the window by themselves.
    max_release: int = 10
    max_release_percent: int = 20
    release_window: int = 3600
    #: Seconds of silence after which a source is a fault.
    stale_after: int = 900

    def __post_init__(self) -> None:
        if self.max_release_percent > 100:
            raise ValueError("max_release_percent: must be at most 100")


@dataclass(frozen=True)
class FileSource:
    """``[sources.file]``"""

    #: Holds are read from the files in it; unset: none are.
    directory: Path | None = None


class NovaScope(StrEnum):
    """Which servers' locks become holds on this host."""

    HOST = "host"
    CLOUD = "cloud"


class LockMeans(StrEnum):
    """What a lock in Nova is on this host that is no boot lock."""

    STATE_LOCK = "state_lock"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Nova:
    """``[sources.nova]``"""

    #: The name in ``clouds_file``; empty: Nova is no source.
    cloud: str = ""
    clouds_file: Path = Path("/etc/bootlock/clouds.yaml")
    #: Empty: as in ``clouds_file``.
    region: str = ""
    scope: NovaScope = NovaScope.HOST
    #: nova-compute's own name of this host; empty: the host's name, as nova-compute does.
    compute_host: str = ""
    #: How the reason of an admin's lock begins that is a boot lock; empty: each is.
    reason_prefix: str = "bootlock:"
    other_admin_locks: LockMeans = LockMeans.NOTHING
    customer_locks: LockMeans = LockMeans.STATE_LOCK
    #: For boot locks.
    on_running: OnRunning = OnRunning.LEAVE
    grace: int = 60
    isolate: bool = False
    preserve: bool = False
    #: Seconds between two looks at everything; what changed is asked for in between.
    full_interval: int = 900
    #: By how many seconds two looks at what changed overlap.
    overlap: int = 300
    #: Seconds for one answer.
    timeout: int = 30


@dataclass(frozen=True)
class Sources:
    """``[sources]``: where holds are decided that this host keeps."""

    file: FileSource = field(default_factory=FileSource)
    nova: Nova = field(default_factory=Nova)


@dataclass(frozen=True)
class Fleet:
    """``[fleet]``"""

    #: The registry's members; empty: this host is in no fleet.
    endpoints: tuple[str, ...] = ()
    #: What all keys in the registry begin with.
    prefix: str = "bootlock/"
    #: This host's name in the fleet; empty: its host name.
    host: str = ""
    #: Files in PEM: whom to trust (unset: whom the system trusts), and who this host is.
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    user: str = ""
    #: A file whose first line is the password; for root only.
    password_file: Path | None = None
    #: Seconds between two signs of life of this host in the registry.
    heartbeat: int = 10
    #: Seconds that one member may take to answer.
    timeout: int = 5
    #: As in ``[sync]``, for holds that are released in the registry.
    max_release_percent: int = 100

    def __post_init__(self) -> None:
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        if self.max_release_percent > 100:
            raise ValueError("max_release_percent: must be at most 100")
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("certificate_file: goes together with key_file")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user: goes together with password_file")
        if self.user and any(endpoint.startswith("http:") for endpoint in self.endpoints):
            raise ValueError("user: a password is sent over https only")
        if not _FLEET_PREFIX.fullmatch(self.prefix):
            raise ValueError("prefix: must be letters, digits and ._-/ and end in /")
        if not _FLEET_NAME.fullmatch(self.host):
            raise ValueError("host: must be at most 64 letters, digits and ._-")


@dataclass(frozen=True)
class Config:
    """The whole file."""

    daemon: Daemon = field(default_factory=Daemon)
    database: Database = field(default_factory=Database)
    libvirt: Libvirt = field(default_factory=Libvirt)
    metrics: Metrics = field(default_factory=Metrics)
    network: Network = field(default_factory=Network)
    process_watch: ProcessWatch = field(default_factory=ProcessWatch)
    custody: Custody = field(default_factory=Custody)
    definition: Definition = field(default_factory=Definition)
    image_lock: ImageLock = field(default_factory=ImageLock)
    polkit: Polkit = field(default_factory=Polkit)
    sync: Sync = field(default_factory=Sync)
    sources: Sources = field(default_factory=Sources)
    fleet: Fleet = field(default_factory=Fleet)


def _check_endpoint(endpoint: str) -> None:
    """``https://10.0.0.1:2379``. Raises ValueError."""
    try:
        parts = urlsplit(endpoint)
        sound = parts.port is not None and parts.hostname and parts.username is None
    except ValueError:
        sound = False
    if not sound or parts.scheme not in {"http", "https"} or parts.path not in {"", "/"}:
        raise ValueError("endpoints: must be addresses as https://10.0.0.1:2379")


def parse_listen(listen: str) -> tuple[str, int]:
    """Address and port of ``127.0.0.1:9644`` or ``[::1]:9644``. Raises ValueError."""
    host, _, port = listen.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError:
        raise ValueError("listen: must be an address and a port, as 127.0.0.1:9644") from None
    if not address.is_loopback:
        raise ValueError("listen: must be a loopback address: holds are nobody else's business")
    if not 0 < number < 2**16:
        raise ValueError("listen: must end in a port, 1 to 65535")
    return str(address), number


def load(path: Path) -> Config:
    """The settings in the file at ``path``. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        hint = "make it readable for root and the group bootlock, in UTF-8"
        raise ConfigError(f"{path}: {error}", hint) from error
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not TOML; or a number, or a nesting, that is longer than Python reads.
        raise ConfigError(f"{path}: {error}", "see bootlock.toml in the documentation") from error
    return _section(Config, table, f"{path}: ")


def _section(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    assert is_dataclass(kind)
    types = get_type_hints(kind)
    known = [setting.name for setting in fields(kind)]
    for key in table:
        if key not in known:
            shown = key if key.isprintable() else repr(key)
            raise ConfigError(f"{where}{shown}: no such setting", f"known: {', '.join(known)}")
    values = {key: _value(types[key], value, where + key) for key, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        # What a section itself has against a value; it begins with the key.
        raise ConfigError(f"{where}{error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, UnionType):
        # ``X | None``: TOML has no word for None, a setting that is there is an X.
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: must be a table", "write it as [name]")
        return _section(kind, value, f"{where}.")  # type: ignore[arg-type]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if value not in list(kind):
            raise ConfigError(f"{where}: must be one of {', '.join(kind)}")
        return kind(value)
    if kind is Path and isinstance(value, str) and value.startswith("/") and value.isprintable():
        return Path(value)
    if kind is int and type(value) is int and 0 < value <= MOST:
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if get_origin(kind) is tuple and _is_list_of_text(value):
        return tuple(value)
    raise ConfigError(f"{where}: must be {_describe(kind)}, not {value!r}")


def _is_list_of_text(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, str) and item and item.isprintable() for item in value)
    )


def _describe(kind: Any) -> str:
    words = {
        Path: "an absolute path",
        int: f"a whole number from 1 to {MOST}",
        bool: "true or false",
        str: "text",
    }
    return words.get(kind, "a list of texts")
