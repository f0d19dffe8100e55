"""Prometheus' own tool, and the names that we export."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "docs/monitoring/bootlock.rules.yml"
DASHBOARD = ROOT / "docs/monitoring/grafana-dashboard.json"
#: What tests/daemon/test_metrics.py compares with what is exported.
PAGE = ROOT / "docs/metrics.md"

#: `make deps` puts it there.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


@dataclass(frozen=True)
class Exported:
    """One name that can be asked for."""

    name: str
    labels: frozenset[str]


def promtool(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it, whatever its exit status."""
    environment = os.environ | {"PATH": PATH}
    return subprocess.run(
        ["promtool", *args], capture_output=True, text=True, check=False, env=environment
    )


def exported() -> Iterator[Exported]:
    """Every name of every documented metric, with its labels."""
    row = re.compile(r"^\| `(bootlock_\w+)(?:\{(.*)\})?` \| (\w+) \|", re.MULTILINE)
    for name, labels, kind in row.findall(PAGE.read_text("utf-8")):
        # Prometheus adds the two of where it asked.
        own = {*filter(None, labels.split(",")), "instance", "job"}
        if kind == "histogram":
            yield Exported(f"{name}_bucket", frozenset(own | {"le"}))
            yield Exported(f"{name}_count", frozenset(own))
            yield Exported(f"{name}_sum", frozenset(own))
        else:
            yield Exported(name, frozenset(own))


def strangers(expression: str) -> set[str]:
    """What an expression asks for of ours that nobody exports, names and labels."""
    known = {metric.name: metric.labels for metric in exported()}
    found = set()
    for name, selector in re.findall(r"\b(bootlock_\w+)(?:\{([^}]*)\})?", expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        if name not in known:
            found.add(name)
        else:
            found |= {f"{name}{{{label}}}" for label in labels - known[name]}
    grouped = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression)
    used = [known[name] for name in re.findall(r"\bbootlock_\w+", expression) if name in known]
    for label in {label.strip() for group in grouped for label in group.split(",")}:
        if not all(label in labels for labels in used):
            found.add(label)
    return found
