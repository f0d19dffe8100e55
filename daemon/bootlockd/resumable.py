"""SHA-256 that can be put aside and gone on with after a restart: disks take hours to read.

Python's own hides its state. OpenSSL's older functions, which are in the library that Python itself
is linked with, have theirs in a plain struct. Where they are not, or give another answer than
Python's, a digest can't be put aside and begins anew.
"""

from __future__ import annotations

import _hashlib
import ctypes
import hashlib
import ssl
from functools import cache
from typing import Any

#: SHA256_CTX: eight words of state, two of length, sixteen of data, and two counts.
_STATE = 112
_DIGEST = 32
#: Another build may lay it out in another way.
_MARK = ssl.OPENSSL_VERSION.encode() + b"\0"


class Sha256:
    """``state`` as given by ``aside``; of another build it is not taken, see ``begun``."""

    def __init__(self, state: bytes | None = None) -> None:
        self._library = _library()
        self._plain = hashlib.sha256()
        self._context = ctypes.create_string_buffer(_STATE)
        #: It goes on from the state that was given.
        self.begun = False
        if self._library is None:
            return
        self._library.SHA256_Init(self._context)
        if state and state.startswith(_MARK) and len(state) == len(_MARK) + _STATE:
            ctypes.memmove(self._context, state[len(_MARK) :], _STATE)
            self.begun = True

    def update(self, data: bytes) -> None:
        """Add to it. Other threads run meanwhile."""
        if self._library is None:
            self._plain.update(data)
        else:
            self._library.SHA256_Update(self._context, data, ctypes.c_size_t(len(data)))

    def aside(self) -> bytes | None:
        """What to go on from; None if that can't be had."""
        return None if self._library is None else _MARK + self._context.raw

    def hexdigest(self) -> str:
        """The digest of all that was added. Nothing can be added afterwards."""
        if self._library is None:
            return self._plain.hexdigest()
        digest = ctypes.create_string_buffer(_DIGEST)
        self._library.SHA256_Final(digest, self._context)
        return digest.raw.hex()


@cache
def _library() -> Any:
    """The library that Python's own module is linked with, if it does what is expected of it."""
    try:
        library = ctypes.CDLL(_hashlib.__file__)
        context = ctypes.create_string_buffer(_STATE)
        digest = ctypes.create_string_buffer(_DIGEST)
        library.SHA256_Init(context)
        library.SHA256_Update(context, b"abc", ctypes.c_size_t(3))
        library.SHA256_Final(digest, context)
    except (OSError, AttributeError):
        return None
    return library if digest.raw == hashlib.sha256(b"abc").digest() else None
