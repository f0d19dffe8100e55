"""A hold that is retained ends at its date, by whatever clock and on whatever way."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from database.clocks import Clocks
from database.soundness import assert_whole, log
from lockdb import database, holds, witness
from lockdb.database import LockDB
from lockdb.errors import InvalidValue, LockDBError, NotNow, Retained
from lockdb.values import RETAIN_MAX, UNTIL_MAX, Hold, Kind, Retention
from samples import NOW, new_hold

DAY = 86400
GOVERNANCE, COMPLIANCE = Retention.GOVERNANCE, Retention.COMPLIANCE


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(witness, "look", clocks.see)
    return clocks


def _place(
    lock_db: LockDB, clocks: Clocks, mode: Retention | None = COMPLIANCE, days: int = 30
) -> Hold:
    new = new_hold(retain_until=clocks.now + days * DAY, retention=mode)
    return holds.place(lock_db, new, now=clocks.now)


def _release(lock_db: LockDB, clocks: Clocks, hold: Hold, *, override: bool = False) -> Hold:
    return holds.release(
        lock_db, hold.id, reason="closed", by="clerk", now=clocks.now, override=override
    )


def _is_refused(lock_db: LockDB, clocks: Clocks, hold: Hold) -> bool:
    before = holds.find(lock_db, hold.id)
    try:
        _release(lock_db, clocks, hold)
    except Retained:
        assert holds.find(lock_db, hold.id) == before
        return True
    return False


@pytest.mark.parametrize("mode", Retention)
def test_it_ends_in_the_second_of_its_date_and_not_before(
    lock_db: LockDB, clocks: Clocks, mode: Retention
) -> None:
    hold = _place(lock_db, clocks, mode)
    assert _is_refused(lock_db, clocks, hold)
    clocks.pass_by(30 * DAY - 1)
    assert _is_refused(lock_db, clocks, hold)
    clocks.pass_by(1)
    assert not _release(lock_db, clocks, hold).overridden
    entry = log(lock_db)[-1]
    assert entry.items() >= {"event": "released", "retention": mode, "overridden": False}.items()


def test_after_its_date_it_goes_on_until_it_is_released(lock_db: LockDB, clocks: Clocks) -> None:
    hold = _place(lock_db, clocks)
    clocks.pass_by(900 * DAY)
    assert holds.active(lock_db, now=clocks.now) == [hold]


def test_governance_is_overridden_on_the_record_and_compliance_is_not(
    lock_db: LockDB, clocks: Clocks
) -> None:
    weak, strong = _place(lock_db, clocks, GOVERNANCE), _place(lock_db, clocks)
    with pytest.raises(Retained, match=r"retained until .* \(governance\)"):
        _release(lock_db, clocks, weak)
    with pytest.raises(Retained, match=r"retained until .* \(compliance\)"):
        _release(lock_db, clocks, strong, override=True)
    assert _release(lock_db, clocks, weak, override=True).overridden
    entry = log(lock_db)[-1]
    assert entry["retain_until"] == weak.retain_until
    assert (entry["overridden"], entry["reason"]) == (True, "closed")


def test_without_a_mode_it_is_governance(lock_db: LockDB, clocks: Clocks) -> None:
    assert _place(lock_db, clocks, None).retention is GOVERNANCE


@pytest.mark.parametrize(
    ("before", "until", "mode", "after"),
    [
        (None, 5, None, (5, GOVERNANCE)),
        (None, 5, COMPLIANCE, (5, COMPLIANCE)),
        (None, None, COMPLIANCE, InvalidValue),
        ((5, GOVERNANCE), 6, None, (6, GOVERNANCE)),
        ((5, GOVERNANCE), None, COMPLIANCE, (5, COMPLIANCE)),
        ((5, GOVERNANCE), 4, COMPLIANCE, Retained),
        ((5, COMPLIANCE), 6, None, (6, COMPLIANCE)),
        ((5, COMPLIANCE), 5, COMPLIANCE, (5, COMPLIANCE)),
        ((5, COMPLIANCE), 9, GOVERNANCE, Retained),
        ((5, COMPLIANCE), 4, None, Retained),
    ],
)
def test_it_can_become_more_and_never_less(
    lock_db: LockDB,
    clocks: Clocks,
    before: tuple[int, Retention] | None,
    until: int | None,
    mode: Retention | None,
    after: tuple[int, Retention] | type[LockDBError],
) -> None:
    fields: dict[str, Any] = (
        {"retain_until": NOW + before[0] * DAY, "retention": before[1]} if before else {}
    )
    hold = holds.place(lock_db, new_hold(**fields), now=NOW)
    entries = log(lock_db)
    moment = NOW + until * DAY if until else None

    def retain() -> Hold:
        return holds.retain(lock_db, hold.id, until=moment, mode=mode, by="chief", now=NOW)

    if not isinstance(after, tuple):
        with pytest.raises(after):
            retain()
        assert (holds.find(lock_db, hold.id), log(lock_db)) == (hold, entries)
        return
    changed = retain()
    assert (changed.retain_until, changed.retention) == (NOW + after[0] * DAY, after[1])
    assert len(log(lock_db)) == len(entries) + (changed != hold)
    if changed != hold:
        said = log(lock_db)[-1]
        assert (said["event"], said["by"]) == ("retained", "chief")
        assert said["before"] == {"retain_until": hold.retain_until, "retention": hold.retention}


def test_it_does_not_end_by_itself(lock_db: LockDB, clocks: Clocks) -> None:
    with pytest.raises(InvalidValue, match="does not end by itself"):
        new_hold(until=NOW + 9, retain_until=NOW + 9)
    ending = holds.place(lock_db, new_hold(until=NOW + 9), now=NOW)
    with pytest.raises(InvalidValue, match="ends by itself at"):
        holds.retain(lock_db, ending.id, until=NOW + 5, mode=None, by="chief", now=NOW)


@pytest.mark.parametrize("until", [NOW + RETAIN_MAX + 1, UNTIL_MAX, UNTIL_MAX + 1, -1])
def test_a_slip_of_the_keyboard_is_not_for_ever(
    lock_db: LockDB, clocks: Clocks, until: int
) -> None:
    with pytest.raises(InvalidValue):
        holds.place(lock_db, new_hold(retain_until=until), now=NOW)
    hold = holds.place(lock_db, new_hold(), now=NOW)
    with pytest.raises(LockDBError):
        holds.retain(lock_db, hold.id, until=UNTIL_MAX, mode=None, by="chief", now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        "released_at = 1, released_by = 'x', release_reason = 'x'",
        "released_at = 1, overridden = 1",
        "until = 1",
        "retain_until = NULL, retention = NULL",
        "retain_until = retain_until - 1",
        "retention = 'governance'",
        "kind = 'state_lock'",
        "instance = 'another'",
        "source = 'another'",
        "blocks = 'delete'",
        "id = 'another'",
    ],
)
def test_a_program_that_asks_nobody_is_refused_by_the_table(
    lock_db: LockDB, clocks: Clocks, change: str
) -> None:
    hold = _place(lock_db, clocks)
    with pytest.raises((sqlite3.IntegrityError, Retained)), lock_db.write() as db:
        db.execute(f"UPDATE hold SET {change} WHERE id = ?", [hold.id])
    for statement in ("DELETE FROM hold", "REPLACE INTO hold SELECT * FROM hold"):
        with pytest.raises((sqlite3.IntegrityError, Retained)), lock_db.write() as db:
            db.execute(statement)
    assert holds.history(lock_db) == [hold]


def test_a_state_lock_does_not_become_weaker_either(lock_db: LockDB, clocks: Clocks) -> None:
    new = new_hold(kind=Kind.STATE_LOCK, retain_until=NOW + DAY, retention=COMPLIANCE)
    hold = holds.place(lock_db, new, now=NOW)
    assert holds.set_was_running(lock_db, hold, False, now=NOW).was_running is False
    with pytest.raises(Retained):
        holds.set_was_running(lock_db, hold, True, now=NOW)


# -- clocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Retention)
def test_the_clock_set_forward_releases_nothing(
    lock_db: LockDB, clocks: Clocks, mode: Retention
) -> None:
    hold = _place(lock_db, clocks, mode)
    clocks.ahead = 365 * DAY
    with pytest.raises(Retained, match="but only 2023-11-14T22:13:20Z is proven"):
        _release(lock_db, clocks, hold)
    assert _is_refused(lock_db, clocks, hold)
    clocks.ahead = 0
    clocks.pass_by(30 * DAY)
    assert not _is_refused(lock_db, clocks, hold)


def test_the_clock_set_forward_does_not_shorten_what_is_placed_then(
    lock_db: LockDB, clocks: Clocks
) -> None:
    """The witness is not ahead of who sets a date, even if it once began with a wrong clock."""
    clocks.ahead = 365 * DAY
    _place(lock_db, clocks)
    clocks.ahead = 0
    hold = _place(lock_db, clocks)
    clocks.ahead = 365 * DAY
    assert _is_refused(lock_db, clocks, hold)
    clocks.pass_by(30 * DAY)
    assert not _is_refused(lock_db, clocks, hold)


def test_the_clock_set_back_delays_a_release_until_it_is_right_again(
    lock_db: LockDB, clocks: Clocks
) -> None:
    hold = _place(lock_db, clocks)
    clocks.ahead = -1000 * DAY
    clocks.pass_by(31 * DAY)
    assert _is_refused(lock_db, clocks, hold)
    clocks.ahead = 0
    assert not _is_refused(lock_db, clocks, hold)


def test_what_has_ended_does_not_come_back_with_the_clock_set_back(
    lock_db: LockDB, clocks: Clocks
) -> None:
    hold = _place(lock_db, clocks)
    clocks.pass_by(30 * DAY)
    _release(lock_db, clocks, hold)
    clocks.ahead = -90 * DAY
    assert holds.active(lock_db, now=clocks.now) == []


def test_the_time_that_a_host_was_off_counts_once_its_clock_is_synchronised(
    lock_db: LockDB, clocks: Clocks
) -> None:
    hold = _place(lock_db, clocks)
    clocks.reboot(off=40 * DAY)
    assert _is_refused(lock_db, clocks, hold), "a clock that was merely set is not believed"
    clocks.ntp = True
    assert not _is_refused(lock_db, clocks, hold)
    clock = next(entry for entry in log(lock_db) if entry["event"] == "clock")
    assert (clock["expected"], clock["taken"]) == (NOW, clocks.now)


def test_without_ntp_only_the_time_counts_that_the_host_was_up(
    lock_db: LockDB, clocks: Clocks
) -> None:
    hold = _place(lock_db, clocks)
    clocks.reboot(off=40 * DAY)
    clocks.pass_by(29 * DAY)
    assert _is_refused(lock_db, clocks, hold)
    clocks.pass_by(1 * DAY)
    assert not _is_refused(lock_db, clocks, hold)


def test_a_clock_that_is_synchronised_moves_time_once_after_a_boot_and_never_again(
    lock_db: LockDB, clocks: Clocks
) -> None:
    """A time server that lies does not end a retention while the host is up."""
    clocks.ntp = True
    hold = _place(lock_db, clocks)
    with lock_db.write() as db:
        witness.advance(db, clocks.now)
    lie = witness.Sight("boot-1", clocks.see().up, synchronised=True)
    with pytest.raises(Retained):
        holds.release(
            lock_db, hold.id, reason="a", by="b", now=clocks.now + 90 * DAY, see=lambda: lie
        )


def test_what_was_seen_to_pass_is_kept_by_who_runs_all_the_time(
    lock_db: LockDB, clocks: Clocks
) -> None:
    witness.keep(lock_db, clocks.now)
    assert _meta(lock_db) is None, "nothing is retained: nothing is watched"
    hold = _place(lock_db, clocks)
    for _ in range(30 * 24):
        clocks.pass_by(3600)
        witness.keep(lock_db, clocks.now)
    clocks.reboot()
    assert not _is_refused(lock_db, clocks, hold)
    entries = [entry["event"] for entry in log(lock_db)]
    assert "clock" not in entries


def test_a_witness_that_cannot_be_read_has_seen_nothing(lock_db: LockDB, clocks: Clocks) -> None:
    hold = _place(lock_db, clocks)
    with lock_db.write() as db:
        db.execute("UPDATE meta SET value = 'garbage' WHERE key = 'witness'")
    clocks.pass_by(60 * DAY)
    assert _is_refused(lock_db, clocks, hold)
    clocks.ntp = True
    assert not _is_refused(lock_db, clocks, hold)


def test_this_host_sees_its_own_clock() -> None:
    sight = witness.look()
    assert len(sight.boot) == 36
    assert 0 <= witness.look().up - sight.up <= 60


def _meta(lock_db: LockDB) -> object:
    with lock_db.read() as db:
        row = db.execute("SELECT value FROM meta WHERE key = 'witness'").fetchone()
    return row and row[0]


class Retaining(RuleBasedStateMachine):
    """Whatever is done with clocks, reboots, the CLI: no hold in compliance mode ends early.

    Early: before its date has truly come, and before as much time has truly passed as lay between
    the clock of whoever set the date and the date.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="bootlock-retaining"))
        self.path = self.directory / "lock.db"
        database.create(self.path, now=1, host="test")
        self.clocks = Clocks()
        self.due: dict[str, int] = {}
        self.original = witness.look
        witness.look = self.clocks.see

    def teardown(self) -> None:
        witness.look = self.original
        assert_whole(self.path)
        shutil.rmtree(self.directory)

    def _due(self, until: int) -> int:
        return min(until, self.clocks.true + until - self.clocks.now)

    @rule(days=st.integers(1, 40), mode=st.sampled_from(Retention))
    def place(self, days: int, mode: Retention) -> None:
        with database.open_db(self.path) as lock_db:
            hold = _place(lock_db, self.clocks, mode, days)
        assert hold.retain_until is not None
        if mode is COMPLIANCE:
            self.due[hold.id] = self._due(hold.retain_until)

    @rule(days=st.integers(1, 60), mode=st.sampled_from([None, *Retention]))
    def retain(self, days: int, mode: Retention | None) -> None:
        until = self.clocks.now + days * DAY
        with database.open_db(self.path) as lock_db:
            for hold in holds.active(lock_db, now=self.clocks.now):
                with suppress(Retained):
                    after = holds.retain(
                        lock_db, hold.id, until=until, mode=mode, by="a", now=self.clocks.now
                    )
                    if after.retention is COMPLIANCE and after != hold:
                        due = max(self.due.get(hold.id, 0), self._due(until))
                        self.due[hold.id] = due

    @rule(override=st.booleans())
    def release(self, override: bool) -> None:
        with database.open_db(self.path) as lock_db:
            for hold in holds.active(lock_db, now=self.clocks.now):
                with suppress(NotNow):
                    _release(lock_db, self.clocks, hold, override=override)
            for hold in holds.history(lock_db):
                if hold.released_at is not None and hold.retention is COMPLIANCE:
                    assert self.clocks.true >= self.due[hold.id] - 2, hold

    @rule(seconds=st.sampled_from([1, 3600, DAY, 10 * DAY]))
    def time_passes(self, seconds: int) -> None:
        self.clocks.pass_by(seconds)

    @rule(ahead=st.sampled_from([0, 0, 5 * DAY, 400 * DAY, -5 * DAY, -400 * DAY]))
    def set_the_clock(self, ahead: int) -> None:
        self.clocks.ahead = ahead

    @rule(off=st.sampled_from([0, 60, 50 * DAY]))
    def reboot(self, off: int) -> None:
        self.clocks.reboot(off)

    @rule(ntp=st.booleans())
    def ntp(self, ntp: bool) -> None:
        self.clocks.ntp = ntp

    @rule()
    def at_last_all_ends(self) -> None:
        """However it came: with a right clock that is synchronised nothing lasts for ever."""
        with database.open_db(self.path) as lock_db:
            dates = [hold.retain_until or 0 for hold in holds.active(lock_db, now=self.clocks.now)]
            last = max([*dates, self.clocks.true])
            self.clocks.pass_by(last - self.clocks.true)
            self.clocks.ahead, self.clocks.ntp = 0, True
            self.clocks.reboot()
            for hold in holds.active(lock_db, now=self.clocks.now):
                _release(lock_db, self.clocks, hold)


TestRetaining = Retaining.TestCase
TestRetaining.settings = settings(
    max_examples=40, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]
)
