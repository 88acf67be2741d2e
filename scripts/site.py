"""Build the book as a site (`make docs`): pages are laid out as they lie in the repository, so that their links hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / ".penstock" / "site-pages"
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def lay_out() -> None:
    """Copy every tracked page, and every tracked file that a page links to, below `PAGES`."""
    shutil.rmtree(PAGES, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    tracked = {ROOT / line for line in listed.stdout.splitlines()}
    pages = {path for path in tracked if path.suffix == ".md"}
    linked = {
        (page.parent / link).resolve()
        for page in pages
        for link in _LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link
    }
    for path in pages | (linked & tracked):
        target = PAGES / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def on_config(config: Any) -> Any:
    """Hook of MkDocs: a folder in `nav` stands for the pages in it, README.md first."""
    config["nav"] = _expanded(config["nav"])
    return config


def _expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(inner) for title, inner in entry.items()}
    if isinstance(entry, list):
        return [_expanded(inner) for inner in entry]
    if not entry.endswith("/"):
        return entry
    found = (path.relative_to(PAGES) for path in (PAGES / entry).rglob("*.md"))
    return [str(path) for path in sorted(found, key=lambda path: (path.name != "README.md", path))]


def main() -> int:
    lay_out()
    os.environ["NO_MKDOCS_2_WARNING"] = "1"  # an announcement of the theme, in every build
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
