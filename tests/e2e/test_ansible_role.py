"""The Ansible role, played from here on a machine with systemd, over ssh."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.guests import define, is_held, uuid
from e2e.machine import Machine
from e2e.package import SOURCES
from waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

ROLES = SOURCES / "packaging/ansible/roles"
UNITS = ("bootlockd", "bootlock-sync", "bootlock-metrics")


@pytest.fixture
def bare(host: Machine) -> Iterator[Machine]:
    """The machine without the package; all that the role brings goes again."""
    host.run("apt-get -y purge bootlock")
    yield host
    host.run("apt-get -y purge bootlock; rm -rf /var/cache/bootlock")


def play(machine: Machine, package: Path, directory: Path, **variables: Any) -> dict[str, int]:
    """Ansible's own count of what it did."""
    ssh = {
        "ansible_host": machine.address,
        "ansible_port": machine.port,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(machine.key),
        "ansible_ssh_common_args": shlex.join(machine.ssh_options),
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    playbook = directory / "play.yml"
    playbook.write_text("- {hosts: all, gather_facts: false, roles: [bootlock]}\n", "utf-8")
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            *("-i", "machine,", "-e", json.dumps(ssh | variables | {"bootlock_deb": str(package)})),
            str(playbook),
        ],
        env={
            **os.environ,
            "ANSIBLE_ROLES_PATH": str(ROLES),
            "ANSIBLE_HOME": str(directory),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"(\w+)=(\d+)", done.stdout.rpartition("PLAY RECAP")[2])
    return {name: int(count) for name, count in counts}


def process(machine: Machine, unit: str) -> str:
    """The unit's main process; fails if it is not active and enabled."""
    machine.run(f"systemctl is-active {unit} && systemctl is-enabled {unit}")
    return machine.run(f"systemctl show --property MainPID --value {unit}").stdout.strip()


def test_it_installs_configures_and_verifies_and_then_changes_nothing(
    bare: Machine, package: Path, tmp_path: Path
) -> None:
    define(bare, "held", "free")
    settings: dict[str, Any] = {"sources": {"file": {"directory": "/etc/bootlock/holds.d"}}}
    holds = {"billing": [{"instance": uuid("held"), "reason": "unpaid", "notice": "call the desk"}]}

    first = play(bare, package, tmp_path, bootlock_settings=settings, bootlock_hold_files=holds)
    assert first["changed"] > 0
    wait_until(lambda: is_held(bare, "held"), "bootlock-sync has read the file", 300)
    assert not is_held(bare, "free")
    before = {unit: process(bare, unit) for unit in UNITS}

    again = play(bare, package, tmp_path, bootlock_settings=settings, bootlock_hold_files=holds)
    assert again["changed"] == 0
    assert {unit: process(bare, unit) for unit in UNITS} == before

    # The daemon goes on with what it enforces: it is reloaded, and only metrics start anew.
    settings["daemon"] = {"interval": 31}
    changed = play(bare, package, tmp_path, bootlock_settings=settings)
    # The settings, and the three handlers.
    assert changed["changed"] == 4
    after = {unit: process(bare, unit) for unit in UNITS}
    assert {unit for unit in UNITS if after[unit] != before[unit]} == {"bootlock-metrics"}
    assert is_held(bare, "held")
