"""Who gives the order, for the record."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

_UNSET = 2**32 - 1


def actor() -> str:
    """The user this runs as, and who logged in to become it: ``root (alice)``.

    The kernel keeps the login's user id through su and sudo (``/proc/self/loginuid``); where it was
    never set, as in a service or a container, sudo's word is taken.
    """
    user = _name(os.geteuid())
    login = _login()
    return f"{user} ({login})" if login and login != user else user


def _login() -> str:
    try:
        uid = int(Path("/proc/self/loginuid").read_text("ascii"))
    except (OSError, ValueError):
        uid = _UNSET
    if uid != _UNSET:
        return _name(uid)
    return "".join(c for c in os.environ.get("SUDO_USER", "") if c.isprintable())[:64]


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
