"""Any /bin/sh will do: the hook says the same under each."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hook.wrappers import CLOSED_STDIN
from hookrunner import Answer, Hook, domain_xml
from lockdb import database, refusals
from samples import FREE, HELD, place

SHELLS = {
    "dash": ("/usr/bin/dash",),
    "bash": ("/usr/bin/bash", "--posix"),
    # Called by the name of sh, as where /bin/sh is bash.
    "bash as sh": ("/usr/bin/bash", "-c", 'exec -a sh /usr/bin/bash "$@"', "sh"),
    "busybox": ("/usr/bin/busybox", "sh"),
}


@pytest.fixture(params=SHELLS)
def under(request: pytest.FixtureRequest, hook: Hook) -> Hook:
    return replace(hook, shell=SHELLS[request.param])


@pytest.mark.parametrize("operation", ["prepare", "start", "migrate"])
def test_a_held_guest_is_refused_and_recorded(under: Hook, operation: str) -> None:
    notice = "back\\nslash %s 'quoted' \"too\" $HOME `id` * é"
    hold = place(under.database, FREE, notice=notice)
    asked = "migrate" if operation == "migrate" else "start"
    name = "-n $(id)\n\\c 'x'"
    answer = under.run(domain_xml(FREE, name), operation, name=name)
    assert answer.status == 1
    assert answer.line == f"bootlock: {asked} refused: {notice} [hold {hold.id}]"
    with database.open_db(under.database) as lock_db:
        (refusal,) = refusals.pending(lock_db)
    assert (refusal.instance, refusal.hold, refusal.name) == (FREE, hold.id, name)


def test_a_free_guest_starts_in_silence(under: Hook) -> None:
    assert under.run(domain_xml(FREE)) == Answer(0, b"", b"")


def test_other_operations_pass_in_silence(under: Hook) -> None:
    under.database.unlink()
    for operation in ("reconnect", "restore", "release", "", "start "):
        assert under.run(domain_xml(HELD), operation) == Answer(0, b"", b"")
    assert under.call([], b"") == Answer(0, b"", b"")


def test_what_cannot_be_decided_is_refused(under: Hook) -> None:
    killed = under.directory / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    free = domain_xml(FREE)
    answers = {
        "no domain XML": under.run(b""),
        "gave no domain": under.run(free, wrapper=CLOSED_STDIN),
        "has no UUID": under.run("<domain></domain>"),
        "/nowhere/db is missing": under.with_paths(database=Path("/nowhere/db")).run(free),
        "/nowhere/sqlite3 is missing": under.with_paths(sqlite3=Path("/nowhere/sqlite3")).run(free),
        "gave no answer": under.with_paths(sqlite3=killed).run(free),
    }
    for why, answer in answers.items():
        assert answer.status == 1
        assert re.match(f"bootlock: start refused: cannot decide: .*{why}", answer.line), (
            answer.line
        )
