"""The documentation names what there is: commands, options, exit codes, events, paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bootlock.exits import Exit
from bootlock.main import cli

ROOT = Path(__file__).resolve().parents[1]
CLI = (ROOT / "docs/cli.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
# click's own, the same on every command.
_HELP = {"-h", "--help"}


def commands(group: click.Group = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_and_option_is_in_the_reference(name: str) -> None:
    command, *sub = name.split()
    assert re.search(rf"^## {command}\b.*{' '.join(sub)}", CLI, re.MULTILINE)
    for parameter in COMMANDS[name].params:
        for option in set(parameter.opts) - _HELP:
            if option.startswith("--"):
                assert f"`{option}" in CLI, f"{name} {option}"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example_and_prints_json(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert f"bootlock {name}" in command.help.partition("Example:")[2]
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "file":
            assert parameter.help or isinstance(parameter.type, click.Choice), parameter.name
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--json" in options or name == "journal export"


def test_each_exit_code_is_in_the_reference_and_the_help() -> None:
    assert cli.epilog
    for code in Exit:
        assert re.search(rf"^\| {code.value} \| ", CLI, re.MULTILINE)
        assert re.search(rf"^  {code.value}  ", cli.epilog, re.MULTILINE)


def test_each_journal_event_is_in_the_reference() -> None:
    sources = "".join(path.read_text("utf-8") for path in ROOT.glob("lockdb/lockdb/*.py"))
    events = set(re.findall(r'\bappend\(\s*(?:db, )?"(\w+)"', sources)) | {"armed", "disarmed"}
    assert len(events) > 8
    for event in events:
        assert f"`{event}`" in CLI, event


def test_each_path_that_the_hook_uses_is_documented() -> None:
    hook = (ROOT / "hooks/50-bootlock").read_text("utf-8")
    pages = "".join(page.read_text("utf-8") for page in PAGES)
    paths = re.findall(r"^\w+=(/\S+)$", hook, re.MULTILINE)
    assert len(paths) == 4
    for path in paths:
        assert path in pages or Path(path).name in pages, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_within_the_documentation_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings
            }
            assert anchor in slugs, target
