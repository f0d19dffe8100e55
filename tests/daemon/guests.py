"""Guests for the daemon's live tests, and what bootlock says of them."""

from __future__ import annotations

import json
import subprocess
import uuid as uuids
from contextlib import closing
from typing import Any

from domainxml import domain_xml, file_disk
from privatehost import PrivateHost

OFF, RUNNING, PAUSED = "shut off", "running", "paused"


class Guest:
    """A running QEMU guest whose BIOS finds no system: it ignores ACPI."""

    def __init__(self, host: PrivateHost) -> None:
        self.host = host
        self.uuid = str(uuids.uuid4())
        self.name = f"guest-{self.uuid[:8]}"
        disk = host.images / f"{self.name}.img"
        disk.write_bytes(bytes(1 << 20))
        with closing(host.connect()) as connection:
            connection.defineXML(domain_xml(self.name, self.uuid, disks=[file_disk(disk)])).create()

    def state(self) -> str:
        return self.host.virsh("domstate", self.uuid).stdout.strip()

    def run_number(self) -> str:
        return self.host.virsh("domid", self.uuid).stdout.strip()

    def place(self, *options: str) -> Any:
        command = ["place", self.uuid, "--reason", "r", "--json", *options]
        return json.loads(self.host.bootlock(*command).stdout)

    def release(self) -> subprocess.CompletedProcess[str]:
        return self.host.bootlock(
            "release", "--instance", self.uuid, "--all", "--reason", "r", check=False
        )

    def remove(self) -> None:
        self.release()
        self.host.virsh("destroy", self.uuid, check=False)
        self.host.virsh("undefine", self.uuid, "--managed-save", check=False)


def power_row(host: PrivateHost, uuid: str) -> Any:
    """What the database says of the power fence for the one hold on an instance."""
    (hold,) = json.loads(host.bootlock("show", uuid, "--json").stdout)["holds"]
    return {row["fence"]: row for row in hold["enforcement"]}.get("power")
