"""Run a command and account for every process that it starts: CPU seconds and memory, by sampling."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_SET_CHILD_SUBREAPER = 36
_CPU_SAMPLE_S = 0.05
_MEMORY_SAMPLE_S = 0.5
_PATIENCE_S = 15.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What one command took, with all of its descendants."""

    cpu_s: float
    """Of all processes; of each, up to 0.05 s before its end is missed."""
    wall_s: float
    peak_gb: float
    """Largest sum of proportional set sizes: a page that several processes share counts once."""
    output: str


def measured(command: Sequence[str], env: Mapping[str, str] | None = None) -> Usage:
    """Run `command` to its end, and until the last process that it left behind is gone.

    Orphans are adopted by this process, so that none is overlooked. (The kernel's own sum would miss processes
    whose parent ignores their end, as Ray's node manager does.) Those that do not end by themselves within 15 s are killed.

    Raises:
        RuntimeError: The command failed; its errors are in the message.
    """
    if ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise RuntimeError("cannot adopt orphaned processes: prctl failed")
    started = time.monotonic()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(env) if env else None
    )
    sampler = _Sampler()
    sampler.start()
    try:
        output, errors = child.communicate()
        wall_s = time.monotonic() - started
        _reap()
    finally:
        sampler.over.set()
        sampler.join()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{errors.decode(errors='replace')[-3000:]}")
    return Usage(sum(sampler.ticks.values()) / _TICKS_A_SECOND, wall_s, sampler.peak_gb, output.decode())


def python(*arguments: str) -> list[str]:
    """The command that runs this Python with these arguments."""
    return [sys.executable, *arguments]


@dataclass
class _Sampler(threading.Thread):
    over: threading.Event = field(default_factory=threading.Event)
    ticks: dict[tuple[int, str], int] = field(default_factory=dict)
    """(pid, start time) -> ticks of CPU when last seen."""
    peak_gb: float = 0.0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        memory_at_s = 0.0
        while True:
            found = list(_descendants())
            for pid, start, ticks in found:
                self.ticks[pid, start] = ticks
            if time.monotonic() > memory_at_s:
                memory_at_s = time.monotonic() + _MEMORY_SAMPLE_S
                self.peak_gb = max(self.peak_gb, sum(_proportional_bytes(pid) for pid, _, _ in found) / 1e9)
            if self.over.wait(_CPU_SAMPLE_S):
                return


def _descendants() -> list[tuple[int, str, int]]:
    """(pid, start time, ticks of CPU) of all processes below this one."""
    children: dict[int, list[tuple[int, str, int]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found = (int(entry.name), fields[19], int(fields[11]) + int(fields[12]))
                children.setdefault(int(fields[1]), []).append(found)
    below, waiting = [], [os.getpid()]
    while waiting:
        new = children.get(waiting.pop(), [])
        below += new
        waiting += [pid for pid, _, _ in new]
    return below


def _proportional_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _reap() -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            continue
        if time.monotonic() > deadline:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
        time.sleep(0.05)
