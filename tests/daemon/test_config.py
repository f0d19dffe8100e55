"""The settings: what is wrong is said with file and key, and every one is documented."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootlockd.config import Config, load
from bootlockd.errors import ConfigError
from waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/bootlock.toml.md"
PROGRAM = Path(sys.executable).parent / "bootlockd"
EXAMPLE = ROOT / "packaging/bootlock.toml"


def defaults(section: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each setting by its full name, with its default."""
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from defaults(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


DEFAULTS = dict(defaults(Config()))


def names() -> list[str]:
    return list(DEFAULTS)


def problem_of(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_missing_and_an_empty_file_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "bootlock.toml"
    assert load(path) == Config()
    path.touch()
    assert load(path) == Config()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[deamon]\n", "deamon: no such setting"),
        ("[daemon]\nintervall = 3\n", "daemon.intervall: no such setting"),
        ("[daemon]\ninterval = 0\n", "daemon.interval: must be a whole number from 1 to 31622400"),
        ("[daemon]\ninterval = true\n", "daemon.interval: must be a whole number"),
        ("[daemon]\ninterval = 1e9\n", "daemon.interval: must be a whole number"),
        ("[daemon]\ninterval = 99999999999\n", "daemon.interval: must be a whole number"),
        ("[daemon]\ncontrol_socket = 'run/x'\n", "daemon.control_socket: must be an absolute path"),
        ('[daemon]\ncontrol_socket = "/a\\u0000"\n', "daemon.control_socket: must be an absolute"),
        ("[libvirt]\nuris = 'qemu:///system'\n", "libvirt.uris: must be a list of texts"),
        ("[libvirt]\nuris = []\n", "libvirt.uris: must be a list of texts"),
        ("[libvirt]\nuris = ['']\n", "libvirt.uris: must be a list of texts"),
        ("[metrics]\nlisten = '0.0.0.0:9644'\n", "metrics.listen: must be a loopback address"),
        ("[metrics]\nlisten = 'localhost:9644'\n", "metrics.listen: must be an address and a port"),
        ("[metrics]\nlisten = '127.0.0.1:0'\n", "metrics.listen: must end in a port"),
        ("metrics = 3\n", "metrics: must be a table"),
        ("[sync]\nmax_release_percent = 101\n", "sync.max_release_percent: must be at most 100"),
        ("[fleet]\nmax_release_percent = 101\n", "fleet.max_release_percent: must be at most 100"),
        ("[sources.flie]\n", "sources.flie: no such setting"),
        ("[sources.file]\ndirectory = 3\n", "sources.file.directory: must be an absolute path"),
        ("[polkit]\nrules_file = '/x.conf'\n", "polkit.rules_file: must end in .rules"),
        ("[daemon\n", "Expected ']'"),
        ('"a\\nb" = 1\n', r"'a\nb': no such setting"),
        ("x = " + "[" * 5000, ""),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, problem: str) -> None:
    said = problem_of(tmp_path / "bootlock.toml", text)
    assert said.startswith(problem)
    assert said.splitlines() == [said]


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bootlock.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(max_size=200),
        st.builds(
            lambda name, value: "[{}]\n{} = {}\n".format(*name.rsplit(".", 1), value),
            st.sampled_from(names()),
            st.one_of(
                st.integers().map(str),
                st.floats().map(str),
                st.sampled_from(["true", "{}", "[]", "[1]", "1979-05-27", "''", "'127.0.0.1:1'"]),
                st.text(st.characters(exclude_characters="'", codec="utf-8")).map("'{}'".format),
            ),
        ),
    )
)
def test_junk_is_settings_or_an_error_of_ours(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bootlock.toml"
    path.write_text(text, "utf-8")
    problem = ""
    try:
        load(path)
    except ConfigError as error:
        problem = str(error)
    assert not problem or problem.startswith(f"{path}: ")


@pytest.mark.parametrize("name", names())
def test_each_setting_is_documented_with_its_default(name: str) -> None:
    default = DEFAULTS[name]
    shown = {True: "true", False: "false"}.get(default) if isinstance(default, bool) else None
    if default is None:
        shown = "unset"
    if shown is None and isinstance(default, tuple):
        shown = ", ".join(f'"{item}"' for item in default) or "none"
    row = re.search(rf"^\| `{re.escape(name)}` \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert row, f"{name} is not in {PAGE.name}"
    assert (shown or str(default)) in row[1]


def test_the_page_knows_no_settings_that_there_are_not() -> None:
    documented = re.findall(r"^\| `(\w+(?:\.\w+)+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(names())


def test_the_example_changes_nothing() -> None:
    assert load(EXAMPLE) == Config()
    commented = EXAMPLE.read_text("utf-8")
    for name in names():
        assert re.search(rf"^# {name.rpartition('.')[2]} = ", commented, re.MULTILINE), name


def test_check_config_says_so_and_starts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bootlock.toml"
    path.write_text("[daemon]\ninterval = 5\n", "utf-8")
    command = [str(PROGRAM), "--config", str(path), "--check-config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{path}: no fault\n")
    path.write_text("[daemon]\ninterval = 'x'\n", "utf-8")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"bootlockd: {path}: daemon.interval: must be a whole number")


@pytest.mark.parametrize(
    "program", [[PROGRAM], [sys.executable, "-I", "-m", "bootlockd.exporter"]], ids=repr
)
def test_settings_that_were_named_and_are_not_there_are_not_the_defaults(
    program: list[str | Path], tmp_path: Path
) -> None:
    command = [*program, "--config", tmp_path / "mistyped.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    assert "mistyped.toml does not exist" in done.stderr


def test_the_version_is_printed() -> None:
    command = [str(PROGRAM), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"bootlockd \d+\.\d+\.\d+\n", said)
