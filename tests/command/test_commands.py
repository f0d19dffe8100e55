"""What each command does, what it prints, and what it leaves in the database."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from clirunner import RUNNING, SHUT_OFF, Cli
from lockdb import database, holds

UNKNOWN = "33333333-3333-4333-8333-333333333333"


def test_a_placed_hold_refuses_the_start_until_it_is_released(cli: Cli) -> None:
    assert cli("check", UNKNOWN).exit == 0
    hold = cli.place(UNKNOWN, "--notice", "call us")
    refused = cli("check", UNKNOWN)
    assert refused.exit == 1
    assert refused.out == f"refused: call us [hold {hold}]\nreason: a test\n"
    cli.ok("release", hold, "--reason", "done")
    assert cli.ok("check", UNKNOWN).out == "allowed\n"


def test_an_instance_this_host_never_saw_is_held_without_a_word(cli: Cli) -> None:
    result = cli.ok("place", UNKNOWN, "--reason", "it may come tomorrow")
    assert result.err == ""
    assert "not known on this host" in result.out


def test_a_name_means_the_domain_that_libvirt_knows(cli: Cli) -> None:
    placed = cli.ok("place", "web", "--reason", "r", "--json").json
    assert placed["instance"] == RUNNING
    assert placed["was_running"] is True
    assert cli.ok("place", "db", "--reason", "r", "--json").json["was_running"] is False


def test_a_uuid_is_taken_in_any_usual_spelling(cli: Cli) -> None:
    for spelling in (RUNNING.upper(), RUNNING.replace("-", "")):
        assert cli.ok("place", spelling, "--reason", "r", "--json").json["instance"] == RUNNING


def test_the_disks_of_a_known_domain_are_recorded_and_refuse_another_that_names_them(
    cli: Cli,
) -> None:
    cli.place("web")
    assert cli.ok("show", "web", "--json").json["disks"] == ["path:/images/web.img"]
    cli.ok("release", "--instance", "web", "--all", "--reason", "done")
    assert cli.ok("show", "web", "--json").json["disks"] == []


def test_a_state_lock_lets_what_ran_start_again_and_keeps_what_was_off(cli: Cli) -> None:
    cli.place("web", "--kind", "state-lock")
    cli.place("db", "--kind", "state-lock")
    assert cli("check", "web").exit == 0
    assert cli("check", "db").exit == 1


def test_a_hold_that_blocks_fewer_operations_lets_the_others_through(cli: Cli) -> None:
    hold = cli.place("web", "--block", "delete, stop")
    assert cli("check", "web").exit == 0
    assert cli("check", "web", "--op", "reset").exit == 0
    refused = cli("check", "web", "--op", "delete", "--json")
    assert refused.exit == 1
    assert (refused.json["by"], refused.json["hold"]) == ("polkit", hold)
    assert refused.json["enforced"] is False
    assert "not known that anything refuses it" in cli("check", "web", "--op", "delete").err
    assert re.search("^blocks: +stop, delete$", cli.ok("show", "web").out, re.MULTILINE)
    (shown,) = cli.ok("show", "web", "--json").json["holds"]
    assert (shown["blocks"], shown["blocked"]) == ("stop,delete", ["stop", "delete"])
    cli.ok("permit", "web", "--op", "delete", "--for", "1h", "--reason", "r")
    assert cli("check", "web", "--op", "delete").exit == 0
    assert cli("check", "web", "--op", "stop").exit == 1


def test_what_a_hold_blocks_by_its_kind_is_said_in_few_words(cli: Cli) -> None:
    cli.place("web")
    assert re.search("^blocks: +all operations$", cli.ok("show", "web").out, re.MULTILINE)
    # By its UUID: an id of a hold may begin with "db".
    cli.place(SHUT_OFF, "--kind", "state-lock")
    said = cli.ok("show", SHUT_OFF).out
    assert re.search("^blocks: +all but migrate, guest$", said, re.MULTILINE)


@pytest.mark.parametrize("blocks", ["fly", ","])
def test_no_hold_is_placed_that_blocks_what_is_no_operation(cli: Cli, blocks: str) -> None:
    assert cli("place", "web", "--reason", "r", "--block", blocks).exit == 2


def test_every_field_given_to_place_is_stored(cli: Cli) -> None:
    options = ["--notice", "n", "--case", "AZ 17/26", "--on-running", "managed-save"]
    options += ["--grace", "5", "--isolate", "--until", "9d", "--kind", "boot-lock"]
    placed = cli.ok("place", UNKNOWN, "--reason", "why", "--json", *options).json
    stored = {
        "reason": "why",
        "notice": "n",
        "case": "AZ 17/26",
        "on_running": "managed_save",
        "grace": 5,
        "isolate": True,
        "kind": "boot_lock",
        "source": "local",
        "released_at": None,
    }
    assert {name: placed[name] for name in stored} == stored
    assert placed["until"] > placed["placed_at"]


def test_an_order_that_nobody_carries_out_is_said_plainly_and_the_hold_stands(cli: Cli) -> None:
    order = ["place", "web", "--reason", "r", "--on-running", "destroy", "--isolate"]
    result = cli(*order)
    assert result.exit == 6
    assert "web still runs: no daemon on this host carries out destroy and isolate" in result.err
    assert cli("check", "web").exit == 1
    assert cli(*order, "--no-wait").exit == 0
    assert cli("place", "db", *order[2:]).exit == 0, "it is off: there is nothing to carry out"


def test_releasing_one_hold_says_that_another_remains(cli: Cli) -> None:
    first, second = cli.place(UNKNOWN), cli.place(UNKNOWN)
    released = cli.ok("release", first[:12], "--reason", "done")
    assert released.out == (
        f"released {first} on {UNKNOWN}\nthe instance is still held by {second}\n"
    )
    assert cli("check", UNKNOWN).exit == 1


def test_all_holds_of_an_instance_are_released_together(cli: Cli) -> None:
    ids = {cli.place(UNKNOWN) for _ in range(3)}
    other = cli.place("db")
    released = cli.ok("release", "--instance", UNKNOWN, "--all", "--reason", "x", "--json").json
    assert {hold["id"] for hold in released} == ids
    assert [hold["id"] for hold in cli.ok("list", "--json").json] == [other]


def test_a_permit_lets_a_start_through_until_it_is_revoked(cli: Cli) -> None:
    cli.place(UNKNOWN)
    granted = ["permit", UNKNOWN, "--op", "start", "--for", "30m", "--reason", "image"]
    permit = cli.ok(*granted, "--json").json
    assert cli("check", UNKNOWN).exit == 0
    assert cli("check", UNKNOWN, "--op", "migrate").exit == 1
    cli.ok("permit", "--revoke", permit["id"][:10], "--reason", "done")
    assert cli("check", UNKNOWN).exit == 1
    assert cli("permit", "--revoke", permit["id"], "--reason", "done").exit == 3


def test_list_shows_holds_in_force_and_with_all_those_that_ended(cli: Cli) -> None:
    ended, stays = cli.place(UNKNOWN), cli.place("web")
    cli.ok("release", ended, "--reason", "done")
    assert [hold["id"] for hold in cli.ok("list", "--json").json] == [stays]
    states = {hold["id"]: hold["state"] for hold in cli.ok("list", "--all", "--json").json}
    assert states == {ended: "released", stays: "active"}
    assert [h["id"] for h in cli.ok("list", "--instance", "web", "--json").json] == [stays]
    assert cli.ok("list", "--source", "nova", "--json").json == []


def test_a_pipe_gets_tab_separated_lines(cli: Cli) -> None:
    hold = cli.place(UNKNOWN)
    header, line = cli.ok("list").out.splitlines()
    assert header.split("\t")[:2] == ["hold", "instance"]
    assert line.split("\t")[:3] == [hold, UNKNOWN, "boot lock"]


def test_show_knows_holds_by_id_and_instances_by_uuid_or_name(cli: Cli) -> None:
    hold = cli.place("web")
    for what in (hold, hold[:8], RUNNING, "web"):
        shown = cli.ok("show", what, "--json").json
        assert shown["instance"] == RUNNING
        assert [entry["id"] for entry in shown["holds"]] == [hold]
    assert f"hold:        {hold}" in cli.ok("show", "web").out


def test_the_journal_tells_the_whole_story_and_verifies(cli: Cli) -> None:
    hold = cli.place("web")
    cli.ok("permit", "web", "--op", "start", "--for", "1h", "--reason", "r")
    cli.ok("release", hold, "--reason", "done")
    entries = cli.ok("journal", "show", "--instance", "web", "--json").json
    events = [entry["event"] for entry in entries]
    assert events == ["placed", "disks_recorded", "seen", "permitted", "released"]
    assert len(cli.ok("journal", "show", "--last", "2", "--json").json) == 2
    verified = cli.ok("journal", "verify", "--json").json
    assert verified["sound"] is True
    assert cli.ok("journal", "verify", "--head", verified["head"]).exit == 0
    wrong = verified["head"][:-64] + "0" * 64
    assert cli("journal", "verify", "--head", wrong).exit == 1


def test_a_journal_that_was_changed_is_found_broken_at_that_entry(cli: Cli) -> None:
    cli.place("web")
    with database.open_db(cli.path) as lock_db, lock_db.write() as db:
        db.execute("DROP TRIGGER journal_keeps_text")
        db.execute("UPDATE journal SET entry = replace(entry, 'a test', 'another') WHERE seq = 2")
    broken = cli("journal", "verify")
    assert broken.exit == 1
    assert broken.out == "broken at entry 2: its text is not what was hashed\n"
    assert cli("journal", "verify", "--json").json["broken_at"] == 2


def test_an_exported_journal_chains_by_the_hash_of_its_lines(cli: Cli, tmp_path: Path) -> None:
    cli.place(UNKNOWN, "--notice", "Grüße")
    file = tmp_path / "journal.jsonl"
    cli.ok("journal", "export", "-o", str(file))
    lines = file.read_bytes().splitlines()
    assert len(lines) == cli.head().seq
    for line, after in pairwise(lines):
        assert json.loads(after)["prev"] == hashlib.sha256(line).hexdigest()
    assert hashlib.sha256(lines[-1]).hexdigest() == cli.head().hash


def test_refusals_counted_by_the_hook_reach_the_journal_and_show(cli: Cli) -> None:
    hold = cli.place("web")
    with database.open_db(cli.path) as lock_db, lock_db.write() as db:
        spooled = [RUNNING, "start", hold, "a &lt;name&gt;\x1b[2J", 5, 9, 3]
        db.execute("INSERT INTO refusal VALUES (?, ?, ?, ?, ?, ?, ?)", spooled)
    before = cli.ok("show", "web").out
    assert "refused 3 x start, last at 1970-01-01T00:00:09Z, as a <name>?[2J" in before
    (entry,) = [
        entry for entry in cli.ok("journal", "show", "--json").json if entry["event"] == "refused"
    ]
    assert (entry["count"], entry["hold"], entry["instance"]) == (3, hold, RUNNING)
    assert cli.ok("show", "web").out == before


def test_init_makes_a_database_once_and_never_touches_it_again(cli: Cli, tmp_path: Path) -> None:
    new = Cli(tmp_path / "new" / "lock.db", cli.uri, cli.read)
    assert new.ok("init", "--json").json["made"] is True
    new.place(UNKNOWN)
    assert new.ok("init", "--json").json["made"] is False
    assert new("check", UNKNOWN).exit == 1


def test_who_placed_and_released_is_recorded(cli: Cli) -> None:
    hold = cli.place(UNKNOWN)
    cli.ok("release", hold, "--reason", "done")
    with database.open_db(cli.path, read_only=True) as lock_db:
        stored = holds.find(lock_db, hold)
    assert stored.placed_by
    assert stored.released_by == stored.placed_by


def test_the_state_of_a_domain_that_is_off_is_shut_off(cli: Cli) -> None:
    shown = cli.ok("place", SHUT_OFF, "--reason", "r").out
    assert f"instance: {SHUT_OFF} (db)" in shown
    assert "state:    shut off" in shown
