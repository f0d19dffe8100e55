"""``serve.py nova|keystone PORT``: one real OpenStack API on loopback, until it is killed.

Run by the Python that Nova is installed for, never by the tests' own. Beside Nova stands an empty
Neutron, which Nova asks for security groups whenever it shows servers.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

APPLICATIONS = {"nova": "nova.wsgi.osapi_compute", "keystone": "keystone.wsgi.api"}
NEUTRON_PORT = 9696


def neutron(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Has nothing of whatever is asked for."""
    collection = environ["PATH_INFO"].rstrip("/").rpartition("/")[2].replace("-", "_")
    body = json.dumps({collection: []}).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]


def main() -> None:
    """Import the application, which reads its arguments and its settings, and serve it."""
    name, port = sys.argv[1], int(sys.argv[2])
    sys.argv = [name]
    application: Any = import_module(APPLICATIONS[name])
    serve = import_module("waitress").serve
    if name == "nova":
        beside = {"host": "127.0.0.1", "port": NEUTRON_PORT, "threads": 2}
        threading.Thread(target=serve, args=(neutron,), kwargs=beside, daemon=True).start()
    serve(application.application, host="127.0.0.1", port=port, threads=4)


if __name__ == "__main__":
    main()
