"""The manual is readable, and nothing that the programs know is missing from it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bootlock.exits import Exit
from bootlock.main import cli
from bootlockd.config import Config
from bootlockd.main import cli as daemon

WRITER = Path(__file__).resolve().parents[2] / "packaging/manual.py"


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manual")
    subprocess.run([sys.executable, WRITER, directory], check=True)
    return directory


def page(manual: Path, name: str) -> str:
    """The page as its reader sees it."""
    shown = ["mandoc", "-T", "utf8", "-O", "width=1000", str(manual / name)]
    text = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    return re.sub(".\b", "", text)


def sections(text: str, heading: str) -> dict[str, str]:
    """The parts of a page below the headings of one depth, by heading."""
    parts = re.split(rf"^{heading}(\S.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def settings(values: object, section: str = "") -> Iterator[str]:
    for field in dataclasses.fields(values):  # type: ignore[arg-type]
        value = getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{section}{field.name}.")
        else:
            yield f"{section}{field.name}"


def missing(command: click.Command, text: str) -> list[str]:
    """The options of a command that do not head a paragraph of the text."""
    tags = re.findall(r"^ +(-.*)$", text, re.MULTILINE)
    words = {word.strip(",") for tag in tags for word in tag.split()}
    options = [option for parameter in command.params for option in parameter.opts]
    return [option for option in options if option.startswith("-") and option not in words]


def test_both_readers_of_manuals_find_no_fault(manual: Path) -> None:
    pages = sorted(manual.iterdir())
    assert [page.name for page in pages] == ["bootlock.1", "bootlock.toml.5", "bootlockd.8"]
    lint = ["mandoc", "-T", "lint", "-W", "warning", *map(str, pages)]
    assert subprocess.run(lint, capture_output=True, text=True, check=False).stdout == ""
    for each in pages:
        groff = ["groff", "-Tutf8", "-mandoc", "-ww", "-z", str(each)]
        assert subprocess.run(groff, capture_output=True, text=True, check=True).stderr == ""


def test_each_command_and_option_is_in_the_manual(manual: Path) -> None:
    text = page(manual, "bootlock.1")
    parts = sections(text, "   ")
    for name, command in commands(cli, "bootlock"):
        (shown,) = [part for head, part in parts.items() if f"{head} ".startswith(f"{name} [")]
        assert missing(command, shown) == []
        assert "Example:" in shown
    assert missing(cli, sections(text, "")["DESCRIPTION"]) == []
    assert missing(daemon, page(manual, "bootlockd.8")) == []


def test_each_exit_code_is_in_the_manual(manual: Path) -> None:
    for name, codes in (("bootlock.1", set(Exit)), ("bootlockd.8", {0, 2})):
        shown = sections(page(manual, name), "")["EXIT STATUS"]
        assert {int(code) for code in re.findall(r"^ +(\d)  ", shown, re.MULTILINE)} == codes


def test_each_setting_is_in_the_manual(manual: Path) -> None:
    text = page(manual, "bootlock.toml.5")
    for name in settings(Config()):
        assert re.search(rf"^ +{re.escape(name)}$", text, re.MULTILINE), name


def test_each_variable_is_in_the_manual(manual: Path) -> None:
    shown = sections(page(manual, "bootlock.1"), "")["ENVIRONMENT"]
    assert set(re.findall(r"^ +([A-Z_]+)$", shown, re.MULTILINE)) == {
        parameter.envvar for parameter in cli.params if parameter.envvar
    }
