"""bootlock export: the archive, and the procedure in its README, run as it is written."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootlock.commands import export
from bootlockd import keptdefinition
from bootlockd.keptdefinition import KeptDefinition, Snapshot
from clirunner import RUNNING, SHUT_OFF, Cli
from hook.wrappers import full_disk, read_only
from lockdb import database, journal, preserved, refusals
from lockdb.database import LockDB
from lockdb.preserved import Digest, Preserved, Role
from samples import HELD, NOW, OTHER, place

SECRET = "what only the other customer may know"


@dataclass(frozen=True)
class Unpacked:
    """An archive as who was handed it has it, with what was noted."""

    directory: Path
    manifest: str
    head: str

    def check(self, *, manifest: str = "", head: str | None = None) -> str:
        """What the procedure says at last; "" if it failed."""
        readme = (self.directory / "README.txt").read_bytes()
        return _run(readme, self.directory, manifest or self.manifest, head or self.head)


def _procedure(readme: bytes) -> str:
    lines = readme.decode("utf-8", "replace").split("\n")
    return "\n".join(line[4:] for line in lines if line.startswith("    "))


def _run(readme: bytes, directory: Path, manifest: str, head: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", _procedure(readme)],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "MANIFEST_SHA256": manifest, "JOURNAL_HEAD": head},
        capture_output=True,
        check=False,
    )
    assert done.returncode != 127, done
    if done.returncode != 0:
        assert b"TRUE" not in done.stdout
        return ""
    return done.stdout.decode().splitlines()[-1]


@pytest.fixture
def exported(cli: Cli, tmp_path: Path) -> Callable[..., Unpacked]:
    """Export from a database in which much has happened, and unpack it."""
    kept = cli.place(RUNNING, "--no-wait", "--retain-until", "30d", "--case", "AZ-17/26")
    cli.ok("place", SHUT_OFF, "--reason", SECRET)
    cli("permit", RUNNING, "--op", "start", "--for", "10m", "--reason", "an image for the court")
    with database.open_db(cli.path) as lock_db, lock_db.write() as db:
        db.execute("INSERT INTO refusal VALUES (?, 'start', ?, 'web', 1, 2, 3)", [RUNNING, kept])
    cli.ok("place", SHUT_OFF, "--reason", SECRET)

    def export(*options: str) -> Unpacked:
        file = tmp_path / "evidence.tar"
        file.unlink(missing_ok=True)
        said = cli.ok("export", RUNNING, "--output", str(file), "--json", *options).json
        assert said["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        return _unpacked(file, tmp_path / "handed", said["manifest_sha256"], said["journal_head"])

    return export


def _unpacked(file: Path, where: Path, manifest: str, head: str) -> Unpacked:
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    subprocess.run(["tar", "-xf", file], cwd=where, check=True)
    (directory,) = where.iterdir()
    return Unpacked(directory, manifest, head)


def _json(unpacked: Unpacked, name: str) -> object:
    return json.loads((unpacked.directory / name).read_text("utf-8"))


def test_the_archive_has_all_that_is_known_of_the_instance(
    exported: Callable[..., Unpacked],
) -> None:
    handed = exported()
    files = {
        str(p.relative_to(handed.directory)) for p in handed.directory.rglob("*") if p.is_file()
    }
    assert files == {
        "README.txt", "MANIFEST", "about.json", "holds.json", "permits.json", "refusals.json",
        "enforcements.json", "disks.json", "preserved.json", "definition.xml",
        "journal/entries.jsonl", "journal/hashes.txt",
    }  # fmt: skip
    holds = _json(handed, "holds.json")
    assert isinstance(holds, list)
    assert (holds[0]["case"], holds[0]["retention"]) == ("AZ-17/26", "governance")
    assert [permit["reason"] for permit in _json(handed, "permits.json")] == [  # type: ignore[attr-defined]
        "an image for the court"
    ]
    assert [refusal["count"] for refusal in _json(handed, "refusals.json")] == [3]  # type: ignore[attr-defined]
    assert _json(handed, "disks.json") == ["path:/images/web.img"]
    assert _json(handed, "preserved.json") == []
    assert "<name>web</name>" in (handed.directory / "definition.xml").read_text("utf-8")
    lines = (handed.directory / "journal/entries.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events[0] == "created"
    assert events[-1] == "export_began"
    assert {"placed", "permitted", "refused", "disks_recorded", "seen"} <= set(events)


def test_the_digests_of_preserved_disks_are_in_it(
    cli: Cli, exported: Callable[..., Unpacked]
) -> None:
    disk = Preserved(RUNNING, "/images/web.img", Role.DISK, 7, "/images/.bootlock/web.img", False)
    taken = Digest("/images/web.img", Role.DISK, 4096, "ab" * 32, NOW)
    with database.open_db(cli.path) as lock_db:
        preserved.intend(lock_db, [disk], now=NOW)
        preserved.confirm(lock_db, [disk], now=NOW)
        preserved.digested(lock_db, disk, taken, 1)
    handed = exported()
    rows = _json(handed, "preserved.json")
    assert isinstance(rows, list)
    assert [(row["path"], row["size"], row["sha256"]) for row in rows] == [
        (taken.path, taken.size, taken.sha256)
    ]
    lines = (handed.directory / "journal/entries.jsonl").read_text("utf-8").splitlines()
    (said,) = [entry for entry in map(json.loads, lines) if entry["event"] == "digest"]
    assert said["sha256"] == taken.sha256
    assert handed.check() == "TRUE"


def test_the_procedure_in_the_readme_says_true(exported: Callable[..., Unpacked]) -> None:
    assert exported().check() == "TRUE"


# -- its definition -----------------------------------------------------------------------------

PASSWORD = "correct horse"


@pytest.fixture
def custody(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where definitions are kept, for every command of this test."""
    config = tmp_path / "bootlock.toml"
    config.write_text(f'[custody]\ndirectory = "{tmp_path}"\n', "utf-8")
    monkeypatch.setenv("BOOTLOCK_CONFIG", str(config))
    return tmp_path


