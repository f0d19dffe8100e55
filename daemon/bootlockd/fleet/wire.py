"""What etcd's JSON gateway says, as values.

Numbers come as text, keys and values in base64, and what is zero, false or empty is left out. A
cluster's id is a 64 bit number without a sign: it stays text.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bootlockd.fleet.errors import BadAnswer, EtcdError

#: Bytes of one line, far above what etcd's own limits allow a revision to have.
LONGEST = 32 * 2**20


@dataclass(frozen=True)
class Header:
    """Who answers, and how far they are. ``revision`` 0: not said."""

    cluster: str
    revision: int
    term: int


@dataclass(frozen=True)
class KeyValue:
    """One key. ``mod``: the revision that wrote it."""

    key: bytes
    value: bytes
    mod: int


@dataclass(frozen=True)
class Term:
    """A key that somebody has by a lease, as it was written: gone or written anew, it is over."""

    key: bytes
    mod: int
    lease: int


@dataclass(frozen=True)
class Page:
    """Keys of a range, in order. ``count``: of the whole range."""

    header: Header
    items: tuple[KeyValue, ...]
    more: bool
    count: int


@dataclass(frozen=True)
class Event:
    """``item`` was written; or deleted, and then has no value."""

    item: KeyValue
    deleted: bool


@dataclass(frozen=True)
class Frame:
    """One line of a watch. ``problem``: this watch is over, and why."""

    header: Header
    watch: int
    created: bool
    events: tuple[Event, ...]
    problem: str = ""


def text_of(raw: bytes) -> str:
    """Base64, as the gateway wants it."""
    return base64.b64encode(raw).decode("ascii")


def parsed(line: bytes) -> dict[str, Any]:
    """One JSON object. Raises BadAnswer."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"not JSON: {line[:80]!r}") from error
    if not isinstance(value, dict):
        raise BadAnswer(f"not an object: {line[:80]!r}")
    return value


def header_of(answer: Mapping[str, Any]) -> Header:
    """Raises BadAnswer."""
    header = table(answer, "header")
    cluster = header.get("cluster_id", "")
    if not isinstance(cluster, str) or not cluster:
        raise BadAnswer("an answer without a cluster_id")
    return Header(cluster, number(header, "revision"), number(header, "raft_term"))


def page_of(answer: Mapping[str, Any]) -> Page:
    """The answer to a range. Raises BadAnswer."""
    items = tuple(item_of(item) for item in tables(answer, "kvs"))
    return Page(header_of(answer), items, answer.get("more") is True, number(answer, "count"))


def frame_of(line: bytes) -> Frame:
    """One line of a watch. Raises BadAnswer, or EtcdError for what etcd says of its own end."""
    answer = parsed(line)
    if "error" in answer:
        error = answer["error"]
        said = error.get("message", "") if isinstance(error, dict) else error
        raise EtcdError(f"etcd ended the watch: {str(said)[:200]}")
    result = table(answer, "result")
    return Frame(
        header_of(result),
        number(result, "watch_id"),
        result.get("created") is True,
        tuple(_event(event) for event in tables(result, "events")),
        _problem(result),
    )


def item_of(item: Mapping[str, Any]) -> KeyValue:
    """Raises BadAnswer."""
    return KeyValue(_raw(item, "key"), _raw(item, "value"), number(item, "mod_revision"))


def number(values: Mapping[str, Any], name: str) -> int:
    """An integer, which may be left out for 0. Raises BadAnswer."""
    value = values.get(name, 0)
    try:
        if isinstance(value, str | int) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise BadAnswer(f"{name} is no number: {value!r:.80}")


def table(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object. Raises BadAnswer."""
    value = values.get(name, {})
    if not isinstance(value, dict):
        raise BadAnswer(f"{name} is no object")
    return value


def tables(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects, which may be left out. Raises BadAnswer."""
    value = values.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadAnswer(f"{name} is no list of objects")
    return value


def _event(event: Mapping[str, Any]) -> Event:
    return Event(item_of(table(event, "kv")), event.get("type") == "DELETE")


def _problem(result: Mapping[str, Any]) -> str:
    # Before ``created``: a watch that was refused says that too.
    if result.get("canceled") is not True:
        return ""
    compacted = number(result, "compact_revision")
    if compacted:
        return f"history before revision {compacted} is compacted"
    return str(result.get("cancel_reason", "etcd canceled the watch"))[:200]


def _raw(values: Mapping[str, Any], name: str) -> bytes:
    value = values.get(name, "")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadAnswer(f"{name} is not base64") from error
