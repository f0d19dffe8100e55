"""The Grafana dashboard: it can be imported, and asks for nothing that is not exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monitoring.promtool import DASHBOARD, promtool, strangers

BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
PANELS: list[dict[str, Any]] = BOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_grafana_finds_what_it_needs_to_import_it() -> None:
    # An id would be another's on the next Grafana; the uid is what links name.
    assert BOARD["id"] is None
    assert BOARD["uid"] == "bootlock"
    assert BOARD["title"]
    assert BOARD["schemaVersion"] >= 36
    names = [variable["name"] for variable in BOARD["templating"]["list"]]
    # In this order: the hosts are asked of the chosen Prometheus.
    assert names == ["datasource", "instance"]


def test_each_panel_has_a_place_of_its_own_and_says_what_it_shows() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["description"]
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_everything_is_asked_of_the_chosen_prometheus_for_the_chosen_hosts() -> None:
    for panel in PANELS:
        assert panel["datasource"] == SOURCE
        assert all(target["datasource"] == SOURCE for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert all('instance=~"$instance"' in expression for expression in EXPRESSIONS)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_nothing_is_asked_for_that_is_not_exported(expression: str) -> None:
    assert "bootlock_" in expression
    assert strangers(expression) == set()


def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    """As rules, since there is no other way to have it read them."""
    plain = [
        expr.replace("$instance", ".*").replace("$__rate_interval", "5m") for expr in EXPRESSIONS
    ]
    rules = [{"record": f"panel_{number}", "expr": expr} for number, expr in enumerate(plain)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_name_that_is_not_exported_would_be_found() -> None:
    assert strangers('sum by (uri) (bootlock_armed{instance="h"})') == set()
    assert strangers("bootlock_nothing") == {"bootlock_nothing"}
    assert strangers('bootlock_armed{fence="power"}') == {"bootlock_armed{fence}"}
    assert strangers("sum by (fence) (bootlock_armed)") == {"fence"}
    assert strangers("bootlock_cycle_duration_seconds") == {"bootlock_cycle_duration_seconds"}
