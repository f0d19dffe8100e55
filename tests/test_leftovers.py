"""A run of tests that leaves something behind fails, and says what it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

Run = Callable[[str], subprocess.CompletedProcess[str]]

_TEST = """
import os, subprocess

def wait_for(path):
    while not os.path.exists(path) or not open(path).read():
        pass

def test_it():
    {body}
"""

_CONFTEST = """
import leftovers
from leftovers import pytest_sessionfinish, pytest_sessionstart
leftovers.PATIENCE = 0.5
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run one test with that body, in a process, and namespaces, of its own."""

    def run(body: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "conftest.py").write_text(_CONFTEST)
        (tmp_path / "test_it.py").write_text(_TEST.format(body=body))
        pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return subprocess.run(
            ["unshare", "--net", "--mount", *pytest_here, tmp_path],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_one_that_leaves_nothing_passes(run: Run) -> None:
    done = run("subprocess.run(['true'], check=True)")
    assert done.returncode == 0, done.stdout


def test_a_process_is_named(run: Run, tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    done = run(
        "p = subprocess.Popen(['sleep', '300'], start_new_session=True); "
        f"open({str(noted)!r}, 'w').write(str(p.pid)); "
        "wait_for(f'/proc/{p.pid}/environ')"
    )
    pid = noted.read_text()
    os.kill(int(pid), signal.SIGKILL)
    assert done.returncode == 1
    assert f"process {pid}: sleep 300" in done.stdout


def test_so_is_one_in_a_pid_namespace_that_changed_its_environment(
    run: Run, tmp_path: Path
) -> None:
    inside = f"echo >{tmp_path / 'ready'}; exec sleep 301"
    done = run(
        "subprocess.Popen(['unshare', '--pid', '--fork', '--kill-child', '--mount-proc', "
        f"'sh', '-c', 'env -i sh -c \"{inside}\"; :'], stdout=subprocess.DEVNULL); "
        f"wait_for({str(tmp_path / 'ready')!r})"
    )
    named = [line for line in done.stdout.splitlines() if line.startswith("process ")]
    for line in named:
        subprocess.run(["kill", "-KILL", line.split()[1].rstrip(":")], check=False)
    assert done.returncode == 1
    assert any(line.endswith((": sleep 301", inside)) for line in named)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("subprocess.run('ip link add left0 type veth'.split(), check=True)", "link: left0"),
        ("subprocess.run('mount -t tmpfs left /mnt'.split(), check=True)", "mount: /mnt"),
        ("subprocess.run('nft add table ip left'.split(), check=True)", "nftables table: ip left"),
    ],
)
def test_what_is_no_process_is_named_too(run: Run, body: str, named: str) -> None:
    done = run(body)
    assert done.returncode == 1
    assert named in done.stdout.splitlines()
