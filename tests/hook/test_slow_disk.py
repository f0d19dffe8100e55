"""While a writer waits for a disk that is slow to sync, others' guests start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hookrunner import Answer, Hook, domain_xml
from samples import FREE, HELD, OTHER

# To empty the log takes two syncs, longer than the two seconds for which the hook waits for a lock.
_SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
static int after_a_while(const char *name, int fd) {
    usleep(1500000);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fsync(int fd) { return after_a_while("fsync", fd); }
int fdatasync(int fd) { return after_a_while("fdatasync", fd); }
"""

_PLACE = """
import sys
from pathlib import Path
from lockdb import database, holds
from lockdb.values import NewHold

with database.open_db(Path(sys.argv[1])) as lock_db:
    holds.place(lock_db, NewHold(sys.argv[2], "unpaid", "tester"), now=1)
"""

Slowly = tuple[str, ...]


@pytest.fixture
def slowly(tmp_path: Path) -> Slowly:
    """Runs a command for which every sync takes long."""
    library = tmp_path / "slow.so"
    compiler = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(library), "-", "-ldl"]
    subprocess.run(compiler, input=_SLOW, text=True, check=True)
    return ("/usr/bin/env", f"LD_PRELOAD={library}")


def _refuse(hook: Hook, slowly: Slowly) -> None:
    assert "[hold " in hook.run(domain_xml(HELD), wrapper=slowly).line


def _place(hook: Hook, slowly: Slowly) -> None:
    command = [*slowly, sys.executable, "-c", _PLACE, str(hook.database), OTHER]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("write", [_refuse, _place], ids=["refused", "placed"])
def test_nobody_waits_for_anothers_sync(
    hook: Hook, slowly: Slowly, write: Callable[[Hook, Slowly], None]
) -> None:
    """Neither while it writes nor while it closes the database as the last."""
    answers = set()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, hook, slowly)
        while not writing.done():
            answers.add(hook.run(domain_xml(FREE)))
        writing.result()
    assert answers == {Answer(0, b"", b"")}
