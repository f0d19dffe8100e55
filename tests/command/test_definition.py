"""bootlock show --xml: the definition that is kept, or libvirt's own."""

from __future__ import annotations

import hashlib
import os
import pty
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bootlockd import keptdefinition
from bootlockd.keptdefinition import KeptDefinition, Snapshot
from clirunner import RUNNING, SHUT_OFF, Cli, Result, nobody

UNKNOWN = "33333333-3333-4333-8333-333333333333"
PASSWORD = "correct horse"
SHOWN = f"""<domain type='test'>
  <name>web\t\x9b2J \u202eGrüße</name>
  <uuid>{RUNNING}</uuid>
  <devices>
    <graphics type='vnc' port='-1'/>
  </devices>
</domain>
"""
KEPT = KeptDefinition(
    instance=RUNNING,
    uri="test:///default",
    name="web",
    document=SHOWN.replace("'-1'", f"'-1' passwd='{PASSWORD}'"),
    shown=SHOWN,
    autostart=True,
    snapshots=(
        Snapshot("before", f"<domainsnapshot><name>before</name>{PASSWORD}</domainsnapshot>"),
        Snapshot("../../after", "<domainsnapshot/>"),
    ),
    current_snapshot="before",
    nvram=None,
    kept_at=1_700_000_000,
    versions="libvirt 9000000, QEMU 7002000",
)


@pytest.fixture
def custody(tmp_path: Path) -> Path:
    """Where definitions are kept, by the settings beside it."""
    return make_custody(tmp_path)


def make_custody(directory: Path) -> Path:
    custody = directory / "custody"
    custody.mkdir(mode=0o700)
    config = directory / "bootlock.toml"
    config.write_text(f'[custody]\ndirectory = "{custody}"\n', "utf-8")
    return custody


def show(cli: Cli, custody: Path, *arguments: str) -> Result:
    return cli("--config", str(custody.with_name("bootlock.toml")), "show", *arguments)


def keep(custody: Path, kept: KeptDefinition = KEPT) -> Path:
    path = keptdefinition.path_for(custody, kept.instance)
    keptdefinition.write(path, kept)
    return path


def test_what_is_kept_is_printed_as_it_is_and_without_passwords(cli: Cli, custody: Path) -> None:
    keep(custody)
    assert show(cli, custody, RUNNING, "--xml") == Result(0, SHOWN, "")
    assert show(cli, custody, RUNNING, "--xml", "--secrets") == Result(0, KEPT.document, "")


def test_a_pipe_gets_its_very_bytes_and_one_newline(cli: Cli, custody: Path) -> None:
    keep(custody)
    done = subprocess.run(_program(cli, custody, "--secrets"), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, KEPT.document.encode(), b"")
    keep(custody, replace(KEPT, document="<domain/>"))
    done = subprocess.run(_program(cli, custody, "--secrets"), capture_output=True, check=False)
    assert done.stdout == b"<domain/>\n"


def test_a_terminal_gets_the_same_document_that_cannot_drive_it(cli: Cli, custody: Path) -> None:
    keep(custody)
    primary, secondary = pty.openpty()
    subprocess.run(_program(cli, custody), stdout=secondary, check=True, timeout=60)
    os.close(secondary)
    shown = os.read(primary, 65536).decode().replace("\r\n", "\n")
    os.close(primary)
    assert "<name>web\t&#x9b;2J &#x202e;Grüße</name>" in shown
    assert all(line.replace("\t", "").isprintable() for line in shown.split("\n"))
    assert ET.canonicalize(shown) == ET.canonicalize(SHOWN)


def test_it_is_found_by_name_and_by_hold_and_by_uuid_without_a_database(
    cli: Cli, custody: Path
) -> None:
    keep(custody)
    hold = cli.place(RUNNING, "--no-wait")
    for what in ("web", hold, hold[:8], RUNNING):
        assert show(cli, custody, what, "--xml").out == SHOWN, what
    cli.path.unlink()
    assert show(cli, custody, RUNNING, "--xml").out == SHOWN
    assert show(cli, custody, "web", "--xml").exit == 5


def test_it_is_printed_though_libvirt_is_out_of_reach(cli: Cli, custody: Path) -> None:
    keep(custody)
    gone = Cli(cli.path, f"qemu+unix:///system?socket={custody}/none", cli.read)
    assert show(gone, custody, RUNNING, "--xml") == Result(0, SHOWN, "")
    assert show(gone, custody, SHUT_OFF, "--xml").exit == 6


