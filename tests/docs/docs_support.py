"""The project's pages, and what they say in code."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_INLINE = re.compile(r"`([^`\n]+)`")


def pages() -> list[Path]:
    """README, CHANGELOG and CONTRIBUTING, docs/, and the pages that lie beside what they describe."""
    beside = [*ROOT.glob("great_expectations/*.md"), *ROOT.glob("pipelines/*/README.md")]
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *beside])


def names(paths: list[Path]) -> list[str]:
    """How pytest names them."""
    return [str(path.relative_to(ROOT)) for path in paths]


def fences(text: str) -> list[str]:
    return [match[2] for match in _FENCE.finditer(text)]


def prose(text: str) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", text)


def inline_code(text: str) -> list[str]:
    return _INLINE.findall(prose(text))


def headings(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", prose(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def penstock_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every complete `penstock ...` command line, in blocks and in prose.

    Placeholders stay as they are; a line that ends in `...` is an abbreviation and not complete.
    """
    shown = [line for block in fences(text) for line in block.splitlines()]
    for line in [*shown, *inline_code(text)]:
        command = re.match(
            r"^\s*(?:\$ )?(?:PENSTOCK_\w+=\S+ )?(?:\.penstock/venv/bin/)?penstock\s+(.*)", line
        )
        if command and "..." not in command[1].replace('"..."', ""):
            yield shlex.split(command[1], comments=True)


def tracked_text() -> list[Path]:
    """Every text file that is in the repository or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    paths = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    return [path for path in paths if b"\0" not in path.read_bytes()[:8192]]
