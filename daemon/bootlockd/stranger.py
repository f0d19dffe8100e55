"""libvirt, asked by somebody who is not root: does its access driver refuse a canary?

A process is forked that becomes that user, tries to start a canary, and says what libvirt said.
The canary is refused by polkit's rules, and would be by the hook after them; in no case it runs.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import select
import signal
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import libvirt

from bootlockd import canary, hypervisor

#: Seconds that libvirt may take.
TIME_LIMIT = 30.0

SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))
#: Whom polkit lets connect, by the rule that comes with libvirt. That is what counts where systemd
#: made the socket: everybody may write to it, and it has no group but root's.
GROUP = "libvirt"


class Answer(StrEnum):
    """What came of it."""

    #: libvirt's access driver refused it.
    REFUSED = "refused"
    #: It did not; the hook did, or nobody.
    LET_THROUGH = "let through"
    #: She can't connect at all, or something else failed.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Tried:
    """Who tried, and what libvirt said, in one line."""

    user: str
    answer: Answer
    said: str


@dataclass(frozen=True)
class User:
    """Somebody, with the groups that let her connect."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def somebody(privileged: Collection[str], sockets: Collection[Path] = SOCKETS) -> User:
    """A user who may talk to libvirt by her group; if there is none, nobody."""
    groups = [*_owning(sockets), *_named(GROUP)]
    for gid in groups:
        for name in _members(gid):
            known = _account(name)
            if known and known.pw_uid and name not in privileged:
                mine = tuple(os.getgrouplist(name, known.pw_gid))
                return User(name, known.pw_uid, known.pw_gid, mine)
    known = _account("nobody")
    uid, gid = (known.pw_uid, known.pw_gid) if known else (65534, 65534)
    return User("nobody", uid, gid, (gid, *groups))


def try_canary(uri: str, user: User) -> Tried:
    """Have her start a canary at ``uri``. Raises Unreachable."""
    document = hypervisor.bounded(lambda: canary.document(uri), TIME_LIMIT, f"canary {uri}")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_and_try(writing, uri, user, document)
    os.close(writing)
    with open(reading, "rb") as said:
        if not select.select([said], [], [], TIME_LIMIT)[0]:
            os.kill(child, signal.SIGKILL)
        raw = said.read()
    os.waitpid(child, 0)
    code, text = json.loads(raw) if raw else (None, "libvirt did not answer")
    return Tried(user.name, _meaning(code), text)


def _become_and_try(writing: int, uri: str, user: User, document: str) -> None:
    """In a process of its own, that ends here."""
    answer: tuple[int | None, str] = (None, "")
    try:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        libvirt.registerErrorHandler(lambda *_: None, None)
        answer = _tried(uri, document)
    except OSError as error:
        answer = (None, str(error))
    finally:
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)


def _tried(uri: str, document: str) -> tuple[int | None, str]:
    try:
        opened = libvirt.open(uri)
    except libvirt.libvirtError as error:
        # Refused or not, it says nothing of domains.
        return None, hypervisor.one_line(error)
    flags = libvirt.VIR_DOMAIN_START_AUTODESTROY | libvirt.VIR_DOMAIN_START_PAUSED
    try:
        opened.createXML(document, flags).destroy()
    except libvirt.libvirtError as error:
        return error.get_error_code(), hypervisor.one_line(error)
    return 0, "the canary started"


def _meaning(code: int | None) -> Answer:
    if code == libvirt.VIR_ERR_ACCESS_DENIED:
        return Answer.REFUSED
    if code in {0, libvirt.VIR_ERR_HOOK_SCRIPT_FAILED}:
        return Answer.LET_THROUGH
    return Answer.UNKNOWN


def _owning(sockets: Collection[Path]) -> list[int]:
    """Their groups, but root's."""
    return [gid for path in sockets if path.exists() if (gid := path.stat().st_gid)]


def _named(group: str) -> list[int]:
    try:
        return [grp.getgrnam(group).gr_gid]
    except KeyError:
        return []


def _members(gid: int) -> list[str]:
    try:
        return grp.getgrgid(gid).gr_mem
    except KeyError:
        return []


def _account(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None
