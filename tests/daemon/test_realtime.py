"""Real-time priority: whoever needs it has it, nobody else, and nobody is allowed to take it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.live

#: As systemd does it: given before the process begins, which may not take it itself.
_STARTED_WITH_IT = (
    *("chrt", "--rr", "5", "setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"),
)
_HEAD = """
import os, subprocess, sys, threading
from bootlockd import realtime

def policy(of=0):
    return {os.SCHED_OTHER: "ordinary", os.SCHED_RR: "real-time"}[os.sched_getscheduler(of)]

def thread(make):
    seen = []
    made = threading.Thread(target=lambda: seen.append(policy()))
    make(made.start)
    made.join()
    return seen[0]

def process():
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
"""


def _run(script: str, *before: str) -> list[str]:
    command = [*before, sys.executable, "-c", _HEAD + script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_it_is_kept_for_what_is_made_with_it_and_given_up_elsewhere() -> None:
    script = """
realtime.keep()
print(policy(), thread(lambda start: start()), thread(realtime.make))
"""
    assert _run(script, *_STARTED_WITH_IT) == ["ordinary", "ordinary", "real-time"]


def test_a_process_that_died_comes_back_with_it() -> None:
    script = """
realtime.keep()
for _ in range(2):
    made = realtime.make(process)
    print(policy(made.pid))
    made.kill(); made.wait()
made = process()
print(policy(made.pid))
made.kill(); made.wait()
"""
    assert _run(script, *_STARTED_WITH_IT) == ["real-time", "real-time", "ordinary"]


def test_who_was_not_started_with_it_takes_it() -> None:
    script = """
realtime.keep()
def hurry():
    realtime.take()
    print(policy())
made = threading.Thread(target=hurry)
realtime.make(made.start)
made.join()
print(policy())
"""
    assert _run(script) == ["real-time", "ordinary"]


def test_who_may_not_take_it_is_told() -> None:
    script = """
realtime.keep()
try: realtime.take()
except PermissionError: print("refused")
"""
    assert _run(script, *_STARTED_WITH_IT[3:]) == ["refused"]


def test_what_cannot_be_made_is_said_to_who_asked_for_it() -> None:
    script = """
realtime.keep()
try: realtime.make(lambda: subprocess.Popen(["/nonexistent"]))
except FileNotFoundError: print("no such program")
"""
    assert _run(script, *_STARTED_WITH_IT) == ["no", "such", "program"]


def test_the_watch_of_processes_begins_with_it_and_is_ordinary_but_for_its_threads() -> None:
    script = """
from pathlib import Path
from bootlockd.watchprocess import WatchProcess
realtime.keep()
watch = WatchProcess(Path("/nonexistent"), True, lambda _: None, lambda: None)
for _ in range(2):
    watch.start()
    watch.prove()
    pid = watch._process.pid
    threads = map(int, os.listdir(f"/proc/{pid}/task"))
    print(policy(pid), list(map(policy, threads)).count("real-time"))
    watch.stop()
"""
    assert _run(script, *_STARTED_WITH_IT) == ["ordinary", "4", "ordinary", "4"]
