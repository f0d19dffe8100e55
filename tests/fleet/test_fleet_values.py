"""What comes from the registry is read strictly, and what can't be read is said to be so."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootlockd.config import Fleet
from bootlockd.fleet import hosts, relays, wire
from bootlockd.fleet.errors import BadAnswer, EtcdError
from bootlockd.fleet.history import Broken, Standing, Suspicion, standing_of
from bootlockd.fleet.hosts import Report
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.records import BadRecord, FutureRecord, Record, Release, decoded, encoded
from bootlockd.fleet.registry import Entry, Seen, missing, pending
from bootlockd.fleet.relays import RelayReport
from bootlockd.fleet.wire import Header
from bootlockd.sources.base import Order
from lockdb.values import Kind
from samples import HELD

ID = "0123456789abcdef"
ORDER = Order(HELD, Kind.BOOT_LOCK, "unpaid", notice="call us", placed_by="alice")
RECORD = Record(ID, ORDER, 1000)
ENDED = replace(RECORD, released=Release("bob", 2000, "paid"))

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=10,
)


def fields(record: Record = RECORD, **more: Any) -> bytes:
    value = json.loads(encoded(record))
    for path, new in more.items():
        *way, last = path.split("__")
        at = value
        for step in way:
            at = at[step]
        at[last] = new
    return json.dumps(value).encode()


FEWER = replace(RECORD, order=replace(ORDER, blocks="stop,delete"))


@pytest.mark.parametrize("record", [RECORD, FEWER, ENDED, replace(ENDED, order=None)])
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert decoded(ID, encoded(record)) == record


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"", "not JSON"),
        (b"\xff\x00", "not JSON"),
        (b"[" * 60000, "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "schema: missing"),
        (b"x" * 2_000_000, "2000000 bytes, at most 65536 are read"),
        (fields(schema=True), "schema: must be int"),
        (fields(schema=0), "schema 0 is unknown"),
        (fields(id="f" * 16), "its id is not that of its key"),
        (fields(state="free"), "state: 'free' is neither held nor released"),
        (fields(placed_at=-1), "placed_at: -1 is no time"),
        (fields(placed_at=10**30), "placed_at: 1000000000000000000000000000000 is no time"),
        (fields(order__kind="boot"), "kind: 'boot' is none of boot_lock, state_lock"),
        (fields(order__kind=["boot_lock"]), "kind: ['boot_lock'] is none of"),
        (fields(order__instance="web-7"), "instance: 'web-7' is not a UUID"),
        (fields(order__reason="a\nb"), "reason: unprintable character U+000A"),
        (fields(order__grace=10**9), "grace: 1000000000 s is not between"),
        (fields(order__grace=True), "grace: must be int"),
        (fields(order__isolate=1), "isolate: must be bool"),
        (fields(order__blocks="fly"), "blocks: 'fly' is no operation"),
        (fields(order__blocks=["stop"]), "blocks: must be str"),
        (fields(order__until="now"), "until: must be int"),
        (fields(ENDED, released="yes"), "released: must be dict"),
        (fields(ENDED, released__reason=""), "released.reason: must not be empty"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(value: bytes, problem: str) -> None:
    with pytest.raises(BadRecord) as caught:
        decoded(ID, value)
    assert str(caught.value).startswith(problem)


def test_a_record_of_a_newer_bootlock_is_told_from_a_broken_one() -> None:
    with pytest.raises(FutureRecord, match="schema 2, this bootlock reads 1: upgrade it"):
        decoded(ID, fields(schema=2))


def test_fields_that_are_new_in_the_same_schema_change_nothing() -> None:
    assert decoded(ID, fields(colour="red", order__shade=3)) == RECORD


def test_what_was_ordered_by_a_hold_that_is_released_need_not_be_readable() -> None:
    assert decoded(ID, fields(ENDED, order__kind="x")) == replace(ENDED, order=None)


@given(JUNK, st.sampled_from(["", *json.loads(encoded(ENDED))]), st.booleans())
def test_junk_is_a_record_or_an_error_of_ours(junk: Any, name: str, inside: bool) -> None:
    value = json.loads(encoded(ENDED))
    (value["order"] if inside else value)[name] = junk
    for raw in (json.dumps(junk), json.dumps(value)):
        problem = ""
        try:
            assert decoded(ID, raw.encode()).id == ID
        except BadRecord as error:
            problem = str(error)
        assert len(problem.splitlines()) <= 1


@given(JUNK, st.sampled_from(["", *json.loads(hosts.encoded(Report("h"), run="r", nonce=1))]))
def test_junk_is_a_report_or_one_with_a_problem(junk: Any, name: str) -> None:
    value = json.loads(hosts.encoded(Report("h"), run="r", nonce=1)) | {name: junk}
    for raw in (json.dumps(junk), json.dumps(value)):
        report = hosts.decoded("h", raw.encode())
        assert report.problem or hosts.encoded(report, run="r", nonce=1)
        # Whatever it says can be shown.
        assert len(missing(ENTRY, "c", [Seen(report, False)])) == 1


@given(JUNK | st.builds(dict, result=JUNK) | st.builds(dict, result=st.builds(dict, header=JUNK)))
def test_junk_is_a_frame_or_an_error_of_ours(junk: Any) -> None:
    with suppress(EtcdError):
        assert wire.frame_of(json.dumps(junk).encode()).header.cluster


def test_a_refused_and_a_compacted_watch_are_over_though_they_say_created() -> None:
    header = {"cluster_id": "18446744073709551615", "member_id": "1"}
    refused = {"header": header, "created": True, "canceled": True, "cancel_reason": "no"}
    compacted = {"header": header, "canceled": True, "compact_revision": "8"}
    assert wire.frame_of(json.dumps({"result": refused}).encode()).problem == "no"
    frame = wire.frame_of(json.dumps({"result": compacted}).encode())
    assert frame.problem == "history before revision 8 is compacted"
    assert frame.header == Header("18446744073709551615", 0, 0)


def test_what_etcd_says_of_its_own_end_is_an_error() -> None:
    with pytest.raises(EtcdError, match="no leader"):
        wire.frame_of(b'{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}')
    with pytest.raises(BadAnswer):
        wire.frame_of(b'{"result":{}}')


def test_each_way_back_in_the_registrys_history_is_seen() -> None:
    standing = Standing().seen(Header("c", 100, 3))
    assert standing.seen(Header("c", 100, 3)).high == 100
    for header, why in [
        (Header("d", 200, 9), "cluster id was c and is d"),
        (Header("c", 99, 9), "from revision 100 to 99"),
        (Header("c", 200, 2), "from term 3 to 2"),
    ]:
        with pytest.raises(Broken, match=why):
            standing.seen(header)


def test_an_answer_that_is_older_than_an_event_is_no_way_back() -> None:
    # The own key was written at 90, and the watch told of 100 before the answer came.
    standing = Standing().seen(Header("c", 80, 3)).applied(100)
    assert standing.seen(Header("c", 90, 3)).revision == 100
    with pytest.raises(Broken, match="from revision 100 to 90"):
        standing.settled().seen(Header("c", 90, 3))


@given(st.text(max_size=30) | JUNK.map(json.dumps))
def test_a_standing_survives_the_database_and_junk_is_none(junk: str) -> None:
    known = Standing("1", 2, 3, 4, 5, 6, Suspicion("ab", "why", 7))
    assert standing_of(known.text) == known
    assert isinstance(standing_of(junk), Standing)


def test_a_name_from_a_key_can_be_printed() -> None:
    assert Keys("p/").name_of(b"p/holds/a\x1b[2J\xff" + b"x" * 200) == "a?[2J\ufffd" + "x" * 74


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"endpoints": ("10.0.0.1:2379",)}, "endpoints"),
        ({"endpoints": ("https://10.0.0.1",)}, "endpoints"),
        ({"endpoints": ("https://me@10.0.0.1:2379",)}, "endpoints"),
        ({"endpoints": ("https://10.0.0.1:2379/v3",)}, "endpoints"),
        ({"endpoints": ("https://10.0.0.1:99999",)}, "endpoints"),
        ({"prefix": "bootlock"}, "prefix"),
        ({"host": "a/b"}, "host"),
        ({"certificate_file": Path("/a.pem")}, "certificate_file"),
        ({"user": "h1"}, "user"),
        (
            {"endpoints": ("http://10.0.0.1:1",), "user": "h1", "password_file": Path("/p")},
            "user: a password is sent over https only",
        ),
    ],
)
def test_settings_that_can_not_work_are_refused(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}"):
        Fleet(**more)


# -- where a hold is in force ---------------------------------------------------------------------

ENTRY = Entry(ID, 50, RECORD)
GOOD = Report(
    "h",
    at=1,
    cluster="c",
    applied=50,
    armed=[{"uri": "qemu", "armed": True, "at": 1}],
    journal=(1, ""),
)


@pytest.mark.parametrize(
    ("report", "alive", "why"),
    [
        (GOOD, True, ""),
        (replace(GOOD, here={ID: {"power": "enforced"}}), True, ""),
        (GOOD, False, "silent since 1970-01-01T00:00:01Z"),
        (replace(GOOD, applied=49), True, "has not applied it"),
        (replace(GOOD, cluster="d"), True, "has not applied it"),
        (replace(GOOD, unread=[ID]), True, "can't read it"),
        (replace(GOOD, waiting=[ID]), True, "keeps it until an admin accepts that so many end"),
        (replace(GOOD, unlooked=[ID]), True, "its daemon has not looked at it"),
        (replace(GOOD, more=True), True, "its daemon has not looked at it"),
        (replace(GOOD, here={ID: {"power": "pending"}}), True, "under way: power"),
        (replace(GOOD, here={ID: {"power": "failed"}}), True, "not enforced: power"),
        (replace(GOOD, armed=[]), True, "not proven to be armed"),
        (Report("h", problem="x"), True, "x"),
    ],
)
def test_a_hold_is_in_force_only_where_that_is_proven(
    report: Report, alive: bool, why: str
) -> None:
    assert missing(ENTRY, "c", [Seen(report, alive)]) == ({"h": why} if why else {})


def test_only_hosts_that_live_and_may_still_answer_are_waited_for() -> None:
    behind = replace(GOOD, applied=1)
    failed = replace(GOOD, here={ID: {"power": "failed"}})
    assert pending(ENTRY, "c", [Seen(behind, True)]) == {"h": "has not applied it"}
    assert pending(ENTRY, "c", [Seen(behind, False)]) == {}
    assert pending(ENTRY, "c", [Seen(failed, True)]) == {}


# -- what a relay says of itself ------------------------------------------------------------------


def test_what_a_relay_says_of_itself_is_read_as_it_was_written() -> None:
    told = RelayReport("one", "", True, 5, 4, 900, 3, 2, 1, ("office",))
    assert relays.decoded(relays.encoded(told)) == told


@given(
    JUNK | st.fixed_dictionaries({"schema": st.just(1)}, optional={"name": JUNK, "read_at": JUNK})
)
def test_what_is_no_such_word_is_a_report_with_a_problem(junk: object) -> None:
    for value in (json.dumps(junk).encode(), b"\xff", b"", b"[" * 100_000):
        assert relays.decoded(value).problem


@given(st.binary(max_size=200))
def test_whoever_has_the_office_is_shown_in_one_printable_line(value: bytes) -> None:
    assert relays.holder(value).isprintable()
    assert relays.holder(value)
