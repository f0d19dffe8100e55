"""What a person sees: tables on a terminal, completions in the shell."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from bootlock.output import json_text, printable
from clirunner import RUNNING, Cli


def test_a_terminal_gets_an_aligned_table_no_wider_than_itself(cli: Cli) -> None:
    hold = cli.place("web")
    cli.ok("release", hold, "--reason", "done")
    lines = _on_terminal(cli, 60, "list", "--all").splitlines()
    assert lines[0].startswith("HOLD              INSTANCE")
    assert set(lines[1]) <= {"-", " ", "…"}
    assert lines[2].startswith(f"{hold}  {RUNNING}"[:50])
    assert [len(line) for line in lines] == [60, 60, 60]


def test_what_a_guest_is_called_cannot_drive_the_terminal(cli: Cli) -> None:
    assert printable("\x1b]0;root\x07\u202egnp.exe\n") == "?]0;root??gnp.exe?"


def test_json_says_all_of_it_and_cannot_drive_the_terminal_either() -> None:
    hostile = "\x1b]0;root\x07 \x9b2J \u202egnp.exe \x7f \ud800 \U000e0041 \u2028"
    text = json_text({"name": hostile, "notice": "Grüße, 日本 💾"})
    assert json.loads(text) == {"name": hostile, "notice": "Grüße, 日本 💾"}
    assert all(line.isprintable() for line in text.split("\n"))
    assert "Grüße, 日本 💾" in text, "what can be printed is"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_completion_script(cli: Cli, shell: str) -> None:
    script = _complete(cli, f"{shell}_source")
    assert "_BOOTLOCK_COMPLETE" in script


def test_commands_holds_names_and_choices_are_completed(cli: Cli) -> None:
    hold = cli.place(RUNNING)
    assert "plain,place" in _complete(cli, "bash_complete", "bootlock pl")
    assert f"plain,{hold}" in _complete(cli, "bash_complete", f"bootlock release {hold[:3]}")
    offered = _complete(cli, "bash_complete", "bootlock place ")
    assert {"plain,web", "plain,db", f"plain,{RUNNING}"} <= set(offered.splitlines())
    choices = _complete(cli, "bash_complete", "bootlock place web --on-running ma")
    assert choices.split() == ["plain,managed-save"]


def test_a_permit_to_revoke_is_completed_while_it_is_in_force(cli: Cli) -> None:
    lasts, ended = (
        cli.ok("permit", RUNNING, "--op", "start", "--for", "1h", "--reason", "r", "--json").json[
            "id"
        ]
        for _ in range(2)
    )
    cli.ok("permit", "--revoke", ended, "--reason", "done")
    offered = _complete(cli, "bash_complete", "bootlock permit --revoke ")
    assert offered.split() == [f"plain,{lasts}"]
    assert _complete(cli, "bash_complete", f"bootlock permit --revoke x{lasts}").strip() == ""


def test_a_completion_that_cannot_be_had_prints_nothing(cli: Cli) -> None:
    cli.path.unlink()
    assert _complete(cli, "bash_complete", "bootlock release 3").strip() == ""


def _complete(cli: Cli, instruction: str, line: str = "") -> str:
    words = line.split()
    last = len(words) if line.endswith(" ") else len(words) - 1
    result = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "bootlock")],
        env=os.environ
        | {
            "_BOOTLOCK_COMPLETE": instruction,
            "COMP_WORDS": line,
            "COMP_CWORD": str(last),
            "BOOTLOCK_DATABASE": str(cli.path),
            "BOOTLOCK_CONNECT": cli.uri,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout


def _on_terminal(cli: Cli, columns: int, *arguments: str) -> str:
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bootlock.main", "--database", str(cli.path), *arguments],
        stdout=secondary,
        stdin=secondary,
        env=os.environ | {"COLUMNS": str(columns)},
    )
    os.close(secondary)
    shown = b""
    # Linux ends a terminal whose other side is closed with EIO, not with an empty read.
    try:
        while chunk := os.read(primary, 4096):
            shown += chunk
    except OSError:
        pass
    os.close(primary)
    assert process.wait() == 0
    return shown.decode().replace("\r\n", "\n")
