"""Every way there is to end a hold, tried on one that is retained in compliance mode by a file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clirunner import Cli, Result
from lockdb import witness
from lockdb.when import iso

DAY = 86400
UUID = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"
SOON, UNTIL = (iso(int(time.time()) + days * DAY) for days in (1, 300))

RETAINED = f"""
[[hold]]
instance = "{UUID}"
reason = "court order"
retain_until = {UNTIL}
retention = "compliance"
preserve = true
"""
#: With it the file is sound without the other.
ANOTHER = f'[[hold]]\ninstance = "{OTHER}"\nreason = "unpaid"\n'


@dataclass
class Site:
    """A host that has the hold from a file, and an admin who is root on it."""

    cli: Cli
    config: Path
    directory: Path
    clock: dict[str, int]
    hold: dict[str, Any]

    def __call__(self, *words: str) -> Result:
        return self.cli("--config", str(self.config), *words)

    @property
    def file(self) -> Path:
        return self.directory / "a.toml"

    def now(self) -> dict[str, Any]:
        (hold,) = self("show", self.hold["id"], "--json").json["holds"]
        assert isinstance(hold, dict)
        return hold

    def assert_unchanged(self) -> None:
        """It holds, as it did; and table and journal agree on that."""
        hold = self.now()
        assert {name: hold[name] for name in self.hold} == self.hold
        assert self("check", UUID).exit == 1
        assert self("journal", "verify").exit == 0

    def says(self, *replacements: tuple[str, str]) -> None:
        text = RETAINED
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        self.file.write_text(ANOTHER + text)

    def release(self, *options: str) -> None:
        for target in ([self.hold["id"]], ["--instance", UUID, "--all"]):
            done = self("release", *target, "--reason", "x", *options)
            assert done.exit == 4, done

    def accept(self) -> None:
        """Whatever waits, by whatever name."""
        synced = self("sync", "file", "--json")
        (said,) = synced.json
        for token in (said.get("token"), "00000000", self.hold["id"][:8]):
            self("sync", "file", "--accept-release", token or "")


@pytest.fixture
def site(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    clock = {"ahead": 0}
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + clock["ahead"])
    # It looks twice before it believes that something is gone; nobody writes there in between.
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    directory, config = tmp_path / "holds.d", tmp_path / "bootlock.toml"
    directory.mkdir()
    config.write_text(f'[sources.file]\ndirectory = "{directory}"\n')
    site = Site(cli, config, directory, clock, {})
    site.says()
    assert site("sync").exit == 0
    (hold,) = site("list", "--instance", UUID, "--json").json
    site.hold = {
        name: hold[name]
        for name in ("id", "instance", "kind", "blocks", "preserve", "retain_until", "retention")
    } | {"until": None, "released_at": None}
    site.assert_unchanged()
    return site


def by_the_cli(site: Site) -> None:
    for options in ([], ["--override"], ["--override-source"], ["--override-source", "--override"]):
        site.release(*options)
    for less, codes in ((["--until", SOON], {2, 4}), (["--mode", "governance"], {4})):
        assert site("retain", site.hold["id"], *less).exit in codes
    assert site("init").exit == 0


def the_entry_is_gone(site: Site) -> None:
    site.file.write_text(ANOTHER)


def the_file_is_empty(site: Site) -> None:
    site.file.write_text("")


def the_file_is_gone(site: Site) -> None:
    site.file.unlink()


def another_file_is_there(site: Site) -> None:
    site.file.unlink(missing_ok=True)
    (site.directory / "b.toml").write_text(ANOTHER)


def the_directory_is_gone(site: Site) -> None:
    shutil.rmtree(site.directory, ignore_errors=True)


def another_directory_is_there(site: Site) -> None:
    shutil.rmtree(site.directory)
    site.directory.mkdir()
    site.file.write_text(ANOTHER)


def it_is_a_state_lock(site: Site) -> None:
    site.says(("reason", 'kind = "state_lock"\nreason'))


def it_blocks_less(site: Site) -> None:
    site.says(("reason", 'blocks = ["delete"]\nreason'))


def it_preserves_nothing(site: Site) -> None:
    site.says(("preserve = true", "preserve = false"))


def it_expires(site: Site) -> None:
    site.says((f"retain_until = {UNTIL}", f"until = {SOON}"), ('retention = "compliance"', ""))


def its_date_is_earlier(site: Site) -> None:
    site.says((UNTIL, SOON))


def its_mode_is_weaker(site: Site) -> None:
    site.says(("compliance", "governance"))


def it_has_no_date(site: Site) -> None:
    site.says((f"retain_until = {UNTIL}", ""), ('retention = "compliance"', ""))


def it_is_another_instances(site: Site) -> None:
    site.says((UUID, "00000000-0000-4000-8000-000000000003"))


SAYINGS: list[Callable[[Site], None]] = [
    the_entry_is_gone,
    the_file_is_empty,
    the_file_is_gone,
    another_file_is_there,
    another_directory_is_there,
    it_is_a_state_lock,
    it_blocks_less,
    it_preserves_nothing,
    it_expires,
    its_date_is_earlier,
    its_mode_is_weaker,
    it_has_no_date,
    it_is_another_instances,
    the_directory_is_gone,
]


def test_no_word_of_the_cli_ends_it(site: Site) -> None:
    by_the_cli(site)
    site.assert_unchanged()


@pytest.mark.parametrize("saying", SAYINGS)
def test_nothing_that_its_source_says_ends_it_or_makes_it_less(
    site: Site, saying: Callable[[Site], None]
) -> None:
    """Nor does an admin who accepts that, whatever the clock says meanwhile."""
    saying(site)
    for ahead in (0, 400 * DAY, -400 * DAY):
        site.clock["ahead"] = ahead
        assert site("sync").exit in {0, 6}, "it stops nothing else"
        site.assert_unchanged()
        site.accept()
        by_the_cli(site)
        site.assert_unchanged()
    site.clock["ahead"] = 0
    site.assert_unchanged()


def test_its_source_is_taken_away_forgotten_and_comes_back_without_it(site: Site) -> None:
    with_source = site.config.read_text()
    the_entry_is_gone(site)
    site("sync")
    site.config.write_text("")
    assert site("sync").exit == 0
    by_the_cli(site)
    assert site("sync", "--forget", "file", "--json").json["waiting"] == 1
    by_the_cli(site)
    site.config.write_text(with_source)
    for saying in SAYINGS[:-1]:
        site.directory.mkdir(exist_ok=True)
        saying(site)
        site("sync")
        site.accept()
    assert site("sync", "--forget", "file").exit == 4
    site.assert_unchanged()


def test_what_was_said_in_time_counts_when_the_date_has_come_and_not_before(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that all of the above is refused for its date, and not for being nonsense."""
    the_entry_is_gone(site)
    site("sync")
    look = witness.look

    def later() -> witness.Sight:
        sight = look()
        return witness.Sight(sight.boot, sight.up + 301 * DAY, synchronised=False)

    monkeypatch.setattr(witness, "look", later)
    site.clock["ahead"] = 301 * DAY
    site("sync")
    assert site.now()["released_at"] is not None
    assert site("journal", "verify").exit == 0
