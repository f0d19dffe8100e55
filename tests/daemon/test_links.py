"""Another network namespace is looked at from ours, without the privilege to enter it."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from bootlockd import links

pytestmark = pytest.mark.live

_WITHOUT_SYS_ADMIN = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """A process in a network namespace of its own, with a bridge."""
    script = "ip link add inside type bridge && echo ready && exec cat"
    command = ["unshare", "--net", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def test_links_are_listed_without_entering(elsewhere: int) -> None:
    script = (
        "import sys; from bootlockd import links\n"
        "print(sorted((link.name, link.kind) for link in links.links_of(int(sys.argv[1]))))\n"
    )
    command = [*_WITHOUT_SYS_ADMIN, sys.executable, "-c", script, str(elsewhere)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    found = {(link.name, link.kind) for link in links.links_of(elsewhere)}
    assert done.stdout == f"{sorted(found)}\n", done.stderr
    assert {("lo", ""), ("inside", "bridge")} <= found
    assert "inside" not in links.links()


def test_many_who_look_at_once_agree_on_the_number(elsewhere: int) -> None:
    assert links.namespace_of(elsewhere) is None
    seen: list[set[str]] = []

    def look() -> None:
        seen.append({link.name for link in links.links_of(elsewhere)})

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == len(threads)
    assert all("inside" in names for names in seen)


def test_a_process_that_ended_is_said_to_have_ended(elsewhere: int) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(ProcessLookupError):
        links.links_of(ended.pid)
