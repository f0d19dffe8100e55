"""Guests' files that the daemon's own mounts hide from it.

The unit hides /home, /root, /tmp and /var/tmp (``ProtectHome=``, ``PrivateTmp=``): nothing that
anybody else put there is of use to the daemon, except for guests' disks. Those are named here by
the way that leads through the first process of the host, which has all of it.

Links are followed here: in such a name, the kernel would look for the target of one that begins
with "/" among what is hidden. openat2(2) could do it, but RestrictSUIDSGID= takes it away.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress
from functools import cache

log = logging.getLogger(__name__)

HOST = "/proc/1/root"

#: As many as the kernel follows.
_LINKS_MAX = 40


def reachable(path: str) -> str:
    """A name by which the file at ``path`` can be used here; ``path``, if there is none.

    Raises OSError if that can't be told.
    """
    # A name with a zero in it is none; whoever uses it says so.
    if os.path.exists(path) or "\0" in path or not path.startswith("/"):
        return path
    found = _of_the_host(path)
    return path if found is None else HOST + found


def real(path: str) -> str:
    """As os.path.realpath: the name on the host, without links, as far as that can be told."""
    with suppress(OSError):
        found = reachable(path)
        if found != path:
            return found.removeprefix(HOST)
    return os.path.realpath(path)


def _of_the_host(path: str) -> str | None:
    """The name without links; None if there is no such file."""
    try:
        os.stat(HOST)
    except PermissionError as error:
        _say(str(error))
        return None
    with suppress(FileNotFoundError, NotADirectoryError):
        return _without_links(path)
    return None


def _without_links(path: str) -> str:
    found, rest, links = "", path.split("/")[::-1], 0
    while rest:
        part = rest.pop()
        if part == "..":
            found = os.path.dirname(found).rstrip("/")
        elif part not in {"", "."}:
            step = f"{found}/{part}"
            if not stat.S_ISLNK(os.lstat(HOST + step).st_mode):
                found = step
                continue
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(HOST + step)
            found = "" if target.startswith("/") else found
            rest += target.split("/")[::-1]
    return found or "/"


@cache
def _say(why: str) -> None:
    """Once: it is so for every file."""
    log.warning("disks below /home, /root, /tmp and /var/tmp may not be seen: %s", why)
