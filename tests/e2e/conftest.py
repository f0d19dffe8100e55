"""The machine that all tests here share, one after another, and what they start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import installing
from e2e import guests
from e2e.machine import Machine
from e2e.package import built_package, install, installed, version

#: A denial that a test asks for, to see that it would be seen.
PROVOKED = 'profile="virt-aa-helper" name="/etc/shadow"'

DATABASE = "/var/lib/bootlock/lock.db"


@dataclass(frozen=True)
class Installation:
    """The first one on this host: what was there before, and what apt and doctor said."""

    before: str
    apt: str
    doctor: str


@pytest.fixture(scope="session")
def package() -> Path:
    """The package of this tree."""
    return built_package()


@pytest.fixture(scope="session")
def next_package(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that comes after it."""
    return installing.following(package, tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A Debian 12 host with libvirt. It has seen what the tests before have done."""
    with Machine() as machine:
        yield machine


@pytest.fixture(scope="session")
def installation(machine: Machine, package: Path) -> Installation:
    """Once it has happened the host enforces."""
    before = machine.run("dpkg -l bootlock sqlite3 nftables; ls -R /etc/libvirt/hooks", check=False)
    apt = install(machine, package)
    doctor = machine.run("bootlock doctor --json", check=False).stdout
    return Installation(before.stdout, apt, doctor)


@pytest.fixture
def host(machine: Machine, installation: Installation, package: Path) -> Machine:
    """The machine with the package of this tree and without guests and holds."""
    tidy(machine, package)
    return machine


def tidy(machine: Machine, package: Path) -> None:
    """Whatever was done to it: it has this package, no guests and no holds."""
    found = installed(machine)
    if found != f"{version(package)} installed":
        # apt knows no package that neither it nor a repository has.
        if found:
            machine.run("apt-get -y purge bootlock")
        install(machine, package)
    query = "SELECT id FROM hold WHERE released_at IS NULL"
    held = f"sqlite3 -readonly -cmd '.timeout 30000' {DATABASE} '{query}'"
    # As long as they are held they are defined again.
    machine.run(f"for hold in $({held}); do bootlock release $hold --reason test; done")
    guests.forget(machine)


@pytest.fixture(autouse=True)
def nothing_is_amiss(machine: Machine) -> Iterator[None]:
    """After each test: no unit has failed, and AppArmor has denied nothing."""
    yield
    assert machine.run("systemctl --failed --no-legend --plain").stdout == ""
    assert [line for line in denials(machine) if PROVOKED not in line] == []


def denials(machine: Machine) -> list[str]:
    """What AppArmor did not let happen since the boot, as the kernel logged it."""
    logged = machine.run(
        "journalctl -b -o cat --no-pager --grep 'apparmor=\"DENIED\"'", check=False
    )
    return [line for line in logged.stdout.splitlines() if "DENIED" in line]
