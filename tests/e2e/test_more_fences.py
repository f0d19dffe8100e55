"""What holds block besides starts, by units that are confined by a real systemd and AppArmor."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from e2e.guests import define, place, release, uuid
from e2e.machine import Machine
from waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

_ACCESS_DRIVER = 'access_drivers = [ "polkit" ]'
_RULES = "/etc/polkit-1/rules.d/50-libvirt.rules"
#: As docs/fences/polkit.md has it.
_RULE = """\
polkit.addRule(function (action, subject) {
    if (action.id.indexOf("org.libvirt.") === 0 && subject.isInGroup("libvirt")) {
        return polkit.Result.YES;
    }
});
"""


@pytest.fixture
def operator(host: Machine) -> Iterator[str]:
    """Somebody in libvirt's group, on a host where libvirt asks polkit."""
    host.run(f"cat >{_RULES}", input=_RULE)
    host.run(f"echo '{_ACCESS_DRIVER}' >>/etc/libvirt/libvirtd.conf; systemctl restart libvirtd")
    host.run("useradd --groups libvirt --create-home clerk")
    yield "clerk"
    host.run(f"sed -i '/^access_drivers/d' /etc/libvirt/libvirtd.conf; rm {_RULES}")
    host.run("systemctl restart libvirtd; userdel --remove clerk")


def test_who_is_not_root_can_not_delete_what_is_held(host: Machine, operator: str) -> None:
    define(host, "held", "free")
    place(host, "held")
    wait_until(lambda: _polkit_row(host) == "enforced", "polkit was seen to refuse", 300)
    assert "access denied" in _undefine(host, operator, "held")
    assert _undefine(host, operator, "free") == ""
    found = json.loads(host.run("bootlock doctor --json", check=False).stdout)["findings"]
    (asked,) = [one for one in found if one["check"] == "access driver"]
    assert (asked["level"], asked["detail"]) == (
        "ok",
        f"libvirt refused a canary to {operator} just now",
    )
    release(host, "held")
    wait_until(lambda: _undefine(host, operator, "held") == "", "it is let go", 300)


def _polkit_row(host: Machine) -> str:
    shown = json.loads(host.run(f"bootlock show {uuid('held')} --json").stdout)
    (hold,) = [hold for hold in shown["holds"] if hold["state"] == "active"]
    return "".join(row["state"] for row in hold["enforcement"] if row["fence"] == "polkit")


def _undefine(host: Machine, user: str, name: str) -> str:
    """Empty, or what libvirt answered."""
    order = f"runuser -u {user} -- virsh -c qemu:///system undefine {name}"
    done = host.run(order, check=False)
    return done.stderr if done.returncode else ""
