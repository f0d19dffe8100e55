"""The results as Markdown, which reads well on a terminal too, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.measure import Group, Row
from benchmarks.targets import Outcome

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
_BEGIN = "<!-- results: written by `make bench`, see above -->\n"
_END = "<!-- end of results -->\n"


@dataclass(frozen=True)
class Report:
    """All that a run has found out. ``enforced``: whether a missed target is a failure."""

    machine: Mapping[str, str]
    groups: Sequence[Group]
    outcomes: Sequence[Outcome]
    enforced: bool

    @property
    def is_good(self) -> bool:
        """Every target met, or none enforced."""
        return not self.enforced or all(outcome.is_met for outcome in self.outcomes)


def as_markdown(report: Report) -> str:
    """Tables: the targets first, then each group."""
    machine = "\n".join(f"- {name}: {value}" for name, value in report.machine.items())
    parts = [machine, _targets(report.outcomes, report.enforced)]
    parts += [f"### {group.title}\n\n{_rows(group.rows)}" for group in report.groups]
    return "\n\n".join(parts) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    """Plain values; times in milliseconds."""
    return {
        "machine": dict(report.machine),
        "enforced": report.enforced,
        "rows": [_row(row) for group in report.groups for row in group.rows],
        "targets": [
            {
                "title": outcome.target.title,
                "of": outcome.target.of,
                "to": outcome.target.to,
                "ratio": round(outcome.ratio, 4),
                "range": [round(end, 4) for end in outcome.range],
                "limit": outcome.target.limit,
                "met": outcome.is_met,
            }
            for outcome in report.outcomes
        ],
    }


def write_document(text: str, path: Path = DOCUMENT) -> None:
    """Put the results into the document, between its two marks."""
    before, begin, rest = path.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{path}: the marks around the results are missing")
    path.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


def _targets(outcomes: Iterable[Outcome], enforced: bool) -> str:
    rows = [
        (
            outcome.target.title,
            f"{outcome.ratio:.3f}",
            " - ".join(f"{end:.3f}" for end in outcome.range),
            f"{outcome.target.limit:g}",
            _verdict(outcome) if enforced else "not enforced",
        )
        for outcome in outcomes
    ]
    return _table(rows, ("target", "ratio", "95 % range", "at most", ""))


def _verdict(outcome: Outcome) -> str:
    return "met" if outcome.is_met else "MISSED"


def _rows(rows: Iterable[Row]) -> str:
    return _table(
        [
            (
                row.title,
                f"{1000 * row.median:.2f}",
                " - ".join(f"{1000 * quartile:.2f}" for quartile in row.quartiles),
                f"{row.ratio:.2f}",
                str(len(row.seconds)),
            )
            for row in rows
        ],
        ("", "median ms", "half of all runs", "to the first", "runs"),
    )


def _row(row: Row) -> dict[str, Any]:
    low, high = row.quartiles
    return {
        "key": row.key,
        "title": row.title,
        "median_ms": round(1000 * row.median, 4),
        "quartiles_ms": [round(1000 * low, 4), round(1000 * high, 4)],
        "ratio": round(row.ratio, 4),
        "runs": len(row.seconds),
    }


def _table(rows: Iterable[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(
        rows,
        headers,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left",) + ("right",) * (len(headers) - 1),
    )
