"""A stand-in for a guest's network, run by the tests inside a private host.

    frames.py tap NAME PEER BRIDGE -uuid UUID
    frames.py macvtap NAME PEER LOWER -uuid UUID

It holds the guest's device open as QEMU would, so that the fence finds it by the UUID in its
arguments. For each line with a number of seconds it sends frames of all kinds in all directions
for so long, and prints as JSON which kinds arrived where.
"""

import fcntl
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x2, 0x1000
ETH_P_ALL = 3

GUEST = bytes.fromhex("525400aa0001")
PEER = bytes.fromhex("525400aa0002")
EVERYONE = b"\xff" * 6
MARK = b"bootlock "

KINDS = {
    "arp": ("ffffffffffff", "0806"),
    "ipv4": ("", "0800"),
    "ipv6": ("", "86dd"),
    "ipv6 multicast": ("333300000001", "86dd"),
    "vlan": ("", "8100"),
    "unknown": ("ffffffffffff", "88b5"),
}

# What the header of each kind must look like for nobody to take it for garbage.
_BODIES = {
    "0806": bytes.fromhex("0001080006040001"),
    # Protocol 253, for experiments; the header's checksum is right.
    "0800": bytes.fromhex("450000340000000040fdf5c9c0000201c0000202"),
    "86dd": bytes.fromhex("600000000020fd40fe80")
    + bytes(13)
    + b"\1"
    + b"\xfe\x80"
    + bytes(13)
    + b"\2",
    "8100": bytes.fromhex("0007") + bytes.fromhex("0800"),
    "88b5": b"",
}


def frame(kind: str, sender: bytes, receiver: bytes) -> bytes:
    target, ethertype = KINDS[kind]
    to = bytes.fromhex(target) or receiver
    payload = (MARK + kind.encode() + b";").ljust(32, b"\0")
    return to + sender + bytes.fromhex(ethertype) + _BODIES[ethertype] + payload


def kind_of(data: bytes, sender: bytes) -> str | None:
    if data[6:12] != sender or MARK not in data:
        return None
    return data.split(MARK, 1)[1].split(b";")[0].decode()


def open_tap(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def open_macvtap(name: str) -> int:
    """The character device of a macvtap, which devtmpfs makes."""
    index = int(Path(f"/sys/class/net/{name}/ifindex").read_text())
    (directory,) = Path(f"/sys/class/net/{name}/macvtap").iterdir()
    major, minor = map(int, (directory / "dev").read_text().split(":"))
    node = Path(f"/dev/tap{index}")
    # Nodes are numbered by index, and each network namespace counts for itself.
    assert node.stat().st_rdev == os.makedev(major, minor)
    device = os.open(node, os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"", IFF_TAP | IFF_NO_PI))
    return device


def listener(name: str) -> socket.socket:
    there = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    there.bind((name, ETH_P_ALL))
    return there


def arriving(sources: dict[int, str], until: float) -> Iterator[tuple[str, bytes]]:
    while (left := until - time.monotonic()) > 0:
        for number in select.select(list(sources), [], [], left)[0]:
            try:
                yield sources[number], os.read(number, 65536)
            except OSError:  # the device is down
                time.sleep(0.01)


def exchange(guest: int, others: dict[str, socket.socket], seconds: float) -> dict[str, list[str]]:
    """Send again and again, both ways; which kinds got through, by direction."""
    seen: dict[str, set[str]] = {f"guest to {name}": set() for name in others}
    seen |= {f"{name} to guest": set() for name in others}
    sources = {guest: "guest"} | {there.fileno(): name for name, there in others.items()}
    for number in sources:
        discard_what_waits(number)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for kind in KINDS:
            attempt(lambda kind=kind: os.write(guest, frame(kind, GUEST, PEER)))
            for name, there in others.items():
                sender = PEER[:5] + bytes([len(name)])
                attempt(lambda there=there, k=kind, s=sender: there.send(frame(k, s, GUEST)))
        for where, data in arriving(sources, min(until, time.monotonic() + 0.1)):
            if where != "guest" and (heard := kind_of(data, GUEST)):
                seen[f"guest to {where}"].add(heard)
            for name in others:
                sender = PEER[:5] + bytes([len(name)])
                if where == "guest" and (heard := kind_of(data, sender)):
                    seen[f"{name} to guest"].add(heard)
    return {direction: sorted(kinds) for direction, kinds in seen.items()}


def discard_what_waits(number: int) -> None:
    os.set_blocking(number, False)
    try:
        while os.read(number, 65536):
            pass
    except OSError:
        return


def attempt(send: object) -> None:
    assert callable(send)
    try:
        send()
    except OSError:
        # Cut devices answer EIO, ENOBUFS or ENETDOWN.
        return


def main() -> None:
    how, name, peer, host = sys.argv[1:5]
    guest = open_tap(name) if how == "tap" else open_macvtap(name)
    others = {"peer": listener(peer), "host": listener(host)}
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(exchange(guest, others, float(line))), flush=True)


if __name__ == "__main__":
    main()
