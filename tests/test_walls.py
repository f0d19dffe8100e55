"""Who may import whom: what a fresh interpreter has loaded, and what the source says."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1]
#: The packages of the house, those that exist, by their names.
PACKAGES = {
    path.parent.name: path.parent
    for root in ("lockdb", "daemon", "cli")
    for path in sorted((SOURCES / root).glob("*/__init__.py"))
}
#: What each may import of the others.
MAY_IMPORT = {
    "lockdb": set[str](),
    "bootlockd": {"lockdb"},
    "bootlock": {"lockdb", "bootlockd"},
}
#: What the command may import of the daemon's package, as docs/architecture.md has it: values, what
#: asks libvirt or the registry, a source to read once. None of the daemon's cycle, no fence.
PLAIN = {
    "accessdriver",
    "canary",
    "config",
    "control",
    "digests",
    "errors",
    "fleet",
    "hypervisor",
    "keptdefinition",
    "polkitproof",
    "polkitrules",
    "running",
    "sources",
    "stranger",
    "values",
}
#: What the database's package has no business with.
_OUTSIDE = ("libvirt", "libvirt_qemu", "pyroute2", "urllib3", "requests", "openstack")

_LOADED = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def _loaded_by(package: str) -> set[str]:
    """The names of all modules that importing the whole package loads."""
    command = [sys.executable, "-I", "-c", _LOADED, package]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def _roots(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def _imports(package: Path) -> Iterator[tuple[str, str]]:
    """File and root of everything imported there, however late."""
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if not node.level else []
            else:
                continue
            for name in names:
                yield file.name, name.partition(".")[0]


def test_there_are_walls_to_test() -> None:
    assert {"lockdb", "bootlock"} <= set(PACKAGES) <= set(MAY_IMPORT)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_loads_only_those_below_it(package: str) -> None:
    loaded = _roots(_loaded_by(package))
    assert package in loaded
    assert loaded & set(MAY_IMPORT) <= {package} | MAY_IMPORT[package]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_is_hidden_in_a_function(package: str) -> None:
    ours = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    assert [(file, name) for file, name in _imports(PACKAGES[package]) if name in ours] == []


def _modules_of(package: str, importer: Path) -> Iterator[str]:
    """The modules below ``package`` that are imported there, by their names in it."""
    for file in sorted(importer.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                root, _, below = node.module.partition(".")
                if root == package:
                    names = [alias.name for alias in node.names]
                    yield from [below.partition(".")[0]] if below else names
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    assert alias.name.partition(".")[0] != package, "not seen here: import from it"


def test_the_command_imports_of_the_daemon_what_is_plain_and_the_documentation_says_so() -> None:
    assert set(_modules_of("bootlockd", PACKAGES["bootlock"])) == PLAIN
    page = (SOURCES / "docs/architecture.md").read_text("utf-8")
    (row,) = re.findall(r"^\| `cli/bootlock/` \|.*$", page, re.MULTILINE)
    words = set(re.findall(r"`(\w+)`", row))
    assert words >= PLAIN
    assert {word for word in words - PLAIN if find_spec(f"bootlockd.{word}")} == set()


def test_lockdb_loads_no_libvirt_and_no_network() -> None:
    assert find_spec("libvirt"), "it is installed, and could have been loaded"
    assert _roots(_loaded_by("lockdb")) & set(_OUTSIDE) == set()


def test_lockdb_is_written_with_the_standard_library_and_sqlite_utils_alone() -> None:
    roots = {name for _, name in _imports(PACKAGES["lockdb"])}
    assert roots - sys.stdlib_module_names == {"lockdb", "sqlite_utils"}
    assert roots & {"socket", "ssl", "http", "urllib", "asyncio", "subprocess"} == set()


def test_a_command_that_asks_no_registry_loads_nothing_that_speaks_to_a_network() -> None:
    assert find_spec("urllib3"), "it is installed, and could have been loaded"
    script = "import sys, bootlock.main; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    roots = _roots(set(done.stdout.split()))
    assert "bootlock" in roots
    assert roots & {"urllib3", "requests", "pyroute2", "openstack"} == set()
