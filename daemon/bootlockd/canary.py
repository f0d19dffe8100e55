"""Proof that the hook is armed: a domain that must be refused, and by us.

A canary is a transient, diskless domain with a UUID that ``decide.sql`` always refuses. libvirt
asks the hook before it launches anything, so a refused canary never runs a process; one that does
start has no CPU running, is destroyed at once, and its driver is not armed.
"""

from __future__ import annotations

import secrets
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

import libvirt

from bootlockd import hypervisor
from lockdb.values import CANARY_PREFIX

#: Seconds; the first start after a boot makes libvirt probe QEMU.
TIME_LIMIT = 60.0

_REFUSED = "bootlock: start refused: canary [hold canary]"


@dataclass(frozen=True)
class Proof:
    """Whether one driver of libvirt refused a canary through our hook."""

    uri: str
    armed: bool
    #: libvirt's answer, in one line.
    answer: str
    #: It was let through. Neither this nor armed: it failed for a reason of its own.
    started: bool = False


def prove(uri: str) -> Proof:
    """Start a canary at ``uri``. Raises Unreachable."""
    return hypervisor.bounded(lambda: _prove(uri), TIME_LIMIT, f"canary {uri}")


def document(uri: str) -> str:
    """A canary's XML for the driver at ``uri``. Raises Unreachable."""
    with hypervisor.connection(uri, read_only=False) as opened:
        return _document(opened, opened.getType().lower())


def _prove(uri: str) -> Proof:
    with hypervisor.connection(uri, read_only=False) as opened:
        kind = opened.getType().lower()
        flags = libvirt.VIR_DOMAIN_START_AUTODESTROY
        if kind != "lxc":
            flags |= libvirt.VIR_DOMAIN_START_PAUSED
        try:
            domain = opened.createXML(_document(opened, kind), flags)
        except libvirt.libvirtError as error:
            answer = hypervisor.one_line(error)
            by_hook = error.get_error_code() == libvirt.VIR_ERR_HOOK_SCRIPT_FAILED
            return Proof(uri, by_hook and _REFUSED in answer, answer)
        domain.destroy()
        return Proof(uri, False, "the canary started: libvirt did not ask the hook", started=True)


def _document(opened: Any, kind: str) -> str:
    suffix = secrets.token_hex(6)
    if kind == "lxc":
        # libvirt starts no container without a console.
        domain_type, devices = "lxc", "<devices><console type='pty'/></devices>"
        system = "<type>exe</type><init>/bin/true</init>"
    else:
        domain_type, devices, system = _machine(opened), "", "<type>hvm</type>"
    return f"""
        <domain type='{domain_type}'>
          <name>bootlock-canary-{suffix}</name>
          <uuid>{CANARY_PREFIX}{suffix}</uuid>
          <memory unit='MiB'>16</memory>
          <os>{system}</os>
          {devices}
        </domain>"""


def _machine(opened: Any) -> str:
    """The domain type that this host would start: kvm, qemu or xen."""
    capabilities = ET.fromstring(opened.getDomainCapabilities())  # noqa: S314 - libvirt wrote it
    return capabilities.findtext("domain") or "qemu"
