"""Resolve `requirements*.in` into full locks with hashes (`make lock`). No index address or build tag ends up in them.

`requirements.txt` names every package of an installation, torch included, and any installer can read it. What `make` and the
image install first is `requirements-hashes.txt`: the same without torch, each with the digests of its files. One version of
torch comes as several builds with needs of their own, and which one an installation takes is its choice.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HASHES = "requirements-hashes.txt"
UNHASHED = {"torch"}
_PIN = re.compile(r"^([A-Za-z0-9._-]+)((?:\[[^]]*\])?==\S+)\n", re.M)
_ENTRY = re.compile(
    r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==\S+ \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)


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


def hashes_of(target: str) -> dict[str, str]:
    """By package of a lock: lines of `--hash` with the digests of all its files, of every platform, as the index states them."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps", "--generate-hashes"),
            *("--no-annotate", "--no-header", "--no-strip-extras", target),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(_ENTRY.findall(done.stdout))


def pin_hashes(target: str) -> None:
    """Write the digests beside each version of a lock."""
    path, found = ROOT / target, hashes_of(target)
    path.write_text(_PIN.sub(lambda pin: _hashed(pin, found), path.read_text()))


def write_hashes(source: str, target: str) -> None:
    """Write `target`: every package of the lock `source` but `UNHASHED`, with its digests."""
    found = hashes_of(source)
    pins = _PIN.finditer((ROOT / source).read_text())
    head = f"# Made from {source} by `make lock`: all but {', '.join(UNHASHED)}. Do not edit.\n"
    (ROOT / target).write_text(head + "".join(_hashed(pin, found) for pin in pins if pin[1] not in UNHASHED))


def _hashed(pin: re.Match[str], found: dict[str, str]) -> str:
    return f"{pin[1]}{pin[2]} \\\n{found[pin[1]]}"


if __name__ == "__main__":
    lock("requirements.in", "requirements.txt")
    write_hashes("requirements.txt", HASHES)
    for source, target in (
        ("requirements-dev.in", "requirements-dev.txt"),
        ("requirements-s3.in", "requirements-s3.txt"),
    ):
        lock(source, target)
        pin_hashes(target)
