"""A small client of etcd's JSON gateway: ranges, transactions, leases and watches.

Rules kept here:

- Every connection, every answer and every line has a time-out and a longest length.
- A question goes from member to member until one answers. So it may have been carried out twice, or
  by a member that could not say so: whoever writes, writes what he recognises (``registry``).
- A token that etcd no longer knows is renewed once.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

from bootlockd.config import Fleet
from bootlockd.fleet import wire
from bootlockd.fleet.errors import (
    BadAnswer,
    Compacted,
    EtcdError,
    Forbidden,
    NoMember,
    TermOver,
    TooLong,
)
from bootlockd.fleet.wire import Frame, Header, KeyValue, Page, Term

#: How many keys are asked for at once.
PAGE = 1000

_STALE_TOKEN = ("invalid auth token", "revision of auth store is old")
#: What is said with status 400 of a user or a certificate.
_ABOUT_US = re.compile("authentication|user name|CommonName")
#: grpc's code for a range of a revision that is gone.
_OUT_OF_RANGE = 11


class Client:
    """Asks the members in ``settings``, one after the other. May be used by several threads."""

    def __init__(self, settings: Fleet) -> None:
        """Raises Forbidden for certificates or a password that can't be read."""
        self.settings = settings
        self._endpoints = [endpoint.rstrip("/") for endpoint in settings.endpoints]
        self._at = 0
        self._password = _password(settings)
        self._token = ""
        self._login = threading.Lock()
        encrypted = any(endpoint.startswith("https:") for endpoint in self._endpoints)
        self._pool = urllib3.PoolManager(
            maxsize=4, retries=False, ssl_context=_context(settings) if encrypted else None
        )

    def close(self) -> None:
        """Close what is idle."""
        self._pool.clear()

    def next_member(self) -> None:
        """Ask another member first from now on."""
        self._at = (self._at + 1) % len(self._endpoints)

    # -- questions ----------------------------------------------------------------------------

    def page(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        since: int = 0,
        keys_only: bool = False,
    ) -> Page:
        """The keys from ``key`` up to ``end``, or just ``key``. ``since``: written since then.

        Raises EtcdError.
        """
        question = {
            "key": wire.text_of(key),
            "range_end": wire.text_of(end),
            "limit": limit,
            "revision": revision,
            "min_mod_revision": since,
            "keys_only": keys_only,
        }
        return wire.page_of(self.ask("/v3/kv/range", question))

    def newest(self, key: bytes, end: bytes) -> int:
        """The revision that wrote in this range last; 0 if it is empty. Raises EtcdError."""
        question = {
            "key": wire.text_of(key),
            "range_end": wire.text_of(end),
            "limit": 1,
            "sort_order": "DESCEND",
            "sort_target": "MOD",
            "keys_only": True,
        }
        items = wire.page_of(self.ask("/v3/kv/range", question)).items
        return items[0].mod if items else 0

    def pages(self, key: bytes, end: bytes, *, revision: int = 0) -> Iterator[Page]:
        """The whole range at ``revision``, or that of the first page.

        Raises EtcdError; Compacted: begin again.

        A page that is too long is asked for in smaller ones.
        """
        limit = PAGE
        while True:
            try:
                page = self.page(key, end, limit=limit, revision=revision)
            except TooLong:
                if limit == 1:
                    raise
                limit = max(1, limit // 8)
                continue
            yield page
            revision = revision or page.header.revision
            if not page.more or not page.items:
                return
            key = page.items[-1].key + b"\0"

    def get(self, key: bytes) -> tuple[Header, KeyValue | None]:
        """One key. Raises EtcdError."""
        page = self.page(key)
        return page.header, page.items[0] if page.items else None

    def write(
        self, key: bytes, value: bytes, *, mod: int, lease: int = 0, term: Term | None = None
    ) -> tuple[Header, bool, KeyValue | None]:
        """Write ``key`` if it is still at ``mod`` (0: if there is none), and only in ``term``.

        Whether it was written; else what stands there. Raises TermOver or another EtcdError.
        """
        encoded = wire.text_of(key)
        compare = [{"key": encoded, "target": "MOD", "result": "EQUAL", "mod_revision": str(mod)}]
        looks = [{"request_range": {"key": encoded}}]
        if term:
            # In one transaction: etcd says when the term ends, whenever the question arrives.
            compare += _lasting(term)
            looks += [{"request_range": {"key": wire.text_of(term.key)}}]
        question = {
            "compare": compare,
            "success": [
                {"request_put": {"key": encoded, "value": wire.text_of(value), "lease": str(lease)}}
            ],
            "failure": looks,
        }
        answer = self.ask("/v3/kv/txn", question)
        if answer.get("succeeded") is True:
            return wire.header_of(answer), True, None
        there = [
            next(map(wire.item_of, wire.tables(wire.table(said, "response_range"), "kvs")), None)
            for said in wire.tables(answer, "responses")
        ]
        if len(there) != len(looks):
            raise BadAnswer(f"{len(there)} answers to {len(looks)} questions")
        if term and (there[1] is None or there[1].mod != term.mod):
            raise TermOver("nothing was written: the office is not ours any more")
        return wire.header_of(answer), False, there[0]

    def delete(
        self, found: Mapping[bytes, int], *, unless_new: tuple[bytes, bytes], since: int
    ) -> bool:
        """Delete all these keys, if each is still at its revision.

        And if none in the range ``unless_new`` was made after the revision ``since``. False:
        nothing was deleted; or it had been, and no answer came. Raises EtcdError.
        """
        begin, end = unless_new
        unchanged = [
            {
                "key": wire.text_of(key),
                "target": "MOD",
                "result": "EQUAL",
                "mod_revision": str(mod),
            }
            for key, mod in found.items()
        ]
        none_new = {
            "key": wire.text_of(begin),
            "range_end": wire.text_of(end),
            "target": "CREATE",
            "result": "LESS",
            "create_revision": str(since + 1),
        }
        question = {
            "compare": [*unchanged, none_new],
            "success": [{"request_delete_range": {"key": wire.text_of(key)}} for key in found],
        }
        return self.ask("/v3/kv/txn", question).get("succeeded") is True

    def grant(self, seconds: int) -> int:
        """A lease that ends if it is not kept alive. Raises EtcdError."""
        return wire.number(self.ask("/v3/lease/grant", {"TTL": str(seconds)}), "ID")

    def keep_alive(self, lease: int) -> bool:
        """Whether the lease is still there, and now for its whole time. Raises EtcdError."""
        answer = self.ask("/v3/lease/keepalive", {"ID": str(lease)})
        # Of one that has ended etcd answers without complaint, and without a TTL.
        return wire.number(wire.table(answer, "result"), "TTL") > 0

    def revoke(self, lease: int) -> None:
        """End a lease and delete what hangs on it. Raises EtcdError."""
        self.ask("/v3/lease/revoke", {"ID": str(lease)})

    def watch(self, ranges: Sequence[tuple[bytes, bytes]], start: int, *, silence: float) -> Stream:
        """What happens in each of the ranges from revision ``start`` on, in one stream.

        ``silence``: seconds without a line after which the stream is taken for dead. Raises
        EtcdError. No other member is tried: the caller looks at everything before.
        """
        asked = [
            {
                "create_request": {
                    "key": wire.text_of(key),
                    "range_end": wire.text_of(end),
                    "start_revision": str(start),
                }
            }
            for key, end in ranges
        ]
        body = "".join(json.dumps(question) for question in asked).encode()
        # Without a leader this ends in seconds, instead of never.
        leading = {"Grpc-Metadata-Hasleader": "true"}
        endpoint = self._endpoints[self._at]
        return Stream(self._post(endpoint, "/v3/watch", body, leading, read=silence))

    # -- how they are asked -------------------------------------------------------------------

    def ask(self, path: str, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of the first member that has one. Raises EtcdError."""
        body = json.dumps(question).encode()
        problems, hints = [], ["is etcd up, with a majority of its members? see 'etcdctl'"]
        for _ in self._endpoints:
            endpoint = self._endpoints[self._at]
            try:
                return self._ask_as_user(endpoint, path, body)
            except NoMember as error:
                problems.append(str(error))
                hints = [error.hint] if error.hint else hints
                self.next_member()
        raise NoMember("; ".join(problems), hints[0])

    def _ask_as_user(self, endpoint: str, path: str, body: bytes) -> dict[str, Any]:
        token = self._token
        try:
            if self.settings.user and not token:
                token = self._log_in(endpoint, "")
            return self._ask_one(endpoint, path, body)
        except _StaleToken:
            self._log_in(endpoint, token)
        try:
            return self._ask_one(endpoint, path, body)
        except _StaleToken as error:
            raise Forbidden(str(error)) from error

    def _log_in(self, endpoint: str, stale: str) -> str:
        with self._login:
            if self._token == stale:
                self._token = ""
                question = {"name": self.settings.user, "password": self._password}
                body = json.dumps(question).encode()
                answer = self._ask_one(endpoint, "/v3/auth/authenticate", body)
                self._token = str(answer.get("token", ""))
            return self._token

    def _ask_one(self, endpoint: str, path: str, body: bytes) -> dict[str, Any]:
        deadline = time.monotonic() + self.settings.timeout
        response = self._post(endpoint, path, body, {}, read=self.settings.timeout)
        try:
            return wire.parsed(_whole(response, deadline, endpoint))
        finally:
            response.release_conn()

    def _post(
        self, endpoint: str, path: str, body: bytes, headers: Mapping[str, str], *, read: float
    ) -> urllib3.BaseHTTPResponse:
        """The answer, once its head is there and says that it is one. Raises EtcdError."""
        timeout = urllib3.Timeout(connect=self.settings.timeout, read=read)
        known = {"Content-Type": "application/json", **headers}
        if self._token:
            known["Authorization"] = self._token
        deadline = time.monotonic() + self.settings.timeout
        try:
            response = self._pool.request(
                "POST",
                endpoint + path,
                body=body,
                headers=known,
                timeout=timeout,
                preload_content=False,
                redirect=False,
            )
        except (HTTPError, OSError) as error:
            raise NoMember(f"{endpoint}: {_in_words(error)}", _hint(error)) from error
        if response.status == 200:
            return response
        try:
            said = _whole(response, deadline, endpoint)
        finally:
            response.release_conn()
        raise _error(endpoint, response.status, said)


class Stream:
    """The lines of one watch. One thread iterates, any other may ``close``."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._closed = False

    def __iter__(self) -> Iterator[Frame]:
        """Until closed. Raises EtcdError when the stream ends by itself."""
        try:
            for line in self._lines():
                yield wire.frame_of(line)
        except (HTTPError, OSError, ValueError, AttributeError) as error:
            # The last two: http.client and ssl, of a socket that another thread has closed.
            if not self._closed:
                raise EtcdError(f"the watch broke off: {_in_words(error)}") from error
        finally:
            self._response.close()
        if not self._closed:
            raise EtcdError("the watch broke off")

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        # It may have ended already.
        with suppress(OSError, ValueError, RuntimeError):
            self._response.shutdown()

    def _lines(self) -> Iterator[bytes]:
        # In parts: joining for each one that comes would take the square of a long line's time.
        parts: list[bytes] = []
        size = 0
        while data := self._response.read1(1 << 16):
            *whole, rest = data.split(b"\n")
            for line in whole:
                yield b"".join((*parts, line))
                parts, size = [], 0
            parts.append(rest)
            size += len(rest)
            if size > wire.LONGEST:
                raise TooLong(f"a line of more than {wire.LONGEST} bytes")
        # The frame that says why it ends has no newline.
        if size:
            yield b"".join(parts)


def _lasting(term: Term) -> list[dict[str, str]]:
    """What is so as long as the term lasts."""
    key = wire.text_of(term.key)
    return [
        {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(term.mod)},
        # A registry that was restored counts its revisions again.
        {"key": key, "target": "LEASE", "result": "EQUAL", "lease": str(term.lease)},
    ]


class _StaleToken(EtcdError):
    """etcd has forgotten our token."""


def _whole(response: urllib3.BaseHTTPResponse, deadline: float, endpoint: str) -> bytes:
    parts, size = [], 0
    try:
        while data := response.read1(1 << 16):
            parts.append(data)
            size += len(data)
            if size > wire.LONGEST:
                response.close()
                raise TooLong(f"{endpoint}: an answer of more than {wire.LONGEST} bytes")
            if time.monotonic() > deadline:
                response.close()
                raise NoMember(f"{endpoint}: it does not come to the end of its answer")
    except (HTTPError, OSError) as error:
        raise NoMember(f"{endpoint}: {_in_words(error)}", _hint(error)) from error
    return b"".join(parts)


def _error(endpoint: str, status: int, body: bytes) -> EtcdError:
    try:
        answer = wire.parsed(body)
    except BadAnswer:
        # The gateway's own errors are plain text.
        answer = {"message": body[:200].decode("utf-8", "replace")}
    message = str(answer.get("message") or answer.get("error") or f"HTTP {status}")
    said = f"{endpoint}: {' '.join(message.split())[:200]}"
    if any(words in message for words in _STALE_TOKEN):
        return _StaleToken(said)
    if answer.get("code") == _OUT_OF_RANGE:
        return Compacted(said)
    if status in {401, 403, 412} or (status == 400 and _ABOUT_US.search(message)):
        return Forbidden(said, "check fleet.user, its password, role and certificate")
    if status == 400:
        return EtcdError(said)
    return NoMember(said)


def _context(settings: Fleet) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.certificate_file:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        files = (settings.ca_file, settings.certificate_file, settings.key_file)
        names = ", ".join(str(file) for file in files if file)
        raise Forbidden(f"{names}: {error}", "see fleet.ca_file and fleet.certificate_file") from (
            error
        )
    return context


def _password(settings: Fleet) -> str:
    if not settings.password_file:
        return ""
    try:
        text = settings.password_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Forbidden(f"{settings.password_file}: {error}", "see fleet.password_file") from error
    return text.partition("\n")[0]


def _in_words(error: Exception) -> str:
    """The cause beneath urllib3's wrapping, in one line."""
    inner: Any = getattr(error, "reason", None) or error
    return " ".join(str(inner).split())[-200:]


def _hint(error: Exception) -> str:
    # Of a certificate that it doesn't like, a peer may only say so by hanging up.
    said = f"{error!r}".lower()
    return "check both sides' certificates" if "ssl" in said or "certificate" in said else ""
