"""What holds block besides starts, by units that are confined by a real systemd and AppArmor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

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
    wait_until(lambda: _row(host, "polkit") == "enforced", "polkit was seen to refuse", 300)
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


@pytest.fixture
def variables(host: Machine) -> Iterator[str]:
    """What a guest's firmware keeps: libvirt removes it by ``undefine --nvram``."""
    path = "/var/lib/libvirt/qemu/nvram/held_VARS.fd"
    host.run(f"mkdir -p {Path(path).parent}; head -c 65536 /dev/urandom >{path}")
    yield path
    host.run(f"rm -f {path}")


def test_what_root_has_undefined_is_defined_again_until_it_is_released(
    host: Machine, variables: str
) -> None:
    define(host, "held")
    firmware = f"<loader readonly='yes' type='pflash'>/bin/true</loader><nvram>{variables}</nvram>"
    add = f"s|</os>|{firmware}</os><features><acpi/></features>|"
    host.run(f'virsh dumpxml held --inactive | sed "{add}" >/root/held && virsh define /root/held')
    host.run("virsh autostart held")
    assert variables in _definition(host)
    before, content = _definition(host), host.run(f"sha256sum <{variables}").stdout
    place(host, "held")
    wait_until(lambda: _row(host, "definition") == "enforced", "its definition is kept", 300)

    undefine = f"virsh undefine {uuid('held')} --nvram --snapshots-metadata"
    host.run(undefine)
    wait_until(lambda: _definition(host) == before, "it is defined again", 300)
    wait_until(lambda: "definition_restored" in _journal(host), "that is journalled", 300)
    assert host.run(f"sha256sum <{variables}").stdout == content
    wait_until(lambda: _row(host, "definition") == "enforced", "it is kept again", 300)

    release(host, "held")
    assert _definition(host) == before
    host.run(undefine)
    # For this the daemon has looked at all guests.
    define(host, "other")
    place(host, "other")
    assert _definition(host) == ""
    assert host.run(f"ls {variables}", check=False).stdout == ""
    assert _journal(host).count("definition_restored") == 1


def _definition(host: Machine) -> str:
    """All that libvirt has of it; empty: it is not defined."""
    order = f"virsh dumpxml --inactive {uuid('held')} && virsh dominfo {uuid('held')}"
    done = host.run(order, check=False)
    return done.stdout if done.returncode == 0 else ""


def _journal(host: Machine) -> str:
    return host.run(f"bootlock journal show --instance {uuid('held')}").stdout


def _row(host: Machine, fence: str) -> str:
    """What this fence has come to for the hold on it."""
    shown = json.loads(host.run(f"bootlock show {uuid('held')} --json").stdout)
    (hold,) = [hold for hold in shown["holds"] if hold["state"] == "active"]
    return "".join(row["state"] for row in hold["enforcement"] if row["fence"] == fence)


def _undefine(host: Machine, user: str, name: str) -> str:
    """Empty, or what libvirt answered."""
    order = f"runuser -u {user} -- virsh -c qemu:///system undefine {name}"
    done = host.run(order, check=False)
    return done.stderr if done.returncode else ""
