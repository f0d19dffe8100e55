"""From a host that knows nothing of us to one that enforces: one command."""

from __future__ import annotations

import json

import pytest

from e2e.conftest import Installation
from e2e.guests import define, is_held, place, running, start
from e2e.machine import Machine
from waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


def test_one_command_installs_it_and_what_it_needs(installation: Installation) -> None:
    assert "ii  " not in installation.before
    assert "50-bootlock" not in installation.before
    for needed in ("sqlite3", "nftables", "bootlock"):
        assert f"Setting up {needed} " in installation.apt
    assert "told libvirtd" in installation.apt


def test_then_it_is_healthy_and_armed(installation: Installation) -> None:
    said = json.loads(installation.doctor)
    assert said["healthy"] is True
    # Debian's libvirt does not ask polkit, which doctor says.
    assert {finding["check"] for finding in said["findings"] if finding["level"] != "ok"} == {
        "access driver"
    }
    armed = [finding["detail"] for finding in said["findings"] if finding["check"] == "armed"]
    assert armed == ["qemu:///system refused a canary just now"]


def test_a_guest_that_runs_is_shut_down_and_can_not_be_started(host: Machine) -> None:
    define(host, "held")
    assert start(host, "held") == ""
    assert "power: off\n" in place(host, "held", "--on-running shutdown --grace 3")
    assert running(host) == set()
    assert is_held(host, "held")
    _daemon_has_said(host, "guest='held' runs: shutdown", "fence=power state=enforced ")


def test_it_says_in_the_journal_what_the_documentation_has(host: Machine) -> None:
    host.run("systemctl restart bootlockd; systemctl reload bootlockd")
    _daemon_has_said(
        host,
        "ready: enforcing 0 holds",
        "uri=qemu:///system connected",
        "uri=qemu:///system armed: ",
        "settings read again",
    )


def _daemon_has_said(host: Machine, *lines: str) -> None:
    def said() -> str:
        return host.run("journalctl -b -o cat --no-pager -u bootlockd").stdout

    wait_until(lambda: all(line in said() for line in lines), f"in the journal: {lines}", 300)
