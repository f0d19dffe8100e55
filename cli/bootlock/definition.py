"""An instance's definition: the one that is kept of it on this host, or else libvirt's own.

What is kept holds passwords. They leave this module only where they were asked for by name.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Any

import click

from bootlock import output
from bootlock.app import App
from bootlockd import hypervisor, keptdefinition
from bootlockd.config import load
from bootlockd.errors import FenceError
from bootlockd.keptdefinition import KeptDefinition
from lockdb.errors import NotFound


class Origin(StrEnum):
    """Where a definition was read."""

    KEPT = "kept"
    LIBVIRT = "libvirt"


def kept_of(app: App, uuid: str) -> KeptDefinition | None:
    """What is kept on this host; None for nothing. Raises ConfigError or FenceError."""
    path = keptdefinition.path_for(load(app.config).custody.directory, uuid)
    try:
        return keptdefinition.read(path)
    except PermissionError as error:
        raise FenceError(f"{path}: may not be read", "run as root") from error
    except OSError as error:
        raise FenceError(f"{path}: {error.strerror or error!r}", "check its file system") from error


def show(app: App, uuid: str, *, secrets: bool, as_json: bool) -> None:
    """Print what is kept, or what libvirt has. Raises NotFound, FenceError and others."""
    fields = _fields(app, uuid, secrets=secrets)
    if fields["origin"] is Origin.LIBVIRT:
        output.note("none is kept on this host: this is what libvirt has now")
    if as_json:
        output.print_json(fields)
    elif sys.stdout.isatty():
        # The same document, without anything that could drive the terminal.
        shown = output.escaped(_ended(fields["xml"]), lambda character: f"&#x{ord(character):x};")
        click.echo(shown, nl=False)
    else:
        click.echo(_bytes(_ended(fields["xml"])), nl=False)


def _fields(app: App, uuid: str, *, secrets: bool) -> dict[str, Any]:
    kept = kept_of(app, uuid)
    if kept:
        return {
            "instance": uuid,
            "name": kept.name,
            "uri": kept.uri,
            "origin": Origin.KEPT,
            "kept_at": kept.kept_at,
            "autostart": kept.autostart,
            "snapshots": [snapshot.name for snapshot in kept.snapshots],
            "xml": kept.document if secrets else kept.shown,
        }
    guest = hypervisor.observe(app.uris, uuid)
    stored = hypervisor.stored_of(guest, secure=secrets) if guest else None
    if guest is None or stored is None:
        raise NotFound(
            f"no definition of {uuid} is kept here, and libvirt here does not know it",
            "ask on the host where it is, or was when it was held",
        )
    return {
        "instance": uuid,
        "name": guest.name,
        "uri": guest.uri,
        "origin": Origin.LIBVIRT,
        "kept_at": None,
        "autostart": stored.autostart,
        "snapshots": [snapshot.name for snapshot in stored.snapshots],
        "xml": stored.document,
    }


def _ended(document: str) -> str:
    return document if document.endswith("\n") else f"{document}\n"


def _bytes(document: str) -> bytes:
    # As its digest in the journal is made.
    return document.encode("utf-8", "backslashreplace")
