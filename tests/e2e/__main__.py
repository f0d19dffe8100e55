"""Boots the machine of the end-to-end tests, with the package in its /root, and goes in.

    python -m e2e              a shell on the machine
    python -m e2e COMMAND...   COMMAND here, with E2E_ADDRESS, E2E_PORT, E2E_KEY in its environment

E2E_KEY is the private key with which root is let in. When the command ends the machine is gone.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from e2e.machine import Machine
from e2e.package import built_package


def main(command: list[str]) -> int:
    """Exit status: that of the command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    package = built_package()
    with Machine() as machine:
        machine.copy_in(package, "/root/")
        reached = {
            "E2E_ADDRESS": machine.address,
            "E2E_PORT": str(machine.port),
            "E2E_KEY": str(machine.key),
        }
        shell = ["ssh", "-t", *machine.ssh_options, f"root@{machine.address}"]
        return subprocess.run(command or shell, check=False, env=os.environ | reached).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
