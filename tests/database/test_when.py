"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockdb.errors import InvalidValue
from lockdb.when import iso, parse_until
from samples import NOW

LAST = 253402300799  # 9999-12-31T23:59:59Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("30m", 1800),
        ("36h", 129_600),
        ("14d", 1_209_600),
        ("2w", 1_209_600),
        (" 1h ", 3600),
    ],
)
def test_a_duration_counts_from_now(text: str, seconds: int) -> None:
    assert parse_until("--until", text, NOW) == NOW + seconds


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00Z"),
        ("2027-01-31T12:00:00", "2027-01-31T12:00:00Z"),
        ("2027-01-31 12:00", "2027-01-31T12:00:00Z"),
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        (" 20270131T120000Z ", "2027-01-31T12:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
    ],
)
def test_a_time_without_an_offset_is_utc(text: str, moment: str) -> None:
    assert iso(parse_until("--until", text, NOW)) == moment


@pytest.mark.parametrize(
    "text", ["0s", "0d", "2001-01-01", "1969-12-31T23:59:59Z", "0001-01-01", iso(NOW)]
)
def test_what_is_not_in_the_future_is_refused_and_told_the_time(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"is not in the future$") as failed:
        parse_until("--until", text, NOW)
    assert failed.value.hint == "now is 2023-11-14T22:13:20Z"


@pytest.mark.parametrize("text", ["999999999w", "99999999w"])
def test_what_no_calendar_has_is_too_far_away(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"is too far away$"):
        parse_until("--until", text, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "", "tomorrow", "1", "h", "-1h", "1.5h", "1h30m", "1 h", "1H", "\uff11h", "1000000000s",
        "2027-13-01", "2027-02-30", "2027-01-31T25:00", "12:00", "x" * 10_000,
        "0001-01-01T00:00:00+23:59",
    ],
)  # fmt: skip
def test_anything_else_is_no_time_and_the_forms_are_named(text: str) -> None:
    with pytest.raises(InvalidValue) as failed:
        parse_until("--until", text, NOW)
    assert failed.value.field == "--until"
    assert len(str(failed.value)) < 200


@given(st.integers(NOW + 1, LAST))
def test_what_is_printed_is_read_as_the_same_moment(moment: int) -> None:
    assert parse_until("until", iso(moment), NOW) == moment
    assert datetime.fromisoformat(iso(moment)) == datetime.fromtimestamp(moment, UTC)
