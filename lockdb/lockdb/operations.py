"""What a hold blocks: one table of operations, for the hook, the polkit fence, the CLI, the docs.

``start`` and ``migrate`` are refused by the hook, to everybody. All of them are refused by
libvirt's access driver, where it is on, to who is not root: libvirt asks polkit for a *permission*,
and one permission may stand for several operations. So each row says which permissions are refused
where the operation is blocked (``refused``: all that could bring it about, such as a command to
QEMU's monitor), and which a permit for it must let through (``needed``).

Permissions are written as libvirt's documentation has them, without ``org.libvirt.api.``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from lockdb.errors import InvalidValue


class Operation(StrEnum):
    """What may be done to an instance, in the field's terms."""

    START = "start"
    RESTORE = "restore"
    MIGRATE = "migrate"
    STOP = "stop"
    SHUTDOWN = "shutdown"
    RESET = "reset"
    SUSPEND = "suspend"
    RESUME = "resume"
    SAVE = "save"
    MANAGED_SAVE_REMOVE = "managed-save-remove"
    DELETE = "delete"
    DEFINE = "define"
    ATTACH = "attach"
    MONITOR = "monitor"
    SNAPSHOT = "snapshot"
    REVERT = "revert"
    CHECKPOINT = "checkpoint"
    BLOCK_WRITE = "block-write"
    DUMP = "dump"
    GUEST = "guest"
    VOLUME_DELETE = "volume-delete"
    VOLUME_WRITE = "volume-write"
    VOLUME_FORMAT = "volume-format"
    VOLUME_RESIZE = "volume-resize"


@dataclass(frozen=True)
class Rule:
    """One operation: what it is, and which permissions of libvirt it comes to."""

    what: str
    #: A permit for it lets these through, with everything else that they stand for.
    needed: frozenset[str]
    #: These are refused where it is blocked.
    refused: frozenset[str]
    #: Whether a state lock blocks it. A boot lock blocks every operation.
    state_lock: bool = True


#: QEMU's monitor and the agent can do almost anything, and are asked for as ``write``.
_WRITE = "domain.write"


def _rule(what: str, needed: str, *more: str, state_lock: bool = True) -> Rule:
    needs = frozenset(f"domain.{name}" for name in needed.split())
    return Rule(what, needs, needs | {f"domain.{name}" for name in more} | {_WRITE}, state_lock)


def _exactly(what: str, permission: str, *more: str) -> Rule:
    """One that the monitor can't bring about."""
    return Rule(what, frozenset({permission}), frozenset({permission, *more}))


_GUEST = (
    "send-input inject-nmi set-password set-time fs-freeze fs-trim send-signal"
    " open-device open-graphics open-namespace"
)

