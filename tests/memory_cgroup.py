"""A group of processes whose memory the kernel limits, as that of a container; its OOM killer ends what asks for more."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

_TOP = Path("/sys/fs/cgroup/memory")
WHY_NOT = "needs to make a memory cgroup (version 1): run it as root where /sys/fs/cgroup/memory is mounted"


class MemoryCgroup:
    """Counts what its processes take from when they are put in."""

    def __init__(self, *, mib: int) -> None:
        self._path = _TOP / f"penstock-{uuid.uuid4().hex[:12]}"
        try:
            self._path.mkdir()
            (self._path / "memory.limit_in_bytes").write_text(str(mib << 20))
        except OSError as error:
            pytest.skip(f"{WHY_NOT} ({error})")

    def take(self, pid: int) -> None:
        (self._path / "cgroup.procs").write_text(str(pid))

    @property
    def killed(self) -> int:
        """How many processes the kernel has ended in it."""
        told = dict(line.split() for line in (self._path / "memory.oom_control").read_text().splitlines())
        return int(told["oom_kill"])

    def remove(self) -> None:
        """Once its processes have ended."""
        self._path.rmdir()
