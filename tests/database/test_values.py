"""What may be stored: every text is one printable line, every instance a UUID."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockdb import values
from lockdb.errors import InvalidValue
from lockdb.values import (
    CANARY_PREFIX,
    DEFAULT_NOTICE,
    GRACE_MAX,
    Kind,
    looks_like_uuid,
    one_line,
    parse_instance,
)
from samples import HELD, new_hold

LIMITS = {
    "reason": values.REASON_MAX,
    "notice": values.NOTICE_MAX,
    "case": values.CASE_MAX,
    "placed_by": values.ACTOR_MAX,
    "source": values.ACTOR_MAX,
}
REQUIRED = ("reason", "placed_by", "source")


@given(st.uuids().map(str).filter(lambda uuid: not uuid.startswith(CANARY_PREFIX)))
def test_every_usual_spelling_of_a_uuid_means_the_same_instance(uuid: str) -> None:
    for spelling in (uuid, uuid.upper(), uuid.replace("-", ""), f"  {uuid}\n"):
        assert parse_instance(spelling) == uuid
        assert looks_like_uuid(spelling)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "web-7",
        HELD[:-1],
        HELD + "0",
        HELD.replace("1", "g", 1),
        HELD.replace("-", "_"),
        HELD.replace("-", "--"),
        "{" + HELD + "}",
        "urn:uuid:" + HELD,
        HELD.replace("1", "\uff11"),
        HELD + "\n" + HELD,
        "'; DROP TABLE hold; --",
        "x" * 10_000,
    ],
)
def test_anything_else_is_no_instance(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"^instance: .* is not a UUID$") as failed:
        parse_instance(text)
    assert failed.value.field == "instance"
    assert len(str(failed.value)) < 450


def test_a_canarys_uuid_is_reserved() -> None:
    canary = CANARY_PREFIX + "0123456789ab"
    for spelling in (canary, canary.upper(), canary.replace("-", "")):
        assert looks_like_uuid(spelling)
        with pytest.raises(InvalidValue, match="reserved for doctor's canaries"):
            parse_instance(spelling)


@pytest.mark.parametrize("field", LIMITS)
@pytest.mark.parametrize(
    "text",
    [
        *(f"a{character}b" for character in "\0\t\n\r\x1b\x7f\x85\u2028\u2029\u200b\u202e\ufeff"),
        "\ud800",
        "\tx",
        "x\n",
    ],
)
def test_a_text_that_could_drive_a_terminal_or_start_a_line_is_refused(
    field: str, text: str
) -> None:
    with pytest.raises(InvalidValue, match=rf"^{field}: unprintable character U\+") as failed:
        new_hold(**{field: text})
    assert str(failed.value).isprintable()


@pytest.mark.parametrize("field", LIMITS)
def test_a_text_has_a_greatest_length(field: str) -> None:
    limit = LIMITS[field]
    assert getattr(new_hold(**{field: "漢" * limit}), field) == "漢" * limit
    with pytest.raises(InvalidValue, match=f"^{field}: {limit + 1} characters, at most {limit}"):
        new_hold(**{field: "x" * (limit + 1)})


@pytest.mark.parametrize("field", REQUIRED)
@pytest.mark.parametrize("text", ["", "   "])
def test_what_is_required_is_not_empty(field: str, text: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{field}: must not be empty$"):
        new_hold(**{field: text})


@pytest.mark.parametrize("kind", Kind)
def test_without_a_notice_the_caller_reads_what_kind_of_lock_it_is(kind: Kind) -> None:
    assert new_hold(kind=kind).notice == DEFAULT_NOTICE[kind]
    assert new_hold(kind=kind, notice="  ").notice == DEFAULT_NOTICE[kind]
    assert new_hold(kind=kind, notice=" call us ").notice == "call us"


@pytest.mark.parametrize("kind", Kind)
def test_the_usual_notice_gives_no_reason_and_is_a_line(kind: Kind) -> None:
    notice = DEFAULT_NOTICE[kind]
    assert one_line("notice", notice, values.NOTICE_MAX) == notice


@pytest.mark.parametrize("grace", [0, GRACE_MAX])
def test_a_grace_may_be_anything_from_nothing_to_a_day(grace: int) -> None:
    assert new_hold(grace=grace).grace == grace


@pytest.mark.parametrize("grace", [-1, GRACE_MAX + 1])
def test_a_grace_beyond_that_is_refused(grace: int) -> None:
    with pytest.raises(InvalidValue, match=f"^grace: {grace} s is not between 0 and {GRACE_MAX}$"):
        new_hold(grace=grace)


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=100))
def test_a_printable_text_is_stored_as_it_is_without_outer_blanks(text: str) -> None:
    line = one_line("reason", text, 100)
    assert line == text.strip(" ")
    assert len(line.splitlines()) <= 1


@pytest.mark.parametrize("more", [{"kind": Kind.STATE_LOCK}, {"blocks": "delete,stop"}])
def test_only_what_bars_a_start_can_preserve_disks(more: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="preserve"):
        new_hold(preserve=True, **more)
    assert new_hold(preserve=True, blocks="delete,start").preserve
