"""One file of holds, TOML or JSON: its bytes in, what it says and its faults out. Pure.

    [[hold]]
    instance = "8f3e3a0e-44bb-4f43-9d35-8bd1a1e4b7c5"
    reason = "invoice 4711 unpaid"

An entry that can't be read is a fault with file, line and key, as far as the parsers tell them; the
others in its file are read all the same. Nothing is guessed: an unknown key is a fault too.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from bootlockd.sources.base import Observation, Order, Said, printable_line
from lockdb import operations
from lockdb.errors import InvalidValue
from lockdb.values import (
    ACTOR_MAX,
    CASE_MAX,
    GRACE_MAX,
    NOTICE_MAX,
    REASON_MAX,
    UNTIL_MAX,
    Kind,
    OnRunning,
    Retention,
    one_line,
    parse_instance,
    required_line,
)
from lockdb.when import parse_time

#: What a file may be called: its name is part of each hold's.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.(toml|json)")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+/-]{0,199}")
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*(?:hold|\"hold\"|'hold')[ \t]*\]\]", re.MULTILINE)
_FAULT_MAX = 300

T = TypeVar("T", Kind, OnRunning, Retention)


@dataclass(frozen=True)
class Contents:
    """What one file says."""

    observations: tuple[Observation, ...] = ()
    #: One line each, naming the file.
    faults: tuple[str, ...] = ()


def parse(name: str, data: bytes) -> Contents:
    """What the file called ``name`` says. Raises nothing: what is wrong is a fault."""
    try:
        text = data.decode()
        if not text.strip():
            # So is a file between being emptied and being written again.
            raise ValueError("it is empty; write 'hold = []' for no holds, or remove it")
        table = _toml(text) if name.endswith(".toml") else _json(text)
        entries = _entries(table)
    except (ValueError, RecursionError) as error:
        return Contents(faults=(_fault(name, "", str(error)),))
    lines = _lines(text, len(entries)) if name.endswith(".toml") else []
    found: dict[str, Observation] = {}
    faults: list[str] = []
    for number, entry in enumerate(entries, 1):
        ref = ""
        try:
            ref = _ref(name, entry)
            observation = Observation(ref, Said.HELD, _order(entry))
            if ref in found:
                raise ValueError("it is there twice: give each an id of its own")
        except (ValueError, InvalidValue) as error:
            where = f"hold {number}" + (f" (line {lines[number - 1]})" if lines else "")
            problem = _fault(name, where, str(error))
            faults.append(problem)
            if not ref:
                continue
            observation = found.get(ref, Observation(ref, Said.UNKNOWN, problem=problem))
        found[ref] = observation
    return Contents(tuple(found.values()), tuple(faults))


def _fault(name: str, where: str, problem: str) -> str:
    return printable_line(": ".join(filter(None, (name, where, problem))), _FAULT_MAX)


def _toml(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def _json(text: str) -> dict[str, Any]:
    table = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if not isinstance(table, dict):
        raise ValueError('it must be an object: {"hold": [...]}')
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is there twice in one object")
    return table


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _entries(table: Mapping[str, Any]) -> Sequence[Any]:
    for key in table:
        if key not in {"hold", "count"}:
            raise ValueError(f"{key[:80]!r}: no such key; known: hold, count")
    entries = table.get("hold")
    if not isinstance(entries, list):
        raise ValueError("hold: must be a list of tables, [[hold]]; 'hold = []' for none")
    count = table.get("count", len(entries))
    if type(count) is not int or count != len(entries):
        raise ValueError(f"count: it is {str(count)[:20]}, holds there are {len(entries)}")
    return entries


def _lines(text: str, count: int) -> list[int]:
    """The line of each ``[[hold]]``; none if a text in the file looks like one."""
    starts = [found.start() for found in _HEADER.finditer(text)]
    if len(starts) != count:
        return []
    lines, line, last = [], 1, 0
    for start in starts:
        line += text.count("\n", last, start)
        last = start
        lines.append(line)
    return lines


def _ref(name: str, entry: Any) -> str:
    """The name of this hold: by its id, or by what it holds, so that neither order nor words
    matter."""
    if not isinstance(entry, dict):
        raise ValueError("must be a table")
    if "id" in entry:
        return f"{name}:{_id(entry['id'])}"
    if "instance" not in entry:
        raise InvalidValue("instance", "is missing")
    kind = _kind(entry["kind"]) if "kind" in entry else Kind.BOOT_LOCK
    return f"{name}:{_instance(entry['instance'])}:{kind}"


def _order(entry: Mapping[str, Any]) -> Order:
    values = {}
    for key, value in entry.items():
        read = _READERS.get(key)
        if read is None:
            raise InvalidValue(str(key)[:80], "no such key", f"known: {', '.join(_READERS)}")
        values[key] = read(value)
    for key in ("instance", "reason"):
        if key not in values:
            raise InvalidValue(key, "is missing")
    values.pop("id", None)
    if "retention" in values and "retain_until" not in values:
        raise InvalidValue("retention", "it needs a date: retain_until")
    if "retain_until" in values:
        if "until" in values:
            raise InvalidValue("until", "a hold that is retained does not end by itself")
        values.setdefault("retention", Retention.GOVERNANCE)
    return Order(**{"kind": Kind.BOOT_LOCK} | values)


def _text(field: str, limit: int) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        return one_line(field, _is_text(field, value), limit)

    return read


def _is_text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValue(field, f"must be text, not {_shown(value)}")
    return value


def _id(value: Any) -> str:
    if not _ID.fullmatch(_is_text("id", value)):
        raise InvalidValue("id", f"{_shown(value)} is not made of letters, digits and . _ @ + / -")
    return str(value)


def _instance(value: Any) -> str:
    return parse_instance(_is_text("instance", value))


def _reason(value: Any) -> str:
    return required_line("reason", _is_text("reason", value), REASON_MAX)


def _word(field: str, kind: type[T], value: Any) -> T:
    try:
        return kind(_is_text(field, value).replace("-", "_"))
    except ValueError:
        words = ", ".join(each.replace("_", "-") for each in kind)
        raise InvalidValue(field, f"{_shown(value)} is none of {words}") from None


def _kind(value: Any) -> Kind:
    return _word("kind", Kind, value)


def _on_running(value: Any) -> OnRunning:
    return _word("on_running", OnRunning, value)


def _grace(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= GRACE_MAX:
        raise InvalidValue(
            "grace", f"must be a number of seconds, 0 to {GRACE_MAX}, not {_shown(value)}"
        )
    return value


def _flag(field: str) -> Callable[[Any], bool]:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise InvalidValue(field, f"must be true or false, not {_shown(value)}")
        return value

    return read


def _blocks(value: Any) -> str:
    if not isinstance(value, list):
        raise InvalidValue("blocks", f"must be a list of operations, not {_shown(value)}")
    return operations.text_of(
        operations.parse(" ".join(_is_text("blocks", word) for word in value))
    )


def _retention(value: Any) -> Retention:
    return _word("retention", Retention, value)


def _until(value: Any) -> int:
    return _moment("until", value)


def _retain_until(value: Any) -> int:
    return _moment("retain_until", value)


def _moment(field: str, value: Any) -> int:
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        try:
            seconds = int(moment.timestamp())
        except OverflowError:
            seconds = -1
    else:
        # Not a duration: from when?
        seconds = parse_time(field, _is_text(field, value).strip())
    if not 0 <= seconds <= UNTIL_MAX:
        raise InvalidValue(field, "must be a time after 1970 and before the year 10000")
    return seconds


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        # An integer of thousands of digits.
        return f"such {type(value).__name__}"


_READERS: dict[str, Callable[[Any], Any]] = {
    "instance": _instance,
    "reason": _reason,
    "id": _id,
    "kind": _kind,
    "notice": _text("notice", NOTICE_MAX),
    "case": _text("case", CASE_MAX),
    "on_running": _on_running,
    "grace": _grace,
    "isolate": _flag("isolate"),
    "preserve": _flag("preserve"),
    "until": _until,
    "retain_until": _retain_until,
    "retention": _retention,
    "placed_by": _text("placed_by", ACTOR_MAX),
    "blocks": _blocks,
}
