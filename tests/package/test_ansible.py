"""The Ansible role, run for real on hosts that are thrown away afterwards."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import installing
from installing import HOOKS, define, is_refused
from privatehost import CommandFailed, PrivateHost

pytestmark = pytest.mark.live

ANSIBLE = installing.SOURCES / "packaging/ansible"
SETTINGS = "/etc/bootlock/bootlock.toml"
FREE = "8f3e3a0e-44bb-4f43-9d35-8bd1a1e4b7c5"
SOME = {
    "daemon": {"interval": 30, "workers": None},
    "libvirt": {"uris": ["qemu:///system"]},
    "sources": {"file": {"directory": "/etc/bootlock/hölds.d"}},
    "custody": {"directory": '/var/lib/libvirt/a "b" \\c'},
    "image_lock": {"enabled": False},
}


class Play:
    """Plays the role on a host, on which it runs, too."""

    def __init__(self, host: PrivateHost, package: Path) -> None:
        self.host = host
        self._play = host.images / "play.yml"
        self._play.write_text("- {hosts: all, gather_facts: false, roles: [bootlock]}\n", "utf-8")
        self._variables: dict[str, Any] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "bootlock_deb": str(package),
            # No cgroups here, without which libvirt refuses containers before it asks the hook.
            "bootlock_connect": ["qemu:///system"],
        }

    def settings(self) -> str:
        """The host's."""
        return self.host.run(["cat", SETTINGS]).stdout

    def __call__(self, *options: str, **variables: Any) -> dict[str, int]:
        """Ansible's own count of what happened. Raises CommandFailed, with what it said."""
        done = self.host.run(
            [
                Path(sys.executable).parent / "ansible-playbook",
                *("-i", "localhost,", "-e", json.dumps(self._variables | variables)),
                *options,
                self._play,
            ],
            env={
                "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
                "ANSIBLE_LOCALHOST_WARNING": "no",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_PIPELINING": "1",
                "HOME": str(self.host.images),
            },
            timeout=240,
        )
        counts = re.findall(r"(\w+)=(\d+)", done.stdout.rpartition("PLAY RECAP")[2])
        return {name: int(count) for name, count in counts}


@pytest.fixture
def play(host: PrivateHost, package: Path) -> Play:
    return Play(host, package)


def test_a_host_is_installed_configured_and_verified_and_then_left_alone(play: Play) -> None:
    host = play.host
    guest, uuid = define(host)
    holds = {"billing": [{"instance": uuid, "reason": "unpaid: é", "notice": "call the desk"}]}
    wanted: dict[str, Any] = {"bootlock_settings": SOME, "bootlock_hold_files": holds}

    play("--check", **wanted)
    assert not any(host.outside(hook).exists() for hook in HOOKS)

    assert play(**wanted)["changed"] > 0
    written = tomllib.loads(play.settings())
    assert written == {**SOME, "daemon": {"interval": 30}}
    # No systemd here that would run bootlock-sync.
    host.run(["/usr/bin/bootlock", "sync"])
    assert is_refused(host, guest)

    assert play(**wanted)["changed"] == 0
    assert play("--check", "--diff", bootlock_settings={"daemon": {"interval": 31}})["changed"] > 0
    assert tomllib.loads(play.settings()) == written


def test_a_host_on_which_something_is_wrong_fails(play: Play) -> None:
    play(bootlock_settings={"daemon": {"interval": 30}})
    before = play.settings()
    with pytest.raises(CommandFailed, match="failed to validate") as unusable:
        play(bootlock_settings={"daemon": {"interval": "soon"}})
    assert "daemon.interval" in unusable.value.done.stdout
    assert play.settings() == before

    play.host.outside(HOOKS[0]).chmod(0o644)
    with pytest.raises(CommandFailed, match="this host is not healthy:") as unhealthy:
        play(bootlock_verify_retries=0)
    said = unhealthy.value.done.stdout
    assert f"{HOOKS[0]} is not executable -> bootlock doctor --fix" in said
    assert "the canary started: libvirt did not ask the hook" in said