def _keep(cli: Cli, custody: Path, *, journalled: bool = True, shown: str = "") -> KeptDefinition:
    """Keep the definition as the fence does; ``shown``: another than libvirt's."""
    xml = shown or cli.ok("show", RUNNING, "--xml").out
    kept = KeptDefinition(
        instance=RUNNING,
        uri=cli.uri,
        name="web",
        document=xml.replace("<domain ", f"<domain passwd='{PASSWORD}' "),
        shown=xml,
        autostart=True,
        snapshots=(Snapshot("../../before", f"<domainsnapshot>{PASSWORD}</domainsnapshot>"),),
        current_snapshot=None,
        nvram=None,
        kept_at=NOW,
        versions="libvirt 9000000, QEMU 7002000",
    )
    keptdefinition.write(keptdefinition.path_for(custody, RUNNING), kept)
    if journalled:
        _journal_kept(cli, kept)
    return kept


def _journal_kept(cli: Cli, kept: KeptDefinition) -> None:
    facts = {"name": kept.name, "uri": kept.uri, "snapshots": 1, "why": "held"}
    with database.open_db(cli.path) as lock_db, lock_db.write() as db:
        journal.append(db, "definition_kept", NOW, instance=RUNNING, sha256=kept.sha256, **facts)


def _definition(handed: Unpacked) -> dict[str, Any]:
    about = _json(handed, "about.json")
    assert isinstance(about, dict)
    definition = about["definition"]
    assert isinstance(definition, dict)
    return definition


