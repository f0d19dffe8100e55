"""Which package is tested, and what apt and dpkg are told on the machine."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

from e2e.machine import Machine

SOURCES = Path(__file__).resolve().parents[2]


def built_package() -> Path:
    """What `make deb` has built; `make e2e` does that first."""
    project = tomllib.loads((SOURCES / "pyproject.toml").read_text("utf-8"))["project"]
    (package,) = (SOURCES / "dist").glob(f"bootlock_{project['version']}_*.deb")
    return package


def version(package: Path) -> str:
    """The version that the file says it is."""
    asked = ["dpkg-deb", "-f", str(package), "Version"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def install(machine: Machine, package: Path, *, check: bool = True) -> str:
    """As an operator does it; what apt said."""
    machine.copy_in(package, "/root/")
    command = f"apt-get -y --allow-downgrades install /root/{package.name} 2>&1"
    return machine.run(f"DEBIAN_FRONTEND=noninteractive {command}", check=check).stdout


def installed(machine: Machine) -> str:
    """dpkg's version and status; empty if it never heard of it."""
    asked = "dpkg-query -W -f '${Version} ${db:Status-Status}' bootlock"
    return machine.run(asked, check=False).stdout.strip()
