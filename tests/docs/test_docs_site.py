"""The book builds as a site, whole, and asks no other host for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from docs_support import ROOT

_FETCHED = re.compile(r"<(?:script|img|iframe)[^>]+src=\"(https?:[^\"]+)|<link[^>]+href=\"(https?:[^\"]+)")


def test_the_site_builds_strictly_with_every_page_and_the_reference_and_needs_no_other_host(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "scripts/site.py", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    site = tmp_path / "site"
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT).with_suffix("")
        built = name.parent if name.name in ("README", "index") else name
        assert (site / built / "index.html").exists(), page
    reference = (site / "docs" / "reference" / "index.html").read_text()
    for called in ("tasks.wiring.score.plan_scoring", "tasks.registry.promotion.promote", "Raises"):
        assert called in reference
    fetched = {
        address
        for html in site.rglob("*.html")
        for found in _FETCHED.findall(html.read_text())
        for address in found
        if address
    }
    assert not fetched
