"""What systemd and AppArmor make of it, on the machine it runs on."""

from __future__ import annotations

import re

import pytest

from e2e.conftest import PROVOKED, denials
from e2e.guests import define, is_held, place
from e2e.machine import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

#: As docs/security.md says.
EXPOSURE = {
    "bootlockd.service": 2.5,
    "bootlock-preserve.service": 1.9,
    "bootlock-sync.service": 1.6,
    "bootlock-metrics.service": 1.0,
}


def test_apparmor_enforces_and_what_it_denies_would_be_seen(host: Machine) -> None:
    """Each test here ends with a look for denials: one that is provoked is found by it."""
    assert host.run("cat /proc/$(pidof libvirtd)/attr/current").stdout == "libvirtd (enforce)\n"
    host.run("aa-exec -p virt-aa-helper -- /bin/cat /etc/shadow", check=False)
    assert any(PROVOKED in line for line in denials(host))


def test_the_hook_may_wait_for_an_upgrade(host: Machine) -> None:
    """It does so by a program of its own, under libvirtd's profile."""
    define(host, "held")
    place(host, "held")
    host.run("touch /run/bootlock/upgrading")
    assert is_held(host, "held")
    host.run("rm /run/bootlock/upgrading")


def test_units_are_exposed_no_more_than_documented(host: Machine) -> None:
    said = host.run("systemd-analyze security --no-pager").stdout
    found = {
        name: float(exposure)
        for name, exposure in re.findall(r"^(bootlock\S*)\s+([\d.]+) ", said, re.MULTILINE)
    }
    assert found.keys() == EXPOSURE.keys()
    for name, exposure in found.items():
        assert exposure <= EXPOSURE[name]
