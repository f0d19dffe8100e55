"""The documentation names what there is, and all of it: commands, options, exit codes, paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bootlock.exits import Exit
from bootlock.main import cli
from bootlockd.main import cli as daemon

ROOT = Path(__file__).resolve().parents[1]
CLI = (ROOT / "docs/cli.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
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


def told(page: Path) -> Iterator[str]:
    """What a page tells to type: its commands of ours, each from its first word to its end."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n([\s\S]*?)^```|^((?: {4}.*\n)+)", text, re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```[\s\S]*?^```", "", text, flags=re.MULTILINE))
    code = [*("\n".join(block) for block in blocks), *(" ".join(span.split()) for span in spans)]
    for line in "\n".join(code).splitlines():
        # What stands in quotes may be anything.
        plain = re.sub(r"""'[^']*'|"[^"]*\"""", "TEXT", line.strip())
        for said in re.findall(r"(?:^|[|;&`(] *|^[#$] )\b(bootlockd? .+)", plain):
            # Without what a shell keeps for itself, a drawing's lines, and the sentence around it.
            yield re.split(r" [|>;&#─]|[|;&)`]|[,:](?: |$)", said)[0]


def wrong_in(said: str) -> list[str]:
    """Words of a command that there are not: subcommands and options."""
    program, *words = said.split()
    command: click.Command = daemon if program == "bootlockd" else cli
    known = set(_HELP)
    wrong = []
    takes_value = False
    for word in words:
        known |= {option for parameter in command.params for option in parameter.opts}
        if word.startswith("-"):
            wrong += [word] * (word not in known)
            takes_value = not any(
                isinstance(parameter, click.Option) and parameter.is_flag
                for parameter in command.params
                if word in parameter.opts
            )
        elif not takes_value and isinstance(command, click.Group) and word.islower():
            if word not in command.commands:
                return [*wrong, word]
            command = command.commands[word]
        else:
            takes_value = False
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_that_a_page_tells_to_type_is_one(page: Path) -> None:
    assert [(said, wrong) for said in told(page) if (wrong := wrong_in(said))] == []


def test_commands_that_there_are_not_would_be_found() -> None:
    assert sum(len(list(told(page))) for page in PAGES) > 150
    assert wrong_in("bootlock hold web --reason TEXT") == ["hold"]
    assert wrong_in("bootlock --config FILE place web --because TEXT") == ["--because"]
    assert wrong_in("bootlock journal shwo --last 3") == ["shwo"]
    assert wrong_in("bootlockd --check-settings") == ["--check-settings"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_page_begins_with_what_it_is_for(page: Path) -> None:
    title, _, first = page.read_text("utf-8").partition("\n\n")
    assert re.match(r"# .+$", title)
    assert re.match(r"[\w`]", first), "a sentence before all tables, commands and headings"


def test_the_index_leads_to_each_page() -> None:
    """The list is the site's navigation: docs/index.md says where a new page belongs."""
    index = (ROOT / "docs/index.md").read_text("utf-8")
    for page in ROOT.glob("docs/**/*.md"):
        name = page.relative_to(ROOT / "docs")
        assert f"]({name})" in index or page.name == "index.md", f"add {name} to docs/index.md"


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
    assert len(paths) == 5
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
