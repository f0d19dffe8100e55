"""The documentation as a site: whole, the same each time, and in need of nobody's network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def build(tree: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, tree / "packaging/website.py", site],
        capture_output=True,
        text=True,
        check=False,
    )


def contents(site: Path) -> dict[str, bytes]:
    files = (path for path in site.rglob("*") if path.is_file())
    return {str(path.relative_to(site)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    done = build(ROOT, site)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return site


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the site is built from, to be changed."""
    tree = tmp_path_factory.mktemp("tree")
    for part in ("docs", "packaging", "benchmarks"):
        shutil.copytree(ROOT / part, tree / part)
    shutil.copy(ROOT / "CHANGELOG.md", tree)
    return tree


def test_it_has_every_page_the_changelog_and_the_manual(site: Path) -> None:
    found = (path.relative_to(ROOT / "docs") for path in ROOT.glob("docs/**/*.md"))
    pages = {str(path.with_suffix("")) for path in found}
    assert len(pages) > 20
    index = (site / "index.html").read_text("utf-8")
    for page in pages - {"index"} | {"changelog", "manual/bootlock.1", "manual/bootlockd.8"}:
        assert (site / f"{page}.html").is_file(), page
        assert f'href="{page}.html"' in index, page
    assert "--on-running" in (site / "manual/bootlock.1.html").read_text("utf-8")
    assert 'action="search.html"' in index


def test_nothing_that_it_shows_comes_from_elsewhere(site: Path) -> None:
    loaded = r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="([^"]+)'
    for page in site.rglob("*.html"):
        for source in re.findall(loaded, page.read_text("utf-8")):
            assert not re.match(r"\w+:|//", source), (page.name, source)
            assert (page.parent / source.partition("?")[0].partition("#")[0]).exists(), source
    for style in site.rglob("*.css"):
        said = style.read_text("utf-8")
        assert not re.search(r"@import|url\(\s*[\"']?(?:\w+:)?//", said), style.name


def test_the_same_sources_give_the_same_bytes(site: Path, tree: Path, tmp_path: Path) -> None:
    assert build(tree, tmp_path / "again").returncode == 0
    again, first = contents(tmp_path / "again"), contents(site)
    assert again.keys() == first.keys()
    assert [name for name in first if again[name] != first[name]] == []


def test_a_lost_link_or_page_fails_the_build_and_is_named(tree: Path, tmp_path: Path) -> None:
    lost = ["daemon.md#nowhere", "nothing.md", "../nothing.txt"]
    with (tree / "docs/faq.md").open("a", encoding="utf-8") as page:
        page.write("".join(f"\n[lost]({link})\n" for link in lost))
    (tree / "docs/forgotten.md").write_text("# Forgotten\n", "utf-8")
    done = build(tree, tmp_path)
    assert done.returncode != 0
    for name in ("nowhere", "nothing.md", "nothing.txt", "forgotten.md"):
        assert name in done.stderr
