"""nftables: our own two tables, which cut the devices of isolated instances.

    table netdev bootlock    a chain for each device and direction, without rules, policy drop
    table bridge bootlock    a set of device names; what comes from or goes to one is dropped

The first drops every frame of any device. The second holds for a name, also before its device
exists, but only in Linux bridges. Chains and set elements carry the instance's UUID, so what is
cut for whom is read from the kernel alone, whatever this process forgot.

Assumes the program ``nft`` (Debian: nftables). Names go in as JSON, and only plain ones: a name
that ends in ``*`` would mean others too. The tables are not bound to this process, because they
must outlive it; so anyone who flushes the rule set removes them, which the fence's watcher sees.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from bootlockd.errors import FenceError

TABLE = "bootlock"
HELD = "held"
HOOKS = ("ingress", "egress")

#: Before everything that others commonly hook there.
PRIORITY = -500

#: Seconds that nft may take: it waits for nobody but the kernel.
TIME_LIMIT = 20.0

Command = dict[str, Any]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_CHAIN_NAME = re.compile(r"cut_([0-9a-f]{32})_(ingress|egress)_((?:[0-9a-f]{2})+)")
_CHAIN_BODY = re.compile(
    r'type filter hook (ingress|egress) devices? (?:= \{ )?"?([\w.-]+)"?(?: \})? '
    r"priority [^;]+; policy drop;"
)
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

# The chains of the bridge table: the hook, and whose name the rule looks at.
_BRIDGE_CHAINS = {"from_held": ("prerouting", "iifname"), "to_held": ("postrouting", "oifname")}


@dataclass(frozen=True)
class Cut:
    """What is cut of one instance."""

    #: Devices that exist: a chain for each direction.
    devices: frozenset[str] = frozenset()
    #: Names for the bridge table.
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rules:
    """Our tables as the kernel shows them. Without arguments: a host that isolates nothing."""

    #: The lines of each chain of the netdev table; None: there is no such table.
    chains: Mapping[str, Sequence[str]] | None = None
    #: Somebody switched the netdev table off.
    is_off: bool = False
    #: The owner of each name in the bridge table; None: there is no such table.
    names: Mapping[str, str] | None = None
    #: The bridge table's set, chains and rules are exactly ours.
    bridge_is_sound: bool = False

    def instances(self) -> set[str]:
        """All that have anything in our tables."""
        parts = [_parts(name) for name in self.chains or ()]
        return {part[0] for part in parts if part} | set((self.names or {}).values()) - {""}

    def named(self, instance: str) -> Cut:
        """What is there for this instance, in whatever condition."""
        chains = [part for name in self.chains or () if (part := _parts(name))]
        devices = {device for owner, _, device in chains if owner == instance}
        return Cut(frozenset(devices), self._names(instance))

    def effective(self, instance: str) -> Cut:
        """What is cut for this instance: both directions, nothing in between, switched on."""
        sound = set() if self.is_off else self.sound_chains()
        devices = {
            device
            for device in self.named(instance).devices
            if all(_chain(instance, hook, device) in sound for hook in HOOKS)
        }
        return Cut(frozenset(devices), self._names(instance) if self.bridge_is_sound else _NOTHING)

    def sound_chains(self) -> set[str]:
        """The chains that are as we make them, on the device that their name says."""
        return {name for name, body in (self.chains or {}).items() if _is_sound(name, body)}

    def _names(self, instance: str) -> frozenset[str]:
        return frozenset(name for name, owner in (self.names or {}).items() if owner == instance)


_NOTHING: frozenset[str] = frozenset()


def is_plain(name: str) -> bool:
    """Whether a device of this name can be put into a rule and mean itself only."""
    return bool(_PLAIN_NAME.fullmatch(name))


def read() -> Rules:
    """What the kernel has now. Raises FenceError."""
    # nft 1.0.6 leaves the device out of a chain's JSON, so that family is read as text.
    chains, is_off = parse_netdev(_nft("list", "ruleset", "netdev"))
    names, is_sound = parse_bridge(_nft("-j", "list", "ruleset", "bridge"))
    return Rules(chains, is_off, names, is_sound)


def run(commands: Sequence[Command]) -> None:
    """Carry out commands: all of them or none. Raises FenceError."""
    if commands:
        _nft("-j", "-f", "-", said=json.dumps({"nftables": commands}))


def commands(rules: Rules, wanted: Mapping[str, Cut]) -> list[Command]:
    """What makes these instances' cuts as wanted, and leaves others' as they are. Pure."""
    everyone = {name: rules.named(name) for name in rules.instances()} | dict(wanted)
    return _netdev(rules, everyone) + _bridge(rules, everyone)


def _netdev(rules: Rules, everyone: Mapping[str, Cut]) -> list[Command]:
    needed = {
        _chain(instance, hook, device): (hook, device)
        for instance, cut in everyone.items()
        for hook in HOOKS
        for device in cut.devices
    }
    if not needed:
        return [] if rules.chains is None else [_do("delete", "table", "netdev", name=TABLE)]
    found: list[Command] = []
    have = rules.sound_chains()
    if rules.is_off:
        found.append(_do("delete", "table", "netdev", name=TABLE))
        have = set()
    elif rules.chains is not None:
        # Our table holds nothing but our chains: what else is in it could let frames through.
        found += [
            _do("delete", "chain", "netdev", table=TABLE, name=name)
            for name in sorted(set(rules.chains) - (have & set(needed)))
        ]
    if not have:
        found.append(_do("add", "table", "netdev", name=TABLE))
    return found + [
        _do("add", "chain", "netdev", table=TABLE, name=name, **_hooked(hook, dev=device))
        for name, (hook, device) in sorted(needed.items())
        if name not in have
    ]


def _bridge(rules: Rules, everyone: Mapping[str, Cut]) -> list[Command]:
    needed = {name: instance for instance, cut in everyone.items() for name in cut.names}
    if not needed:
        return [] if rules.names is None else [_do("delete", "table", "bridge", name=TABLE)]
    found: list[Command] = []
    have = dict(rules.names or {})
    if not rules.bridge_is_sound:
        if rules.names is not None:
            found.append(_do("delete", "table", "bridge", name=TABLE))
        found += _bridge_base()
        have = {}
    stale = sorted(name for name, owner in have.items() if needed.get(name) != owner)
    new = sorted(name for name, owner in needed.items() if have.get(name) != owner)
    owned = [{"elem": {"val": name, "comment": needed[name]}} for name in new]
    return found + _elements("delete", stale) + _elements("add", owned)


def _bridge_base() -> list[Command]:
    found = [
        _do("add", "table", "bridge", name=TABLE),
        _do("add", "set", "bridge", table=TABLE, name=HELD, type="ifname"),
    ]
    for name, (hook, key) in _BRIDGE_CHAINS.items():
        attributes = _hooked(hook, policy="accept")
        found.append(_do("add", "chain", "bridge", table=TABLE, name=name, **attributes))
        found.append(_do("add", "rule", "bridge", table=TABLE, chain=name, expr=_drop(key)))
    return found


def _elements(action: str, elements: Sequence[Any]) -> list[Command]:
    if not elements:
        return []
    return [_do(action, "element", "bridge", table=TABLE, name=HELD, elem=elements)]


def _do(action: str, what: str, family: str, **attributes: Any) -> Command:
    return {action: {what: {"family": family, **attributes}}}


def _hooked(hook: str, policy: str = "drop", **more: str) -> dict[str, Any]:
    return {"type": "filter", "hook": hook, "prio": PRIORITY, "policy": policy, **more}


def _drop(key: str) -> list[dict[str, Any]]:
    same = {"op": "==", "left": {"meta": {"key": key}}, "right": f"@{HELD}"}
    return [{"match": same}, {"drop": None}]


def _chain(instance: str, hook: str, device: str) -> str:
    return f"cut_{UUID(instance).hex}_{hook}_{device.encode().hex()}"


def _parts(chain: str) -> tuple[str, str, str] | None:
    """Instance, hook and device; None for a chain that isn't ours."""
    match = _CHAIN_NAME.fullmatch(chain)
    if not match:
        return None
    instance, hook, device = match.groups()
    return str(UUID(instance)), hook, bytes.fromhex(device).decode(errors="replace")


