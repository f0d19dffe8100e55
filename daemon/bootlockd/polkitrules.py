"""The text of polkit's rules file: what is held, as one object to look an instance up in. Pure.

polkit runs every rule of every file at each question. Ours answers only one thing, ``NO``: to
who is not privileged, about an instance or a disk that is held, for a permission that a hold
blocks and no permit lets through. Everything else it leaves to the rules after it.

The file ends holds and permits by itself: it is right for as long as it lies there, whether a
daemon runs or not. Nothing in it was written by a stranger but names of disks, and these stand in
it as JSON in ASCII, each behind a prefix of ours (``path:``), so that none is a name that
JavaScript has a meaning for. One mistake in the syntax and polkit would drop the whole file: so
what was made is taken apart again before it is believed (``check``).

Kept to ECMAScript 5: polkit runs Duktape or an old SpiderMonkey.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lockdb import operations
from lockdb.operations import RULES
from lockdb.values import CANARY_PREFIX, Hold, Permit

#: The domain permission by which the rules tell that polkit runs them; by default all have it.
PROOF_PERMISSION = "org.libvirt.api.domain.getattr"

T = TypeVar("T")

_HEAD = """\
// Written by bootlockd from its lock database, and again at each change: edit nothing here.
// What it means is in bootlock's docs/fences/polkit.md.
polkit.addRule((function () {
    var data =
"""

_TAIL = """
    ;
    var prefix = "org.libvirt.api.";
    var has = Object.prototype.hasOwnProperty;

    function refuses(instance, permission, now) {
        var i, holds, permits, blocked = false;
        if (!has.call(data.held, instance)) {
            return false;
        }
        holds = data.held[instance];
        for (i = 0; i < holds.length; i += 1) {
            // A permission that nobody knew when this was written may be anything.
            if ((holds[i][0] === null || now < holds[i][0]) &&
                    (!has.call(data.known, permission) ||
                    has.call(data.sets[holds[i][1]], permission))) {
                blocked = true;
            }
        }
        permits = has.call(data.permits, instance) ? data.permits[instance] : [];
        for (i = 0; i < permits.length; i += 1) {
            if (permits[i][0] <= now && now < permits[i][1] &&
                    has.call(data.sets[permits[i][2]], permission)) {
                blocked = false;
            }
        }
        return blocked;
    }

    function owners(action, ofPool) {
        var pool = String(action.lookup("pool_name")),
            key = String(action.lookup("vol_key")),
            names = ofPool ? ["pool:" + pool] : [
                "path:" + key,
                "net:rbd:" + key,
                "volume:" + pool + "/" + String(action.lookup("vol_name"))
            ],
            found = [],
            i, name;
        for (i = 0; i < names.length; i += 1) {
            name = names[i].replace(/[\\t\\n\\r]/g, " ");
            if (has.call(data.disks, name)) {
                found = found.concat(data.disks[name]);
            }
        }
        return found;
    }

    function isPrivileged(subject) {
        return data.users.indexOf(subject.user) >= 0 || data.groups.some(function (group) {
            return subject.isInGroup(group);
        });
    }

    return function (action, subject) {
        var permission, object, instances, now, i;
        if (action.id.indexOf(prefix) !== 0) {
            return polkit.Result.NOT_HANDLED;
        }
        permission = action.id.slice(prefix.length);
        object = permission.slice(0, permission.indexOf("."));
        if (object === "domain") {
            instances = [String(action.lookup("domain_uuid")).toLowerCase()];
            if (instances[0] === data.proof || (instances[0].indexOf(data.canary) === 0 &&
                    !has.call(data.harmless, permission))) {
                return polkit.Result.NO;
            }
        } else if (object === "storage-vol" || permission === "storage-pool.format") {
            instances = owners(action, object === "storage-pool");
        } else {
            return polkit.Result.NOT_HANDLED;
        }
        now = Date.now() / 1000;
        for (i = 0; i < instances.length; i += 1) {
            if (refuses(instances[i], permission, now)) {
                return isPrivileged(subject) ? polkit.Result.NOT_HANDLED : polkit.Result.NO;
            }
        }
        return polkit.Result.NOT_HANDLED;
    };
}()));
"""


@dataclass(frozen=True)
class Entry:
    """One instance: until when which permissions are refused and let through, and its disks."""

    holds: frozenset[tuple[int | None, frozenset[str]]]
    permits: frozenset[tuple[int, int, frozenset[str]]]
    disks: frozenset[str]


@dataclass(frozen=True)
class Privileged:
    """Who may pass: names of users and groups."""

    users: Sequence[str] = ()
    groups: Sequence[str] = ()


def entry_of(holds: Iterable[Hold], permits: Iterable[Permit], disks: Iterable[str]) -> Entry:
    """What holds in force and permits come to."""
    return Entry(
        frozenset((hold.until, operations.refused_permissions(hold.blocked)) for hold in holds),
        frozenset((one.granted_at, one.until, RULES[one.operation].needed) for one in permits),
        frozenset(disks),
    )


def text(entries: Mapping[str, Entry], privileged: Privileged) -> str:
    """The file. Raises ValueError if it could not be read back."""
    data = _data(entries, privileged)
    data["proof"] = _proof_of(data)
    made = _HEAD + _json(data) + _TAIL
    check(made, data)
    return made


def check(made: str, data: Mapping[str, Any]) -> None:
    """Whether it says what it was made of, in the one form that is known to be good."""
    body = made.removeprefix(_HEAD).removesuffix(_TAIL)
    if len(body) + len(_HEAD) + len(_TAIL) != len(made) or not made.isascii():
        raise ValueError("the rules are not in the form that polkit was tried with")
    if json.loads(body) != data:
        raise ValueError("the rules do not read as what they were made of")


def proof_of(made: str) -> str:
    """The UUID that this very text refuses to show. Raises ValueError if it is not ours."""
    body = made.removeprefix(_HEAD).removesuffix(_TAIL)
    data = json.loads(body)
    found = data.pop("proof") if isinstance(data, dict) and "proof" in data else ""
    if found != _proof_of(data):
        raise ValueError("it was changed")
    return str(found)


def _data(entries: Mapping[str, Entry], privileged: Privileged) -> dict[str, Any]:
    sets: dict[frozenset[str], int] = {}
    held: dict[str, list[list[int | None]]] = {}
    permits: dict[str, list[list[int]]] = {}
    disks: dict[str, list[str]] = {}
    for instance, entry in sorted(entries.items()):
        if not entry.holds:
            continue
        held[instance] = [
            [until, sets.setdefault(permissions, len(sets))]
            for until, permissions in _sorted(entry.holds)
        ]
        if entry.permits:
            permits[instance] = [
                [start, end, sets.setdefault(permissions, len(sets))]
                for start, end, permissions in _sorted(entry.permits)
            ]
        for name in sorted({*entry.disks, *map(_pool, entry.disks)} - {""}):
            disks.setdefault(name, []).append(instance)
    return {
        "canary": CANARY_PREFIX,
        "users": list(privileged.users),
        "groups": list(privileged.groups),
        "known": dict.fromkeys(sorted(operations.PERMISSIONS), 1),
        "harmless": dict.fromkeys(sorted(operations.HARMLESS), 1),
        "sets": [dict.fromkeys(sorted(permissions), 1) for permissions in sets],
        "held": held,
        "permits": permits,
        "disks": disks,
    }


def _sorted(entries: Collection[T]) -> Iterable[T]:
    """The same text for the same holds: sets have no order."""
    return sorted(entries, key=_in_order) if len(entries) > 1 else entries


def _in_order(entry: Any) -> str:
    return repr([sorted(part) if isinstance(part, frozenset) else part for part in entry])


def _pool(disk: str) -> str:
    """The pool that a volume is in: to format it would be the end of the volume."""
    kind, _, name = disk.partition(":")
    return f"pool:{name.partition('/')[0]}" if kind == "volume" else ""


def _proof_of(data: Mapping[str, Any]) -> str:
    return CANARY_PREFIX + hashlib.sha256(_json(data).encode()).hexdigest()[:12]


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=True)