@pytest.mark.parametrize("options", [[], ["--secrets"]])
def test_where_none_is_kept_it_is_libvirts_and_said_to_be(
    cli: Cli, custody: Path, options: list[str]
) -> None:
    result = show(cli, custody, "db", "--xml", *options)
    assert result.exit == 0
    assert result.out.startswith("<domain type='test'>\n  <name>db</name>")
    assert result.out.endswith("</domain>\n")
    assert result.err == "bootlock: none is kept on this host: this is what libvirt has now\n"


def test_of_what_is_nowhere_it_says_so(cli: Cli, custody: Path) -> None:
    result = show(cli, custody, UNKNOWN, "--xml")
    assert (result.exit, result.out) == (3, "")
    assert "no definition of" in result.err
    assert "; ask on the host where it is" in result.err


def test_as_json_it_says_where_it_is_from(cli: Cli, custody: Path) -> None:
    keep(custody)
    assert show(cli, custody, RUNNING, "--xml", "--json").json == {
        "instance": RUNNING,
        "name": "web",
        "uri": "test:///default",
        "origin": "kept",
        "kept_at": "2023-11-14T22:13:20Z",
        "autostart": True,
        "snapshots": ["before", "../../after"],
        "xml": SHOWN,
    }
    assert show(cli, custody, RUNNING, "--xml", "--secrets", "--json").json["xml"] == KEPT.document
    libvirts = show(cli, custody, SHUT_OFF, "--xml", "--json").json
    xml = libvirts.pop("xml")
    assert "<name>db</name>" in xml
    assert libvirts == {
        "instance": SHUT_OFF,
        "name": "db",
        "uri": cli.uri,
        "origin": "libvirt",
        "kept_at": None,
        "autostart": False,
        "snapshots": [],
    }


@pytest.mark.parametrize("options", [["--secrets"], ["--xml", "--fleet"]])
def test_options_that_do_not_go_together_are_wrong_usage(
    cli: Cli, custody: Path, options: list[str]
) -> None:
    keep(custody)
    result = show(cli, custody, RUNNING, *options)
    assert (result.exit, result.out) == (2, "")


def test_one_that_is_damaged_is_not_printed(cli: Cli, custody: Path) -> None:
    path = keep(custody)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    result = show(cli, custody, RUNNING, "--xml")
    assert (result.exit, result.out) == (5, "")
    assert f"{path} is damaged; move it away" in result.err


@pytest.mark.parametrize("body", [b'{"snapshots": [], "since": 1}', b"{}", b"[]", b"", b"\xff"])
def test_one_in_the_format_of_another_version_is_said_to_be(
    cli: Cli, custody: Path, body: bytes
) -> None:
    path = keptdefinition.path_for(custody, RUNNING)
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    result = show(cli, custody, RUNNING, "--xml")
    assert (result.exit, result.out) == (5, "")
    assert "was written by another version of bootlock; upgrade bootlock" in result.err


def test_who_may_not_read_it_is_told_so_and_not_given_libvirts(cli: Cli) -> None:
    # Not in tmp_path: pytest keeps others out of it.
    with TemporaryDirectory() as name:
        custody = make_custody(Path(name))
        Path(name).chmod(0o755)
        path = keep(custody)
        with nobody():
            results = [show(cli, custody, uuid, "--xml") for uuid in (RUNNING, SHUT_OFF)]
    for result in results:
        # Nor can it be told whether one is kept.
        assert (result.exit, result.out) == (5, "")
    assert results[0].err == f"bootlock: {path}: may not be read; run as root\n"


def test_bad_settings_are_not_passed_over(cli: Cli, custody: Path) -> None:
    keep(custody)
    custody.with_name("bootlock.toml").write_text("[custody]\ndirectory = 7\n", "utf-8")
    result = show(cli, custody, RUNNING, "--xml")
    assert (result.exit, result.out) == (2, "")
    assert "custody.directory: must be an absolute path" in result.err


def _program(cli: Cli, custody: Path, *options: str) -> list[str]:
    config = str(custody.with_name("bootlock.toml"))
    known = ["--database", str(cli.path), "--connect", cli.uri, "--config", config]
    return [sys.executable, "-m", "bootlock.main", *known, "show", RUNNING, "--xml", *options]
