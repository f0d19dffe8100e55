"""Counts a guest's frames, run by the tests inside a private host.

    sniff.py MAC DEVICE...

For each line on stdin it prints how many frames with that sender reached the devices since the
line before. Ordinary traffic of the host's own on the devices is not counted.
"""

import sys

from frames import listener  # type: ignore[import-not-found] # run as a script, beside it


def main() -> None:
    sender = bytes.fromhex(sys.argv[1].replace(":", ""))
    sockets = [listener(name) for name in sys.argv[2:]]
    for there in sockets:
        there.setblocking(False)
    print("ready", flush=True)
    for _ in sys.stdin:
        count = 0
        for there in sockets:
            while True:
                try:
                    count += there.recv(65536)[6:12] == sender
                except BlockingIOError:
                    break
        print(count, flush=True)


if __name__ == "__main__":
    main()
