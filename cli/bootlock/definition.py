"""An instance's definition: the one that is kept of it on this host, or else libvirt's own.

What is kept holds passwords. They leave this module only where they were asked for by name, and
never for an archive.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import click

from bootlock import output
from bootlock.app import App
from bootlockd import hypervisor, keptdefinition
from bootlockd.config import load
from bootlockd.errors import ConfigError, FenceError, Unreachable
from bootlockd.hypervisor import Stored
from bootlockd.keptdefinition import KeptDefinition
from bootlockd.values import Guest
from lockdb.errors import NotFound


class Origin(StrEnum):
    """Where a definition was read."""

    KEPT = "kept"
    LIBVIRT = "libvirt"


class Now(StrEnum):
    """What libvirt has of an instance whose definition is kept."""

    SAME = "same"
    OTHER = "other"
    #: It runs, and has no definition any more.
    TRANSIENT = "transient"
    UNDEFINED = "undefined"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ForArchive:
    """Files of an archive by name, none with passwords, and what its about.json says of them."""

    files: Mapping[str, bytes]
    about: Mapping[str, Any]


def kept_of(app: App, uuid: str) -> KeptDefinition | None:
    """What is kept on this host; None for nothing. Raises ConfigError or FenceError."""
    path = keptdefinition.path_for(load(app.config).custody.directory, uuid)
    try:
        return keptdefinition.read(path)
    except PermissionError as error:
        raise FenceError(f"{path}: may not be read", "run as root") from error
    except OSError as error:
        raise FenceError(f"{path}: {error.strerror or error!r}", "check its file system") from error


# -- bootlock show --xml ----------------------------------------------------------------------


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
        click.echo(keptdefinition.encoded(_ended(fields["xml"])), nl=False)


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


# -- bootlock export --------------------------------------------------------------------------


def for_archive(app: App, uuid: str) -> ForArchive:
    """What is kept, and what libvirt has. What can't be had is said in ``about``, not raised."""
    try:
        here, unknown = _in_libvirt(app, uuid), ""
    except Unreachable as error:
        here, unknown = None, str(error)
    try:
        kept, why = kept_of(app, uuid), "none is kept on this host"
    except (ConfigError, FenceError) as error:
        kept, why = None, str(error)
        output.note(f"what is kept of its definition is not in the archive: {error}; {error.hint}")
    if kept:
        return _with_kept(kept, here, unknown)
    if here is None:
        why = f"{why}; {unknown or 'libvirt on this host does not know it'}"
        return ForArchive({}, {"origin": None, "source": None, "why": why})
    guest, stored = here
    about: dict[str, Any] = {"origin": Origin.LIBVIRT, "source": guest.uri, "why": why}
    about |= {"name": guest.name, "power": guest.power, "autostart": stored.autostart}
    files = {"definition.xml": keptdefinition.encoded(stored.document)}
    return _with_snapshots(ForArchive(files, about), None, stored)


def _with_kept(kept: KeptDefinition, here: tuple[Guest, Stored] | None, unknown: str) -> ForArchive:
    files = {"definition.xml": keptdefinition.encoded(kept.shown)}
    now: dict[str, Any] = {"state": Now.UNKNOWN if unknown else Now.UNDEFINED, "why": unknown}
    if here:
        guest, stored = here
        is_same = stored.document == kept.shown
        if not is_same:
            files["definition-now.xml"] = keptdefinition.encoded(stored.document)
        state = (Now.SAME if is_same else Now.OTHER) if guest.persistent else Now.TRANSIENT
        now = {"state": state, "why": "", "source": guest.uri, "name": guest.name}
        now |= {"power": guest.power, "autostart": stored.autostart}
    about = {
        "origin": Origin.KEPT,
        "source": kept.uri,
        "why": "",
        "name": kept.name,
        "kept_at": kept.kept_at,
        "autostart": kept.autostart,
        "sha256": kept.sha256,
        "now": now,
    }
    return _with_snapshots(ForArchive(files, about), kept, here[1] if here else None)


def _in_libvirt(app: App, uuid: str) -> tuple[Guest, Stored] | None:
    """What libvirt shows, without passwords. Raises Unreachable."""
    guest = hypervisor.observe(app.uris, uuid)
    stored = hypervisor.stored_of(guest) if guest else None
    return (guest, stored) if guest and stored else None


def _with_snapshots(
    found: ForArchive, kept: KeptDefinition | None, stored: Stored | None
) -> ForArchive:
    """The same with the snapshots: names, and metadata of those that libvirt has.

    What is kept of a snapshot has passwords in it, at places that only libvirt knows. So the files
    are libvirt's own, numbered: a snapshot's name is anybody's text.
    """
    documents = {one.name: one.document for one in stored.snapshots} if stored else {}
    names = [one.name for one in kept.snapshots] if kept else []
    files = dict(found.files)
    listed = []
    for number, name in enumerate(dict.fromkeys([*names, *documents]), 1):
        file = f"snapshots/{number}.xml" if name in documents else None
        if file:
            files[file] = keptdefinition.encoded(documents[name])
        listed.append({"name": name, "kept": name in names, "file": file})
    return ForArchive(files, {**found.about, "snapshots": listed})
