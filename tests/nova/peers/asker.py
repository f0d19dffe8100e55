"""Asks APIs for the tests, from within their network namespace: one JSON line each way.

In: ``[method, url, headers, body]``; out: ``[status, headers, body]``, status 0 if nobody answers.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request


def ask(method: str, url: str, headers: dict[str, str], body: object) -> list[object]:
    """One request; any answer is an answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return _told(answer.status, answer.headers.items(), answer.read())
    except urllib.error.HTTPError as error:
        return _told(error.code, error.headers.items(), error.read())
    except OSError as error:
        return [0, {}, str(error)]


def _told(status: int, headers: list[tuple[str, str]], body: bytes) -> list[object]:
    try:
        said: object = json.loads(body)
    except ValueError:
        said = body.decode(errors="replace")
    return [status, {name.lower(): value for name, value in headers}, said]


for line in sys.stdin:
    print(json.dumps(ask(*json.loads(line))), flush=True)
