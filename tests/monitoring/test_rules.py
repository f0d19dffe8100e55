"""The alert rules: Prometheus reads them, and each speaks when it should and not otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from monitoring.promtool import RULES, promtool, strangers

TEXT = RULES.read_text("utf-8")
#: Name and body of each rule.
ALERTS = {
    part.split(maxsplit=1)[0]: part
    for part in re.split(r"^ +- alert: ", TEXT, flags=re.MULTILINE)[1:]
}

HOST = 'instance="h"'
OTHER = 'instance="other"'
FILE = f'{HOST},source="file"'
QEMU = f'{HOST},uri="qemu:///system"'

#: A host on which all is well, for an hour: a sample a minute, from 0 seconds of Prometheus' clock.
HEALTHY = {
    f'up{{job="bootlock",{HOST}}}': "1x60",
    f"bootlock_daemon_up{{{HOST}}}": "1x60",
    f"bootlock_database_up{{{HOST}}}": "1x60",
    f"bootlock_daemon_database_error{{{HOST}}}": "0x60",
    f"bootlock_daemon_libvirt_error{{{HOST}}}": "0x60",
    f"bootlock_armed{{{QEMU}}}": "1x60",
    f"bootlock_armed_proof_timestamp_seconds{{{QEMU}}}": "0+60x60",
    f"bootlock_libvirt_connected{{{QEMU}}}": "1x60",
    f"bootlock_break_glass{{{HOST}}}": "0x60",
    f'bootlock_enforcements{{{HOST},fence="power",state="enforced"}}': "3x60",
    f"bootlock_stuck_instances{{{HOST}}}": "0x60",
    f"bootlock_vanished_holds{{{HOST}}}": "0x60",
    f"bootlock_last_look_timestamp_seconds{{{HOST}}}": "0+60x60",
    f"bootlock_journal_seq{{{HOST}}}": "7+1x60",
    f'bootlock_foreign_processes_total{{{HOST},action="killed"}}': "5x60",
    f"bootlock_refusals_total{{{HOST}}}": "0+5x60",
    f"bootlock_source_last_success_timestamp_seconds{{{FILE}}}": "0+60x60",
    f"bootlock_source_waiting_releases{{{FILE}}}": "0x60",
    f"bootlock_source_vanished_holds{{{FILE}}}": "0x60",
    # Two of them have a relay, of which one leads.
    f"bootlock_relay_up{{{HOST}}}": "1x60",
    f"bootlock_relay_up{{{OTHER}}}": "1x60",
    f"bootlock_relay_leads{{{HOST}}}": "1x60",
    f"bootlock_relay_leads{{{OTHER}}}": "0x60",
    f"bootlock_relay_last_success_timestamp_seconds{{{HOST}}}": "0+60x60",
    f"bootlock_relay_waiting_releases{{{HOST}}}": "0x60",
}

#: For each rule: what becomes of some series after half an hour, and a part of the summary.
FAILING: dict[str, tuple[dict[str, str], str]] = {
    "BootlockExporterAbsent": (
        {f'up{{job="bootlock",{HOST}}}': "1x30 0x30"},
        "no metrics of bootlock from h",
    ),
    "BootlockDaemonDown": (
        {f"bootlock_daemon_up{{{HOST}}}": "1x30 0x30"},
        "bootlockd does not answer on h",
    ),
    "BootlockDatabaseUnreadable": (
        {f"bootlock_database_up{{{HOST}}}": "1x30 0x30"},
        "can't be read on h",
    ),
    "BootlockNotArmed": (
        {f"bootlock_armed{{{QEMU}}}": "1x30 0x30"},
        "NOT ARMED: qemu:///system on h",
    ),
    "BootlockNotProvenArmed": (
        {f"bootlock_armed_proof_timestamp_seconds{{{QEMU}}}": "0+60x30 1800x30"},
        "no proof that qemu:///system on h",
    ),
    "BootlockBreakGlassOpen": (
        {f"bootlock_break_glass{{{HOST}}}": "0x30 1x30"},
        "break-glass is open on h",
    ),
    "BootlockEnforcementFailed": (
        {f'bootlock_enforcements{{{HOST},fence="network",state="failed"}}': "_x30 2x30"},
        "network fails on h, holds: 2",
    ),
    "BootlockEnforcementPending": (
        {f'bootlock_enforcements{{{HOST},fence="power",state="pending"}}': "_x25 1x35"},
        "power is pending for half an hour on h",
    ),
    "BootlockInstanceStuck": (
        {f"bootlock_stuck_instances{{{HOST}}}": "0x30 2x30"},
        "instances do not answer on h: 2",
    ),
    "BootlockLibvirtUnreachable": (
        {f"bootlock_daemon_libvirt_error{{{HOST}}}": "0x30 1x30"},
        "no libvirt answers bootlockd on h",
    ),
    "BootlockLookOverdue": (
        {f"bootlock_last_look_timestamp_seconds{{{HOST}}}": "0+60x30 1800x30"},
        "bootlockd on h has not looked",
    ),
    "BootlockSourceStale": (
        {f"bootlock_source_last_success_timestamp_seconds{{{FILE}}}": "0+60x30 1800x30"},
        "holds from file are not renewed on h",
    ),
    "BootlockReleasesWait": (
        {f"bootlock_source_waiting_releases{{{FILE}}}": "0x30 40x30"},
        "releases from file wait on h: 40",
    ),
    "BootlockSourceLacksHolds": (
        {f"bootlock_source_vanished_holds{{{FILE}}}": "0x30 3x30"},
        "file lacks holds that h has: 3",
    ),
    "BootlockRelayDown": (
        {f"bootlock_relay_up{{{OTHER}}}": "1x30 0x30"},
        "the relay on other does not run",
    ),
    "BootlockNoRelayLeads": (
        {
            f"bootlock_relay_leads{{{HOST}}}": "1x30 0x30",
            f"bootlock_relay_last_success_timestamp_seconds{{{HOST}}}": "0+60x30 _x30",
        },
        "no relay leads",
    ),
    "BootlockRelayStale": (
        {f"bootlock_relay_last_success_timestamp_seconds{{{HOST}}}": "0+60x30 1800x30"},
        "has read nothing of Nova",
    ),
    "BootlockRelayReleasesWait": (
        {f"bootlock_relay_waiting_releases{{{HOST}}}": "0x30 12x30"},
        "releases wait at the relay on h: 12",
    ),
    "BootlockHoldVanished": (
        {f"bootlock_vanished_holds{{{HOST}}}": "0x30 1x30"},
        "holds vanished on h: 1",
    ),
    "BootlockJournalWentBack": (
        {f"bootlock_journal_seq{{{HOST}}}": "100+1x30 90+1x30"},
        "the journal on h has fewer entries",
    ),
    "BootlockForeignProcess": (
        {f'bootlock_foreign_processes_total{{{HOST},action="killed"}}': "5x55 6x5"},
        "a QEMU was started past libvirt on h: killed",
    ),
    "BootlockManyRefusals": (
        {f"bootlock_refusals_total{{{HOST}}}": "0+5x30 150+20x30"},
        "over 100 starts were refused in 10 min on h",
    ),
}


def case(name: str, series: dict[str, str]) -> dict[str, Any]:
    """One host, asked after an hour for every alert. That none is expected has it say which are."""
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "alert_rule_test": [{"eval_time": "1h", "alertname": alert} for alert in ALERTS],
    }


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What Prometheus says in each case: one run for all of them."""
    path = tmp_path_factory.mktemp("rules") / "cases.yml"
    cases = [case("Healthy", HEALTHY)]
    cases += [case(name, HEALTHY | change) for name, (change, _) in FAILING.items()]
    # JSON is YAML.
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}
    path.write_text(json.dumps(document), "utf-8")
    done = promtool("test", "rules", path)
    found = dict.fromkeys(["Healthy", *FAILING], "")
    for part in re.split(r"^ +name: ", done.stdout + done.stderr, flags=re.MULTILINE)[1:]:
        found[part.partition(",")[0]] += part
    return found


