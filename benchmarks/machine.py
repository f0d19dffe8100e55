"""What the numbers were taken on, in words that would fit any machine of the kind."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from pathlib import Path

import libvirt

from hookrunner import SQLITE3


def facts() -> dict[str, str]:
    """Names and values, in the order to print them in."""
    shell = subprocess.run([SQLITE3, "--version"], capture_output=True, text=True, check=True)
    return {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "virtual machine": "yes" if " hypervisor" in _cpuinfo("flags") else "no",
        "kernel": platform.release().split("-")[0],
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "/bin/sh": Path("/bin/sh").resolve().name,
        "sqlite3": shell.stdout.split()[0],
        "libvirt": _version(libvirt.getVersion()),
        "Python": f"{platform.python_version()} (SQLite {sqlite3.sqlite_version})",
    }


def _processor() -> str:
    return _cpuinfo("model name").strip() or platform.machine()


def _cpuinfo(field: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value
    return ""


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
