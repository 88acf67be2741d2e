"""Resolve `requirements*.in` into full locks (`make lock`). No index address or build tag ends up in them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lock(source: str, target: str) -> None:
    """Write `target` from `source`; versions in an existing `target` are kept where they still fit."""
    path = ROOT / target
    subprocess.run(
        [
            *(sys.executable, "-m", "piptools", "compile", "--quiet", "--no-strip-extras", "--allow-unsafe"),
            *("--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--no-header"),
            *("--output-file", target, source),
        ],
        cwd=ROOT,
        check=True,
    )
    text = re.sub(r"(?m)^(torch==[\d.]+)\+\w+", r"\1", path.read_text())
    path.write_text(f"# Made from {source} by `make lock`. Do not edit.\n{text}")


if __name__ == "__main__":
    lock("requirements.in", "requirements.txt")
    lock("requirements-dev.in", "requirements-dev.txt")
    lock("requirements-s3.in", "requirements-s3.txt")
