"""What the network fence's tests share: a bridge, a peer, programs inside that talk by lines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from privatehost import PrivateHost

BRIDGE, PORT, PEER = "br0", "port0", "peer0"

HERE = Path(__file__).resolve().parent

_SCENE = f"""
ip link add {BRIDGE} type bridge
ip link set {BRIDGE} up
ip link add {PORT} type veth peer name {PEER}
ip link set {PORT} master {BRIDGE} up
ip link set {PEER} up
"""


def build(host: PrivateHost) -> None:
    """A bridge with a peer on it, in the host's own network namespace, which ends with it."""
    host.run(["sh", "-ec", _SCENE])


class Talker:
    """A program of this directory, run inside; a context manager that ends it."""

    def __init__(self, host: PrivateHost, program: str, *arguments: str, greets: bool) -> None:
        self._process = host.popen(
            [sys.executable, HERE / program, *arguments], stdin=subprocess.PIPE, stderr=2
        )
        if greets:
            assert self._line() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def say(self, line: str) -> Any:
        """Its answer to a line; None if it ended over it."""
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._line()
        return json.loads(answer) if answer else None

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()


def rules(host: PrivateHost) -> str:
    return host.run(["nft", "list", "ruleset"]).stdout


def flush(host: PrivateHost) -> None:
    host.run(["nft", "flush", "ruleset"])


def is_up(host: PrivateHost, device: str) -> bool:
    shown = host.run(["ip", "-j", "link", "show", "dev", device]).stdout
    return "UP" in json.loads(shown)[0]["flags"]


def set_up(host: PrivateHost, device: str) -> None:
    host.run(["ip", "link", "set", "dev", device, "up"])


def is_cut(host: PrivateHost, device: str) -> bool:
    """Both directions, by name, and down. Reads the rules in its own way."""
    text = rules(host)
    hooks = all(
        f'hook {hook} device "{device}" priority -500; policy drop;' in text
        for hook in ("ingress", "egress")
    )
    return hooks and f'"{device}" comment' in text and not is_up(host, device)