RULES: Final[Mapping[Operation, Rule]] = MappingProxyType(
    {
        Operation.START: _exactly(
            "start, also from a managed save or with --force-boot", "domain.start"
        ),
        # Without a start's permission: a state lock lets what ran start again, not come back other.
        Operation.RESTORE: Rule(
            "restore from a file",
            frozenset({"domain.start", _WRITE}),
            frozenset({_WRITE}),
        ),
        Operation.MIGRATE: Rule(
            "migrate, live or not, from here or to here",
            frozenset({"domain.migrate", "domain.start", _WRITE}),
            frozenset({"domain.migrate"}),
            state_lock=False,
        ),
        Operation.STOP: _rule("stop at once (destroy)", "stop", "core-dump", "send-signal"),
        Operation.SHUTDOWN: _rule(
            "ask the guest to shut down or reboot", "init-control", "pm-control"
        ),
        Operation.RESET: _rule("reset", "reset", "core-dump", "inject-nmi"),
        Operation.SUSPEND: _rule("suspend: pause it, or send it to sleep", "suspend pm-control"),
        Operation.RESUME: _rule("resume: let it go on, or wake it", "suspend pm-control"),
        Operation.SAVE: _rule(
            "save its memory to a file or a managed save, and stop it", "hibernate"
        ),
        Operation.MANAGED_SAVE_REMOVE: _exactly("remove its managed save", "domain.hibernate"),
        Operation.DELETE: _exactly("delete (undefine) it", "domain.delete"),
        Operation.DEFINE: _rule("change its definition, rename it", "save write"),
        Operation.ATTACH: _rule("attach, detach, change devices, memory, CPUs", "write save"),
        Operation.MONITOR: _rule("commands to QEMU's monitor or the guest's agent", "write"),
        Operation.SNAPSHOT: _rule("make or delete snapshots", "snapshot"),
        Operation.REVERT: _rule("revert to a snapshot", "snapshot"),
        Operation.CHECKPOINT: _rule("make or delete checkpoints", "checkpoint"),
        Operation.BLOCK_WRITE: _rule("copy, commit, pull, resize its disks", "block-write"),
        Operation.DUMP: _rule("dump its memory, which may stop or reset it", "core-dump"),
        Operation.GUEST: _rule(
            "act inside it: console, keys, signals, password, clock", _GUEST, state_lock=False
        ),
        Operation.VOLUME_DELETE: _exactly(
            "delete the volume of a disk", "storage-vol.delete", "storage-pool.format"
        ),
        Operation.VOLUME_WRITE: _exactly("upload into it", "storage-vol.data-write"),
        Operation.VOLUME_FORMAT: _exactly(
            "wipe it, or format its pool", "storage-vol.format", "storage-pool.format"
        ),
        Operation.VOLUME_RESIZE: _exactly("resize it", "storage-vol.resize"),
    }
)

#: Never refused: who may not look can't tell that it is held.
HARMLESS: Final = frozenset(
    {
        "domain.block-read",
        "domain.getattr",
        "domain.mem-read",
        "domain.read",
        "domain.read-secure",
        "domain.screenshot",
        "storage-vol.create",
        "storage-vol.data-read",
        "storage-vol.getattr",
        "storage-vol.read",
    }
)

#: Every permission that is known. Another, of a newer libvirt, is refused on all that is held.
PERMISSIONS: Final = HARMLESS.union(*(rule.needed | rule.refused for rule in RULES.values()))

ALL: Final = frozenset(Operation)
_OF_STATE_LOCKS: Final = frozenset(op for op, rule in RULES.items() if rule.state_lock)


def blocked_by_default(kind: str) -> frozenset[Operation]:
    """What a hold of this kind blocks, if it does not say otherwise."""
    return _OF_STATE_LOCKS if kind == "state_lock" else ALL


def blocked(kind: str, blocks: str | None) -> frozenset[Operation]:
    """What a hold blocks. ``blocks``: its own word, if it has one. Raises InvalidValue."""
    return blocked_by_default(kind) if blocks is None else parse(blocks)


def parse(text: str) -> frozenset[Operation]:
    """The operations that ``delete,stop`` names. Raises InvalidValue."""
    words = [word for word in text.replace(",", " ").split(" ") if word]
    unknown = [word for word in words if word not in ALL]
    if unknown:
        known = ", ".join(Operation)
        raise InvalidValue("blocks", f"{unknown[0][:80]!r} is no operation", f"known: {known}")
    if not words:
        raise InvalidValue("blocks", "names no operation", "leave it out for all of its kind")
    return frozenset(map(Operation, words))


def text_of(operations: Iterable[Operation]) -> str:
    """The one way in which ``parse`` would be given these: in the order of the table."""
    wanted = set(operations)
    return ",".join(operation for operation in Operation if operation in wanted)


@lru_cache(maxsize=256)
def refused_permissions(blocked: frozenset[Operation]) -> frozenset[str]:
    """Every permission that could bring one of these about."""
    return frozenset().union(*(RULES[operation].refused for operation in blocked))
