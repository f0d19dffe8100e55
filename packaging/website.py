"""Builds the documentation as a site, which needs no server and no network to be read.

    website.py DIRECTORY

The pages are those of docs/, in the order and under the headings of docs/index.md: that list is the
navigation, and a page that is missing from it fails the build, as does a link that leads nowhere.
To them come the changelog and the manual, which is what `bootlock --help` says.
The same sources and the same tools give the same bytes.

Sphinx with MyST, because MyST reads the Markdown that a repository's browser shows (CommonMark, the
same anchors), and because a page's links and the search work where the files are simply opened.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import manual
from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[1]

_SETTINGS = {
    "project": "bootlock",
    "extensions": "myst_parser",
    # All depths: the same that links in a repository can lead to.
    "myst_heading_anchors": "6",
    # They would make a dash of an option's two hyphens.
    "smartquotes": "0",
    "html_theme": "furo",
    "html_title": "bootlock",
    "html_copy_source": "0",
    "html_show_sphinx": "0",
}


def main(directory: Path) -> int:
    """Build the site in place of the one in ``directory``; 0 if there is nothing to say."""
    if directory.exists() and any(directory.iterdir()) and not (directory / "objects.inv").exists():
        sys.exit(f"{directory} has something else in it than a site, which would be lost")
    with tempfile.TemporaryDirectory(prefix="bootlock-site-") as name:
        # Beside the pages lie the files of the tree that they link to, in their places.
        tree = Path(name) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=_not_ours)
        pages = tree / "docs"
        _add_changelog(pages)
        _add_manual(pages)
        _add_navigation(pages / "index.md")
        shutil.rmtree(directory, ignore_errors=True)
        settings = [word for key, value in _SETTINGS.items() for word in ("-D", f"{key}={value}")]
        strict = ["--fail-on-warning", "--keep-going", "--nitpicky"]
        options = ["--quiet", "--isolated", *strict, *settings, "-d", f"{name}/doctrees"]
        status = build_main([*options, str(pages), str(directory)])
    # Of use to a later build only, and there is none.
    (directory / ".buildinfo").unlink(missing_ok=True)
    return status


def _not_ours(directory: str, names: list[str]) -> set[str]:
    made = {"build", "dist", "__pycache__"} if Path(directory) == ROOT else {"__pycache__"}
    return {name for name in names if name in made or name.startswith(".")}


def _add_changelog(pages: Path) -> None:
    """As a page of the site, one directory below where it is: so are links from it and to it."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    (pages / "changelog.md").write_text(text.replace("](docs/", "]("), "utf-8")
    for page in pages.rglob("*.md"):
        linked = re.sub(
            r"(\]\([./]*)\.\./CHANGELOG\.md", r"\1changelog.md", page.read_text("utf-8")
        )
        page.write_text(linked, "utf-8")


def _add_manual(pages: Path) -> None:
    """The manual's pages; that on the settings is a page of docs/ already."""
    (pages / "manual").mkdir()
    with tempfile.TemporaryDirectory(prefix="bootlock-manual-") as name:
        manual.main(Path(name))
        for page in ("bootlock.1", "bootlockd.8"):
            shown = ["mandoc", "-T", "markdown", f"{name}/{page}"]
            said = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
            # Without the lines that head and end a printed page, and one depth below our heading.
            body = re.sub(r"^#", "##", "\n".join(said.splitlines()[1:-1]), flags=re.MULTILINE)
            title, section = page.rsplit(".", 1)
            (pages / f"manual/{page}.md").write_text(f"# {title}({section})\n{body}\n", "utf-8")


def _add_navigation(index: Path) -> None:
    """Makes each list of links below a heading of the index a part of the navigation."""
    text = index.read_text("utf-8")
    text += "\n## The manual\n\n"
    text += "- [bootlock(1)](manual/bootlock.1.md)\n- [bootlockd(8)](manual/bootlockd.8.md)\n"
    sections = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    for heading, body in zip(sections[1::2], sections[2::2], strict=True):
        links = re.findall(r"^- \[(.+?)\]\(([^)#]+)\.md\)", body, re.MULTILINE)
        entries = "".join(f"{name} <{page}>\n" for name, page in links)
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}```\n"
    index.write_text(text, "utf-8")


if __name__ == "__main__":
    # No page shows when it was built; this is for what Sphinx would note all the same.
    os.environ["SOURCE_DATE_EPOCH"] = "0"
    sys.exit(main(Path(sys.argv[1])))
