"""The benchmarks run, measure what they say they do, and compare it with their targets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import Case, Group, Row, measure
from benchmarks.report import Report, as_markdown, write_document
from benchmarks.targets import TARGETS, Outcome, outcomes

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-B", "-m", "benchmarks", "--quick", "--json", "--no-libvirt"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def test_a_quick_run_has_every_row_that_needs_no_libvirtd(results: dict[str, Any]) -> None:
    rows = {row["key"]: row for row in results["rows"]}
    assert {
        "call.empty",
        "call.other",
        "call.allow-few",
        "call.allow",
        "call.allow-big",
        "call.refuse",
        "call.refuse-disk",
        "call.python",
        "call.dispatcher",
        "alone.empty",
        "alone.allow",
    } <= rows.keys()
    for row in rows.values():
        low, high = row["quartiles_ms"]
        assert 0 < low <= row["median_ms"] <= high
        assert row["runs"] == 3


def test_a_quick_run_compares_with_the_targets_but_enforces_none(results: dict[str, Any]) -> None:
    assert not results["enforced"]
    named = {(target["of"], target["to"]) for target in results["targets"]}
    assert named == {(t.of, t.to) for t in TARGETS if not t.of.startswith("start.")}


def group(**medians: float) -> Group:
    return Group("", tuple(Row(key, key, (value,) * 3, 1.0) for key, value in medians.items()))


def test_a_missed_target_makes_the_run_fail_when_enforced() -> None:
    target = TARGETS[0]
    (good,) = outcomes([group(**{target.of: target.limit, target.to: 1.0})])
    (bad,) = outcomes([group(**{target.of: target.limit + 0.01, target.to: 1.0})])
    assert Report({}, [], [good], enforced=True).is_good
    assert not Report({}, [], [good, bad], enforced=True).is_good
    assert Report({}, [], [good, bad], enforced=False).is_good
    assert bad.range == (bad.ratio, bad.ratio)
    assert "MISSED" in as_markdown(Report({}, [], [bad], enforced=True))


def test_cases_take_turns_and_are_compared_by_their_medians() -> None:
    ran: list[str] = []

    def case(key: str, seconds: float) -> Case:
        def run() -> float:
            ran.append(key)
            return seconds

        return Case(key, key, run)

    rows = measure("", [case("a", 2.0), case("b", 3.0)], rounds=20).rows
    assert [row.ratio for row in rows] == [1.0, 1.5]
    rounds = [set(ran[at : at + 2]) for at in range(0, len(ran), 2)]
    assert rounds == [{"a", "b"}] * 21


def test_results_replace_the_ones_in_the_document(tmp_path: Path) -> None:
    copy = tmp_path / "benchmarks.md"
    copy.write_text((ROOT / "docs/benchmarks.md").read_text("utf-8"))
    write_document("older results", copy)
    write_document("newer results", copy)
    assert "newer results" in copy.read_text()
    assert "older results" not in copy.read_text()
    assert copy.read_text().startswith("# ")


def test_an_outcome_at_its_limit_is_met() -> None:
    assert Outcome(TARGETS[0], TARGETS[0].limit, (1.0, 9.0)).is_met


def test_the_benchmark_of_sources_runs_and_one_change_writes_a_few_rows() -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-m", "benchmarks.sources", "--holds", "300", "--rounds", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    # So few holds say nothing about the ratio.
    assert "rows written for one change: 4.00, at most 10: met" in done.stdout, done.stderr
    assert done.stdout.count("memory of a process") == 2