def _is_sound(name: str, body: Sequence[str]) -> bool:
    parts = _parts(name)
    match = _CHAIN_BODY.fullmatch(body[0]) if len(body) == 1 else None
    return bool(parts and match and match.groups() == parts[1:])


def parse_netdev(text: str) -> tuple[Mapping[str, Sequence[str]] | None, bool]:
    """The chains of our netdev table in ``nft list``'s text, and whether it is switched off."""
    chains: dict[str, list[str]] | None = None
    is_off = is_ours = False
    body: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("table "):
            is_ours = line == f"table netdev {TABLE} {{"
            chains = {} if is_ours and chains is None else chains
            body = []
        elif is_ours and chains is not None and line.startswith("chain "):
            body = chains.setdefault(line.removeprefix("chain ").removesuffix(" {"), [])
        elif is_ours and line.startswith("flags ") and "dormant" in line:
            is_off = True
        elif line and line != "}":
            body.append(line)
    return chains, is_off


def parse_bridge(text: str) -> tuple[Mapping[str, str] | None, bool]:
    """The owners of the names in our bridge table in ``nft -j list``'s text, and its soundness."""
    ours = [
        (what, entry)
        for item in json.loads(text)["nftables"]
        for what, entry in item.items()
        if what != "metainfo" and TABLE in {entry.get("table"), _name_of_table(what, entry)}
    ]
    if not ours:
        return None, False
    names: dict[str, str] = {}
    seen: list[Any] = []
    for what, entry in ours:
        if what == "set" and entry["name"] == HELD:
            names = dict(_owned(entry.get("elem", ())))
        # Handles are the kernel's own numbers; all else must be as we made it.
        told = {k: v for k, v in entry.items() if k not in {"handle", "elem", "name", "table"}}
        seen.append((what, entry["name"] if what != "rule" else "", told))
    return names, _sorted(seen) == _sorted(_expected_bridge())