def firing(said: str) -> set[str]:
    return set(re.findall(r'Labels:\{[^}]*alertname="(\w+)"', said))


def test_prometheus_understands_them() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(ALERTS)} rules found" in done.stdout


def test_they_ask_for_nothing_that_is_not_exported() -> None:
    for name, body in ALERTS.items():
        expression = body.partition("expr:")[2].partition("labels:")[0]
        assert "bootlock" in expression
        assert strangers(expression) == set(), name


@pytest.mark.parametrize("name", ALERTS)
def test_each_says_what_is_wrong_what_it_means_and_what_to_do(name: str) -> None:
    for key in ("summary", "description", "runbook"):
        assert re.search(rf"^          {key}: .", ALERTS[name], re.MULTILINE), key
    assert re.search(r"^          severity: (page|ticket)$", ALERTS[name], re.MULTILINE)


def test_on_a_healthy_host_none_speaks(said: dict[str, str]) -> None:
    assert firing(said["Healthy"]) == set()


@pytest.mark.parametrize("name", ALERTS)
def test_each_speaks_when_it_should_and_alone(said: dict[str, str], name: str) -> None:
    assert firing(said[name]) == {name}, said[name]
    assert FAILING[name][1] in said[name]
    assert "error expanding" not in said[name]


def test_the_operators_page_leads_to_them() -> None:
    page = Path(RULES.parents[1] / "operations.md").read_text("utf-8")
    assert "monitoring/bootlock.rules.yml" in page
    assert "monitoring/grafana-dashboard.json" in page
