"""While an upgrade exchanges the database's format and decide.sql, the hook waits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hookrunner import DECIDE, ENVIRONMENT, Answer, Hook, domain_xml
from samples import FREE


def test_it_decides_with_what_the_upgrade_has_put_there(hook: Hook, tmp_path: Path) -> None:
    exchanged = hook.with_paths(decide=tmp_path / "decide.sql")
    exchanged.upgrading.touch()
    with subprocess.Popen(
        [exchanged.script, "guest", "start", "begin", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as asked:
        assert asked.stdin
        asked.stdin.write(domain_xml(FREE).encode())
        asked.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            asked.wait(0.5)
        exchanged.decide.write_text(DECIDE.read_text())
        exchanged.upgrading.unlink()
        assert asked.wait(60) == 0
        assert asked.stderr
        assert asked.stderr.read() == b""


def test_one_that_was_killed_half_way_keeps_no_guest_off(hook: Hook) -> None:
    hook.upgrading.touch()
    assert hook.run(domain_xml(FREE)) == Answer(0, b"", b"")