def _said(handed: Unpacked) -> str:
    """All that the procedure says."""
    done = subprocess.run(
        ["/bin/sh", "-c", _procedure((handed.directory / "README.txt").read_bytes())],
        cwd=handed.directory,
        env={"PATH": "/usr/bin:/bin", "MANIFEST_SHA256": handed.manifest},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_definition_that_is_kept_is_in_it_and_tied_to_the_journal(
    cli: Cli, custody: Path, exported: Callable[..., Unpacked]
) -> None:
    now = cli.ok("show", RUNNING, "--xml").out
    _keep(cli, custody, shown="<domain type='test'>as it was before</domain>")
    kept = _keep(cli, custody, shown=now)
    handed = exported()
    content = (handed.directory / "definition.xml").read_bytes()
    assert content == kept.shown.encode()
    assert hashlib.sha256(content).hexdigest() == kept.sha256
    entries = (handed.directory / "journal/entries.jsonl").read_text("utf-8").splitlines()
    last = [e for e in map(json.loads, entries) if e["event"] == "definition_kept"][-1]
    definition = _definition(handed)
    assert (definition["entry"], last["sha256"]) == (last["seq"], kept.sha256)
    assert (definition["origin"], definition["why"]) == ("kept", "")
    assert definition["kept_at"] == "2023-11-14T22:13:20Z"
    assert definition["now"]["state"] == "same"
    assert not (handed.directory / "definition-now.xml").exists()
    assert f"definition.xml is what entry {last['seq']} says was kept" in _said(handed)
    assert handed.check() == "TRUE"


def test_no_password_of_what_is_kept_is_in_it(
    cli: Cli, custody: Path, exported: Callable[..., Unpacked]
) -> None:
    kept = _keep(cli, custody)
    assert PASSWORD in kept.document
    handed = exported()
    for file in handed.directory.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file
    # libvirt does not have it: nobody could say where in it the passwords are.
    assert _definition(handed)["snapshots"] == [
        {"name": "../../before", "kept": True, "file": None}
    ]


def test_another_definition_in_the_place_of_the_kept_one_is_found(
    cli: Cli, custody: Path, exported: Callable[..., Unpacked]
) -> None:
    """Even in an archive with a manifest that was made anew."""
    _keep(cli, custody)
    handed = exported()
    (handed.directory / "definition.xml").write_text("<domain>of somebody else</domain>")
    assert handed.check(manifest=_forged(handed)) == ""
    about = (handed.directory / "about.json").read_text("utf-8")
    entry = _definition(handed)["entry"]
    assert about.count(f'"entry": {entry}') == 1
    placed = about.replace(f'"entry": {entry}', '"entry": 2')
    (handed.directory / "about.json").write_text(placed, "utf-8")
    assert handed.check(manifest=_forged(handed)) == ""


def test_a_definition_is_compared_by_hand_as_the_documentation_has_it(
    cli: Cli, custody: Path, exported: Callable[..., Unpacked]
) -> None:
    kept = _keep(cli, custody)
    handed = exported()
    page = (Path(__file__).resolve().parents[2] / "docs/evidence.md").read_text("utf-8")
    (lines,) = re.findall(r"By hand:\n\n((?: {4}.*\n)+)", page)
    said = subprocess.run(
        ["/bin/sh", "-c", lines], cwd=handed.directory, capture_output=True, text=True, check=True
    ).stdout
    of_file, entry = said.splitlines()
    assert of_file == f"{kept.sha256}  definition.xml"
    assert json.loads(entry)["sha256"] == kept.sha256


@pytest.mark.parametrize("options", [[], ["--since", "1h"]])
def test_a_kept_definition_that_the_archive_has_no_entry_of_is_not_called_shown(
    cli: Cli, custody: Path, exported: Callable[..., Unpacked], options: list[str]
) -> None:
    _keep(cli, custody, journalled=False)
    handed = exported(*options)
    assert _definition(handed)["entry"] is None
    assert "NOT SHOWN: that the journal knows definition.xml" in _said(handed)
    assert handed.check() == "TRUE"


def test_what_libvirt_has_instead_of_the_kept_one_is_in_it_too(
    cli: Cli, custody: Path, exported: Callable[..., Unpacked]
) -> None:
    now = cli.ok("show", RUNNING, "--xml").out
    kept = _keep(cli, custody, shown=now.replace("8192", "4096"))
    assert kept.shown != now
    handed = exported()
    assert (handed.directory / "definition.xml").read_text("utf-8") == kept.shown
    assert (handed.directory / "definition-now.xml").read_text("utf-8") == now
    assert _definition(handed)["now"]["state"] == "other"
    assert handed.check() == "TRUE"


@pytest.mark.parametrize(("uri", "state"), [("test:///default", "undefined"), ("", "unknown")])
def test_what_libvirt_lost_or_cannot_say_is_no_reason_to_lack_the_kept_one(
    cli: Cli, custody: Path, tmp_path: Path, uri: str, state: str
) -> None:
    cli.place(RUNNING, "--no-wait")
    kept = _keep(cli, custody)
    elsewhere = Cli(cli.path, uri or f"qemu+unix:///system?socket={tmp_path}/none", cli.read)
    file = tmp_path / "evidence.tar"
    said = elsewhere.ok("export", RUNNING, "-o", str(file), "--json").json
    handed = _unpacked(file, tmp_path / "handed", said["manifest_sha256"], said["journal_head"])
    assert (handed.directory / "definition.xml").read_text("utf-8") == kept.shown
    definition = _definition(handed)
    assert (definition["now"]["state"], definition["name"]) == (state, "web")
    assert bool(definition["now"]["why"]) == (state == "unknown")
    assert handed.check() == "TRUE"


def test_a_kept_definition_that_is_damaged_is_said_and_libvirts_is_in_it(
    cli: Cli, custody: Path, tmp_path: Path
) -> None:
    cli.place(RUNNING, "--no-wait")
    now = cli.ok("show", RUNNING, "--xml").out
    _keep(cli, custody, shown="<domain/>")
    path = keptdefinition.path_for(custody, RUNNING)
    path.write_bytes(path.read_bytes()[:-1])
    file = tmp_path / "evidence.tar"
    result = cli.ok("export", RUNNING, "-o", str(file), "--json")
    assert f"what is kept of its definition is not in the archive: {path} is damaged" in result.err
    said = result.json
    handed = _unpacked(file, tmp_path / "handed", said["manifest_sha256"], said["journal_head"])
    assert (handed.directory / "definition.xml").read_text("utf-8") == now
    definition = _definition(handed)
    assert (definition["origin"], definition["why"]) == ("libvirt", f"{path} is damaged")
    assert handed.check() == "TRUE"


def test_why_there_is_no_definition_is_said(cli: Cli, custody: Path, tmp_path: Path) -> None:
    cli.ok("place", OTHER, "--reason", "x", "--no-wait")
    file = tmp_path / "evidence.tar"
    said = cli.ok("export", OTHER, "-o", str(file), "--json").json
    assert not [name for name in said["files"] if name.startswith("definition")]
    handed = _unpacked(file, tmp_path / "handed", said["manifest_sha256"], said["journal_head"])
    definition = _definition(handed)
    assert definition["origin"] is None
    assert definition["why"] == "none is kept on this host; libvirt on this host does not know it"
    assert handed.check() == "TRUE"


# -- what others made of it ---------------------------------------------------------------------


def test_nothing_of_another_customer_is_in_it(exported: Callable[..., Unpacked]) -> None:
    handed = exported()
    for file in handed.directory.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert SECRET.encode() not in content, file
            assert SHUT_OFF.encode() not in content, file
            assert b"db.img" not in content, file
    hashes = (handed.directory / "journal/hashes.txt").read_text("ascii").splitlines()
    shown = (handed.directory / "journal/entries.jsonl").read_text("utf-8").splitlines()
    assert len(hashes) > len(shown)


def test_any_byte_that_was_changed_in_any_file_is_found(
    exported: Callable[..., Unpacked],
) -> None:
    handed = exported()
    readme = (handed.directory / "README.txt").read_bytes()
    for file in sorted(handed.directory.rglob("*")):
        if not file.is_file():
            continue
        content = file.read_bytes()
        # The check trusts the manifest for all else: there it is each single byte.
        step = 1 if file.name == "MANIFEST" else 41
        for position in {*range(0, len(content), step), len(content) - 1}:
            # The second changes the case of a digest's letter, which means the same to sha256sum.
            bit = 0x01 if position % 3 else 0x20
            changed = bytearray(content)
            changed[position] ^= bit
            file.write_bytes(changed)
            said = _run(readme, handed.directory, handed.manifest, handed.head)
            assert said == "", (file, position, bit)
        file.write_bytes(content[:-1])
        assert _run(readme, handed.directory, handed.manifest, "") == "", file
        file.unlink()
        assert _run(readme, handed.directory, handed.manifest, "") == "", file
        file.write_bytes(content)
    (handed.directory / "more.txt").write_text("slipped in")
    assert handed.check() == ""
    (handed.directory / "more.txt").unlink()
    assert handed.check() == "TRUE"


def _contents(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
    }


class Delivery:
    """What becomes of an archive on its way: unpacked and checked as who gets it would."""

    def __init__(self, handed: Unpacked, where: Path) -> None:
        self.handed = handed
        self._where = where
        self._readme = (handed.directory / "README.txt").read_bytes()
        self._content = _contents(handed.directory)

    def is_true(self, archive: bytes) -> bool:
        """The check says so; then it must be what was sent, to the last byte."""
        shutil.rmtree(self._where, ignore_errors=True)
        self._where.mkdir()
        tar: list[str | Path] = ["tar", "-C", self._where, "-xf", "-"]
        if subprocess.run(tar, input=archive, capture_output=True, check=False).returncode:
            return False
        found = [path for path in self._where.iterdir() if path.is_dir()]
        if len(found) != 1:
            return False
        said = _run(self._readme, found[0], self.handed.manifest, self.handed.head)
        assert not said or _contents(found[0]) == self._content
        return said == "TRUE"


@pytest.fixture
def delivery(exported: Callable[..., Unpacked], tmp_path: Path) -> tuple[Delivery, bytes]:
    """With the archive that was sent."""
    handed = exported()
    return Delivery(handed, tmp_path / "arrived"), (tmp_path / "evidence.tar").read_bytes()


def test_an_archive_that_was_cut_short_anywhere_is_found(
    delivery: tuple[Delivery, bytes],
) -> None:
    arrives, archive = delivery
    assert arrives.is_true(archive)
    end = len(archive.rstrip(b"\0"))
    for length in (*range(0, end, 512), *range(100, end, 4999), end - 1):
        assert not arrives.is_true(archive[:length]), length


def test_a_byte_that_was_changed_anywhere_in_the_archive_changes_nothing_or_is_found(
    delivery: tuple[Delivery, bytes],
) -> None:
    arrives, archive = delivery
    found = 0
    for position in range(0, len(archive), 251):
        changed = bytearray(archive)
        changed[position] ^= 1 << position % 8
        found += not arrives.is_true(bytes(changed))
    assert found > 20


Members = list[tuple[tarfile.TarInfo, bytes]]


def _members(archive: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [
            (member, file.read() if (file := tar.extractfile(member)) else b"")
            for member in tar.getmembers()
        ]


def _archive_of(members: Members) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def test_a_member_that_was_taken_out_or_put_in_is_found(delivery: tuple[Delivery, bytes]) -> None:
    arrives, archive = delivery
    members = _members(archive)
    assert arrives.is_true(_archive_of(members))
    files = [(member, content) for member, content in members if member.isfile()]
    assert len(files) == 12
    for member, content in files:
        more = copy.copy(member)
        more.name += ".more"
        for what, forged in {
            "taken out": [one for one in members if one[0] is not member],
            # The later one replaces it.
            "twice": [*members, (member, content + b" ")],
            "another": [*members, (more, content)],
        }.items():
            assert not arrives.is_true(_archive_of(forged)), (member.name, what)


def _forged(handed: Unpacked) -> str:
    """The manifest made anew, by somebody whose archive it is."""
    lines = []
    for file in sorted(handed.directory.rglob("*")):
        if file.is_file() and file.name != "MANIFEST":
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f"{digest}  {file.relative_to(handed.directory)}\n")
    manifest = handed.directory / "MANIFEST"
    manifest.write_text("".join(lines))
    return hashlib.sha256(manifest.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "forgery",
    ["text", "text and hash", "a hash", "no entry", "no hash", "two swapped", "an added one"],
)
def test_a_forged_journal_is_found_even_with_a_manifest_made_anew(
    exported: Callable[..., Unpacked], forgery: str
) -> None:
    handed = exported()
    entries, hashes = (
        handed.directory / "journal" / name for name in ("entries.jsonl", "hashes.txt")
    )
    texts, lines = entries.read_text("utf-8").splitlines(), hashes.read_text("ascii").splitlines()
    seq = json.loads(texts[1])["seq"]
    if forgery.startswith("text"):
        texts[1] = texts[1].replace("a test", "another")
        if forgery == "text and hash":
            lines[seq - 1] = f"{seq} {hashlib.sha256(texts[1].encode()).hexdigest()}"
    elif forgery == "a hash":
        shown = {json.loads(text)["seq"] for text in texts}
        other = next(number for number in range(1, len(lines)) if number not in shown)
        lines[other - 1] = f"{other} {'0' * 64}"
    elif forgery == "no entry":
        del texts[1], lines[seq - 1]
    elif forgery == "no hash":
        del lines[seq - 1]
    elif forgery == "two swapped":
        texts[1], texts[2] = (
            json.dumps(json.loads(text) | {"seq": json.loads(other)["seq"]})
            for text, other in ((texts[1], texts[2]), (texts[2], texts[1]))
        )
    else:
        texts.append(json.dumps({"seq": 99, "event": "released"}))
    entries.write_text("".join(f"{text}\n" for text in texts))
    hashes.write_text("".join(f"{line}\n" for line in lines))
    assert handed.check(manifest=_forged(handed)) == ""


def test_a_head_that_was_noted_must_be_in_it(exported: Callable[..., Unpacked]) -> None:
    handed = exported()
    number, _, value = handed.head.partition(":")
    assert handed.check(head=f"{number}:{'0' * 64}") == ""
    assert handed.check(head=f"{int(number) + 1}:{value}") == ""
    first = (handed.directory / "journal/hashes.txt").read_text("ascii").split("\n")[0]
    assert handed.check(head=first.replace(" ", ":")) == "TRUE"


@pytest.mark.parametrize("since", ["0s", "1h", "2099-01-01"])
def test_since_leaves_out_what_was_before(
    cli: Cli, exported: Callable[..., Unpacked], since: str
) -> None:
    if since.startswith("2099"):
        result = cli("export", RUNNING, "--since", since)
        assert (result.exit, "is in the future" in result.err) == (2, True)
        return
    handed = exported("--since", since)
    assert handed.check() == "TRUE"
    first = (handed.directory / "journal/hashes.txt").read_text("ascii").split()[0]
    # The database says that it was made in 1970.
    assert first == "2" or since == "0s"


def test_what_is_known_only_by_its_journal_is_exported_and_what_is_not_is_said(cli: Cli) -> None:
    result = cli("export", SHUT_OFF)
    assert result.exit == 3
    assert "nothing is known of" in result.err


def test_a_file_that_exists_stays_as_it_was(cli: Cli, tmp_path: Path) -> None:
    cli.ok("place", RUNNING, "--reason", "x", "--no-wait")
    taken, link = tmp_path / "taken.tar", tmp_path / "link.tar"
    taken.write_text("mine")
    link.symlink_to(tmp_path / "elsewhere")
    for path in (taken, link):
        result = cli("export", RUNNING, "-o", str(path))
        assert (result.exit, f"{path} exists" in result.err) == (2, True)
    assert taken.read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
    result = cli("export", RUNNING, "-o", str(tmp_path / "no/such/directory.tar"))
    assert result.exit == 2
    assert "No such file or directory" in result.err


def test_it_is_named_after_the_instance_and_for_its_owner_only(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.ok("place", RUNNING, "--reason", "x", "--no-wait")
    monkeypatch.chdir(tmp_path)
    old = os.umask(0)
    try:
        out = cli.ok("export", RUNNING).out
    finally:
        os.umask(old)
    (file,) = tmp_path.glob("*.tar")
    assert file.name.startswith(f"bootlock-evidence-{RUNNING}-2")
    assert file.name in out
    assert file.stat().st_mode & 0o777 == 0o600
    assert "MANIFEST_SHA256:" in out
    said = [e for e in cli.ok("journal", "show", "--json").json if e["event"] == "exported"]
    assert said[0]["manifest"] in out


def _program(cli: Cli) -> list[str]:
    """The same in a process of its own."""
    options = ["--database", str(cli.path), "--connect", cli.uri]
    return [sys.executable, "-m", "bootlock.main", *options]


@pytest.mark.live
def test_on_a_full_disk_nothing_is_left_of_it(cli: Cli, tmp_path: Path) -> None:
    cli.ok("place", RUNNING, "--reason", "x", "--no-wait")
    directory = tmp_path / "out"
    directory.mkdir()
    and_look = ["/bin/sh", "-c", 'where=$1; shift; "$@"; code=$?; ls -A "$where"; exit $code', "sh"]
    command = [*_program(cli), "export", RUNNING, "-o", str(directory / "e.tar")]
    done = subprocess.run(
        [*full_disk(directory), *and_look, str(directory), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    assert "No space left on device" in done.stderr
    assert done.stdout.split() == ["fill"]


@pytest.mark.live
def test_from_a_database_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    """The last entry is another's: the check says so, and that the noted head is there."""
    cli.ok("place", RUNNING, "--reason", "x", "--no-wait")
    cli.ok("place", SHUT_OFF, "--reason", "x")
    program = _program(cli)
    file = tmp_path / "e.tar"
    done = subprocess.run(
        [*read_only(cli.path.parent), *program, "export", RUNNING, "-o", file, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert "the export is not in the journal" in done.stderr
    said = json.loads(done.stdout)
    head = cli.head()
    assert said["journal_head"] == f"{head.seq}:{head.hash}"
    handed = _unpacked(file, tmp_path / "handed", said["manifest_sha256"], said["journal_head"])
    assert handed.check() == "TRUE"


def test_a_journal_that_is_not_sound_is_exported_and_said_to_be_so(
    cli: Cli, exported: Callable[..., Unpacked], tmp_path: Path
) -> None:
    with database.open_db(cli.path) as lock_db, lock_db.write() as db:
        db.execute("DROP TRIGGER journal_keeps_text")
        db.execute("UPDATE journal SET entry = replace(entry, ?, 'innocent')", [SECRET])
    result = cli("export", RUNNING, "-o", str(tmp_path / "e.tar"), "--json")
    assert (result.exit, result.json["sound"]) == (1, False)
    assert "is not sound" in result.err


def test_entries_from_before_there_were_links_are_tied_by_those_after(
    cli: Cli, exported: Callable[..., Unpacked]
) -> None:
    hashed = journal.GENESIS
    with database.open_db(cli.path) as lock_db, lock_db.write() as db:
        rows = [json.loads(entry) for entry in journal.entries(db)]
        db.execute("DROP TRIGGER journal_keeps_text")
        for row in rows:
            older = {k: v for k, v in row.items() if k not in {"link", "salt"}}
            text = journal.canonical(older | {"prev": hashed})
            hashed = journal.digest(text)
            query = "UPDATE journal SET entry = ?, hash = ? WHERE seq = ?"
            db.execute(query, [text, hashed, row["seq"]])
        head = f"{len(rows)} {hashed}"
        db.execute("UPDATE meta SET value = ? WHERE key = 'journal_head'", [head])
        db.execute(
            "CREATE TRIGGER journal_keeps_text BEFORE UPDATE ON journal"
            " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END"
        )
    assert exported().check() == "TRUE"


def _archive(lock_db: LockDB, file: Path, definition: str) -> tuple[str, str]:
    about = {
        "instance": HELD,
        "at": NOW,
        "by": "tester",
        "host": {"name": "h"},
        "journal": {"since": None},
        "definition": {"origin": "libvirt"},
    }
    files = {"definition.xml": definition.encode()}
    with file.open("wb") as archive:
        said = export._write(lock_db, archive, file.parent, about, files)
    return said["manifest_sha256"], said["journal_head"]


def test_the_same_database_is_the_same_archive(path: Path, tmp_path: Path) -> None:
    place(path)
    with database.open_db(path) as lock_db:
        files = [tmp_path / "a.tar", tmp_path / "b.tar"]
        for file in files:
            _archive(lock_db, file, "<domain/>")
    assert files[0].read_bytes() == files[1].read_bytes()
    with tarfile.open(files[0]) as tar:
        members = tar.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", NOW)}
    assert members[-1].name.endswith("/MANIFEST")


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_HOSTILE = st.one_of(
    _TEXT,
    st.sampled_from(
        [
            "\n",
            "\r\n",
            "\u2028",
            "\x00",
            "' OR 1=1 --",
            "$(id)",
            "-rf",
            "../../etc",
            "]]>",
            "\x1b[2J",
        ]
    ),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_HOSTILE, min_size=1, max_size=5), _HOSTILE)
def test_whatever_names_and_texts_there_are_it_is_whole_and_true(
    texts: list[str], definition: str
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="bootlock-evidence"))
    try:
        path = directory / "state" / "lock.db"
        database.create(path, now=1, host=texts[0])
        with database.open_db(path) as lock_db:
            with lock_db.write() as db:
                for number, text in enumerate(texts):
                    name = text.replace("\x00", "")
                    for instance in (HELD, OTHER):
                        journal.append(db, "refused", NOW, instance=instance, name=text, hold="",
                            operation="start", first_at=1, last_at=2, count=1)  # fmt: skip
                    row = [HELD, "start", f"{number}", name, 1, 1, 1]
                    db.execute("INSERT INTO refusal VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                    db.execute("INSERT OR IGNORE INTO held_disk VALUES (?, ?)", [name, HELD])
                journal.append(db, "exported", NOW, instance=HELD)
            file = directory / "e.tar"
            manifest, head = _archive(lock_db, file, definition)
            handed = _unpacked(file, directory / "handed", manifest, head)
            assert handed.check() == "TRUE"
            refused = _json(handed, "refusals.json")
            assert isinstance(refused, list)
            assert len(refused) == len(refusals.of_instance(lock_db, HELD))
    finally:
        shutil.rmtree(directory)
