"""What a guest's owner can write reaches no shell, no SQL and no terminal as anything but text."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from pwd import getpwuid

import pytest

from hook.both import ask_both
from hook.wrappers import instead_of
from hookrunner import DECIDE, SQLITE3, Answer, Hook, domain_xml
from lockdb import database, holds, refusals
from lockdb.decision import Verdict
from lockdb.refusals import Refusal
from samples import FREE, HELD, place

#: ``{x}`` is a file that must not come into being.
NAMES = [
    "-rf",
    "--",
    "-init",
    ".shell touch {x}",
    "$(touch {x})",
    "`touch {x}`",
    "; touch {x} #",
    "| touch {x}",
    "a'; touch {x}; '",
    'a"; touch {x}; "',
    "two\nlines; touch {x}",
    "\ttab\r",
    " outer blanks ",
    "é漢😀\u2028\x7f",
    "'; DROP TABLE hold; --",
    "'); DELETE FROM hold; --",
    "&lt;&amp;amp;&quot;",
    "</name><uuid>" + FREE + "</uuid>",
    "<source file='/x'/>",
    "%s%n%x",
    "\\c\\n\\033[31m\\",
    "*",
    "~root",
    "$HOME ${x}",
    "allow",
    "refuse a b c d",
    "undecided",
]


@pytest.fixture
def x(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_never_more_than_a_name(hook: Hook, x: Path, name: str) -> None:
    name = name.replace("{x}", str(x))
    for operation in ("prepare", "start", "migrate", "restore", "reconnect"):
        held = hook.run(domain_xml(HELD, name), operation, name=name)
        free = hook.run(domain_xml(FREE, name), operation, name=name)
        assert free == Answer(0, b"", b"")
        if operation in {"restore", "reconnect"}:
            assert held == free
        else:
            assert held.line.startswith(
                f"bootlock: {'migrate' if operation == 'migrate' else 'start'} "
            )
            assert name.strip() not in held.line
    assert not x.exists()
    with database.open_db(hook.database) as lock_db:
        assert len(holds.history(lock_db)) == 1
        spool = refusals.pending(lock_db)
    assert {refusal.operation: (refusal.name, refusal.count) for refusal in spool} == {
        "start": (name, 2),  # asked in prepare and in start
        "migrate": (name, 1),
    }


def test_of_a_long_name_the_beginning_is_recorded(hook: Hook) -> None:
    name = "long é " * 1000
    assert hook.run(domain_xml(HELD, name), name=name).status == 1
    assert _only_refusal(hook).name == name[:255]


def test_a_name_that_is_not_utf_8_is_recorded_as_far_as_it_can_be_read(hook: Hook) -> None:
    document = domain_xml(HELD, "web").encode().replace(b"web", b"w\xffb")
    assert hook.run(document, name=b"w\xffb").status == 1
    assert _only_refusal(hook).name == "w\ufffdb"
    with database.open_db(hook.database) as lock_db:
        assert refusals.drain(lock_db, now=1) == 1


@pytest.mark.parametrize(
    "notice",
    [
        "back\\nslash \\c \\033[31m \\",
        "%s %n %%",
        "$(id) `id` $HOME",
        "it's \"quoted\"; 'DROP'",
        "two  blanks   three",
        "* ~ ? [a-z]",
        "[hold 0000000000000000]",
        "-n -e",
        "é漢😀" * 60,
    ],
)
def test_a_notice_arrives_as_it_was_written(hook: Hook, notice: str) -> None:
    hold = place(hook.database, FREE, notice=notice)
    line = hook.run(domain_xml(FREE)).line
    assert line == f"bootlock: start refused: {notice} [hold {hold.id}]"


def test_a_reason_never_leaves_the_database(hook: Hook) -> None:
    place(hook.database, FREE, reason="police file 0815")
    assert b"0815" not in hook.run(domain_xml(FREE)).stderr


def test_settings_of_roots_own_sqlite_shell_are_not_read(hook: Hook, x: Path) -> None:
    (hook.directory / ".sqliterc").write_text(f".shell touch {x}\n")
    # The checkout may lie in root's home, and be hidden.
    decide = hook.directory / "decide.sql"
    decide.write_text(DECIDE.read_text())
    hook = hook.with_paths(decide=decide)
    at_home = instead_of(getpwuid(0).pw_dir, hook.directory)
    subprocess.run([*at_home, SQLITE3, ":memory:", ""], check=True)
    assert x.exists(), "it would have been read"
    x.unlink()
    assert hook.run(domain_xml(FREE), wrapper=at_home).status == 0
    assert "[hold " in hook.run(domain_xml(HELD), wrapper=at_home).line
    assert not x.exists()


def _in_description(filling: bytes) -> Callable[[str], bytes]:
    return lambda uuid: domain_xml(uuid).encode().replace(b"65536", filling)


def _in_devices(filling: bytes) -> Callable[[str], bytes]:
    return lambda uuid: domain_xml(uuid).encode().replace(b"<devices>", b"<devices>" + filling)


def _each(pattern: str, count: int) -> bytes:
    return "".join(pattern.replace("#", str(number)) for number in range(count)).encode()


# Three megabytes each, unless said otherwise.
DOCUMENTS: dict[str, tuple[Verdict, Callable[[str], bytes]]] = {
    "text": (Verdict.ALLOW, _in_description(b"a" * 3_000_000)),
    "invalid UTF-8": (Verdict.ALLOW, _in_description(b"\xff\xc3\xed\xa0\x80" * 600_000)),
    "line feeds": (Verdict.ALLOW, _in_description(b"\n" * 3_000_000)),
    "elements": (Verdict.ALLOW, _in_description(b"<a>" * 1_000_000)),
    "UUIDs": (Verdict.ALLOW, _in_description(f"<uuid>{HELD}</uuid>".encode() * 60_000)),
    "one attribute": (Verdict.ALLOW, _in_devices(b"<source file='/" + b"a" * 3_000_000 + b"'/>")),
    "escapes": (Verdict.ALLOW, _in_devices(b"<source file='" + b"&lt;" * 750_000 + b"'/>")),
    "backslashes": (Verdict.ALLOW, _in_devices(b"<source file='" + b'\\"' * 1_500_000 + b"'/>")),
    "attributes": (Verdict.ALLOW, _in_devices(b"<source " + b"a='b' " * 500_000 + b"/>")),
    "100,000 open sources": (Verdict.ALLOW, _in_devices(b"<source " * 100_000)),
    "100,000 files": (Verdict.ALLOW, _in_devices(_each("<source file='/#'/>", 100_000))),
    "sources of no kind": (Verdict.ALLOW, _in_devices(_each("<source a='#' ", 150_000))),
    "network disks": (
        Verdict.ALLOW,
        _in_devices(
            _each("<source protocol='nbd' name='#'><host name='h' port='#'/></source>", 42_000)
        ),
    ),
    "hosts": (
        Verdict.ALLOW,
        _in_devices(b"<source protocol='nbd'>" + b"<host " * 500_000 + b"</source>"),
    ),
    "in front of the UUID": (
        Verdict.UNDECIDED,
        lambda uuid: domain_xml(uuid).encode().replace(b"<uuid>", b"<a>" * 1_000_000 + b"<uuid>"),
    ),
    "name": (Verdict.ALLOW, lambda uuid: domain_xml(uuid, "n" * 3_000_000).encode()),
    "zero bytes": (Verdict.UNDECIDED, _in_description(b"\0" * 3_000_000)),
    "separators": (Verdict.UNDECIDED, _in_description((b"a" * 3000 + b"\x1f\x1e") * 1000)),
    "no end": (Verdict.UNDECIDED, lambda uuid: domain_xml(uuid).encode()[:-10] + b" " * 3_000_000),
}


@pytest.mark.parametrize("what", DOCUMENTS)
@pytest.mark.parametrize("uuid", [HELD, FREE])
def test_a_huge_document_is_decided_within_two_seconds(hook: Hook, uuid: str, what: str) -> None:
    verdict, document = DOCUMENTS[what]
    if verdict is Verdict.ALLOW and uuid == HELD:
        verdict = Verdict.REFUSE
    before = os.times()
    answer = hook.run(document(uuid))
    after = os.times()
    # Of a processor: the machine may be busy with something else.
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 2
    if verdict is Verdict.ALLOW:
        assert answer == Answer(0, b"", b"")
    else:
        assert answer.status == 1
        assert ("cannot decide" in answer.line) == (verdict is Verdict.UNDECIDED)


def test_python_reads_a_huge_document_as_the_hook_does(hook: Hook) -> None:
    document = _in_devices(_each("<source file='/#'/>", 50_000))
    assert ask_both(hook, document(FREE)).verdict is Verdict.ALLOW
    assert ask_both(hook, document(HELD)).verdict is Verdict.REFUSE


def _only_refusal(hook: Hook) -> Refusal:
    with database.open_db(hook.database) as lock_db:
        (refusal,) = refusals.pending(lock_db)
        return refusal
