"""A real file system of a few megabytes, to fill up or to make read-only; root only, because it is mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

WHY_NOT = "needs to mount a tmpfs: run it as root, in a container with CAP_SYS_ADMIN"


class SmallDisk:
    """A tmpfs at `path`."""

    def __init__(self, path: Path, *, kib: int) -> None:
        self.path = path
        path.mkdir(parents=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(path)],
            check=False,
            capture_output=True,
        )
        if done.returncode:
            pytest.skip(f"{WHY_NOT} ({done.stderr.decode().strip()})")

    def fill(self, *, leave_kib: int = 0) -> None:
        """Leave this much space."""
        free = os.statvfs(self.path)
        size = max(0, free.f_bavail * free.f_frsize - leave_kib * 1024)
        (self.path / "ballast").write_bytes(b"\0" * size)

    def make_space(self) -> None:
        (self.path / "ballast").unlink()

    def read_only(self, yes: bool) -> None:
        """Root, too, may not write to what is mounted read-only."""
        subprocess.run(
            ["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(self.path)],
            check=True,
            capture_output=True,
        )

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """4 MiB."""
    if os.geteuid() != 0:
        pytest.skip(WHY_NOT)
    disk = SmallDisk(tmp_path / "disk", kib=4096)
    yield disk
    disk.unmount()
