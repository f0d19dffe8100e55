"""Upgrade, downgrade, removal, purge: by apt, with holds, beside a libvirt that works.

The package that ours is upgraded to is derived from it (installing.following): a later version,
with one more step for the database and another format of the decision. It is the upgrade that asks
most of the package, and needs no older release to be at hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.conftest import DATABASE
from e2e.guests import define, is_held, place, start
from e2e.machine import Machine
from e2e.package import install, installed, version

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

OURS = "/etc/libvirt/hooks/*.d/50-bootlock /usr/share/bootlock /usr/lib/bootlock /usr/bin/bootlock*"


def test_upgraded_not_downgraded_removed_installed_again_and_purged(
    host: Machine, package: Path, next_package: Path
) -> None:
    define(host, "held")
    place(host, "held")

    install(host, next_package)
    assert installed(host) == f"{version(next_package)} installed"
    assert is_held(host, "held")
    host.run("bootlock doctor")

    assert "written by a newer bootlock (m9999_next)" in install(host, package, check=False)
    assert installed(host) == f"{version(next_package)} installed"
    assert is_held(host, "held")
    host.run("bootlock doctor")

    host.run("apt-get -y remove bootlock")
    assert _is_gone(host)
    assert host.run("systemctl is-active libvirtd.socket").stdout == "active\n"
    assert start(host, "held") == ""
    host.run("virsh destroy held")

    install(host, next_package)
    assert is_held(host, "held")
    host.run("bootlock doctor")

    host.run("apt-get -y purge bootlock")
    assert _is_gone(host)
    left = "ls -d /var/lib/bootlock /etc/bootlock /run/bootlock; getent group bootlock"
    assert host.run(left, check=False).stdout == ""
    assert host.run("find /etc/systemd -name '*bootlock*'").stdout == ""
    assert start(host, "held") == ""
    host.run("virsh destroy held")

    install(host, package)
    assert host.run(f"sqlite3 -readonly {DATABASE} 'SELECT count(*) FROM hold'").stdout == "0\n"
    host.run("bootlock doctor")


def _is_gone(host: Machine) -> bool:
    """All but the database and the settings; that the units were enabled, dpkg remembers."""
    known = ("list-unit-files", "list-units --all --state=active,failed")
    for units in known:
        assert host.run(f"systemctl {units} --no-legend 'bootlock*'", check=False).stdout == ""
    return host.run(f"ls -d {OURS}", check=False).stdout == ""
