"""Guests of the machine: diskless, so that nothing boots in them, and real to libvirt and to us."""

from __future__ import annotations

import uuid as uuids

from e2e.machine import Machine

NOTICE = "call the desk"

_XML = """
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
"""


def uuid(name: str) -> str:
    """Always the same. Asked by it bootlock needs no libvirt, which may be busy starting guests."""
    return str(uuids.uuid5(uuids.NAMESPACE_DNS, name))


def define(machine: Machine, *names: str, autostart: bool = False) -> None:
    """Guests that are off."""
    for name in names:
        xml = _XML.format(name=name, uuid=uuid(name))
        machine.run("virsh define /dev/stdin", input=xml)
        if autostart:
            machine.run(f"virsh autostart {name}")


def forget(machine: Machine) -> None:
    """Ends and undefines all guests."""
    machine.run(
        "for name in $(virsh list --name); do virsh destroy $name; done;"
        " for name in $(virsh list --all --name); do virsh undefine --managed-save $name; done"
    )


def running(machine: Machine) -> set[str]:
    """Names of guests that run."""
    return set(machine.run("virsh list --name").stdout.split())


def start(machine: Machine, name: str) -> str:
    """Start it. Empty: it runs; else what libvirt answered."""
    done = machine.run(f"virsh start {name}", check=False)
    return done.stderr if done.returncode else ""


def place(machine: Machine, name: str, *options: str) -> str:
    """Hold it; what `place` said."""
    order = f"bootlock place {uuid(name)} --reason unpaid --notice '{NOTICE}'"
    return machine.run(" ".join([order, *options])).stdout


def release(machine: Machine, name: str) -> None:
    """End every hold on it."""
    machine.run(f"bootlock release --instance {uuid(name)} --all --reason paid")


def is_held(machine: Machine, name: str) -> bool:
    """Whether libvirt, asked to start it, answers with our line and the hold's notice."""
    return f"bootlock: start refused: {NOTICE} [hold " in start(machine, name)
