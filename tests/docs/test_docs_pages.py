"""Links lead somewhere, files that are named exist, and no page knows the machine it was written on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_support import ROOT, headings, inline_code, names, pages, prose, tracked_text

PAGES = pages()
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_ADDRESS = re.compile(r"^[a-z]+://|^mailto:")
_PATH = re.compile(r"^[\w.\-]+(/[\w.\-]+)+/?$|^[A-Za-z_\-]+\.(md|py|in|txt|toml|yml)$")
_TOP = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
# Put together here, so that this file does not hold what it looks for.
_HOSTS = re.compile(
    "|".join(["pypi" + r"\.org", "python" + "hosted", "download" + r"\.pytorch", "arti" + "factory"])
)
_MACHINE = re.compile(
    "|".join(["/wo" + "rk/", "/ho" + r"me/\w", "/ro" + "ot/", "/opt/" + "pypi", "/Us" + "ers/"])
)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_between_pages_leads_to_a_page_and_a_heading(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page.read_text())):
        if _ADDRESS.match(link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in headings(file)):
            broken.append(link)
    assert broken == []


def test_every_picture_is_shown_by_a_page() -> None:
    shown = {
        (page.parent / link).resolve() for page in PAGES for link in _LINK.findall(prose(page.read_text()))
    }
    assert {path for path in (ROOT / "docs" / "images").iterdir() if path not in shown} == set()


def test_every_page_of_the_book_is_in_its_table_of_contents() -> None:
    contents = (ROOT / "docs" / "index.md").read_text()
    listed = {link.partition("#")[0] for link in _LINK.findall(contents)}
    assert {path.name for path in ROOT.glob("docs/*.md")} - {"index.md"} <= listed
    decisions = (ROOT / "docs" / "adr" / "README.md").read_text()
    assert {path.name for path in ROOT.glob("docs/adr/0*.md")} == set(_LINK.findall(decisions))


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """A name counts when it starts in a folder of the repository; keys of the store and the like do not."""
    missing = []
    for code in inline_code(page.read_text()):
        name = code.partition(":")[0] if "::" not in code else code.partition("::")[0]
        if not _PATH.match(name) or name.split("/")[0] not in _TOP:
            continue
        if name.startswith("pipelines/") and not name.startswith("pipelines/flight_delay"):
            continue  # the reader's own
        if not (ROOT / name).exists():
            missing.append(name)
    assert missing == []


@pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="needs a git checkout, to know which files are tracked"
)
def test_no_tracked_file_knows_the_machine_it_was_written_on_or_a_package_host() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked_text()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if _MACHINE.search(line) or _HOSTS.search(line)
    ]
    assert found == []


def test_a_page_has_one_title_and_no_emoji() -> None:
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall(r"^# ", prose(text), re.M)) == 1, page
        assert not re.search("[\U0001f300-\U0001faff\u2600-\u27bf]", prose(text)), page