def _name_of_table(what: str, entry: Mapping[str, Any]) -> str | None:
    return entry.get("name") if what == "table" else None


def _owned(elements: Iterable[Any]) -> Iterable[tuple[str, str]]:
    for element in elements:
        inner = element["elem"] if isinstance(element, dict) else {"val": element}
        yield str(inner["val"]), str(inner.get("comment", ""))


def _expected_bridge() -> list[Any]:
    seen: list[Any] = []
    for command in _bridge_base():
        for what, entry in command["add"].items():
            told = {k: v for k, v in entry.items() if k not in {"name", "table"}}
            seen.append((what, entry.get("name", ""), told))
    return seen


def _sorted(seen: Iterable[Any]) -> list[str]:
    return sorted(json.dumps(item, sort_keys=True) for item in seen)


def _nft(*arguments: str, said: str | None = None) -> str:
    try:
        done = subprocess.run(
            ["nft", *arguments],  # noqa: S607 - found by the PATH of _ENVIRONMENT
            input=said,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=TIME_LIMIT,
            env=_ENVIRONMENT,
            check=False,
        )
    except OSError as error:
        raise FenceError(f"nft cannot be run: {error}", "apt-get install nftables") from error
    except subprocess.TimeoutExpired as error:
        raise FenceError(f"nft did not end within {TIME_LIMIT:g} s") from error
    if done.returncode != 0:
        raise FenceError(f"nft {' '.join(arguments)}: {' '.join(done.stderr.split())[:300]}")
    return done.stdout
