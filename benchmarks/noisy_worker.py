"""How much of a quiet worker's speed is left beside one that starts more threads than its CPUs, on one Ray node.

    python benchmarks/noisy_worker.py [--threads 8 --seconds 5 --rounds 5] [--write]

Two Ray actors of one CPU each: the quiet one takes SHA-256 in one thread, the noisy one in many. As Ray leaves them, pinned to a core each,
and with a share of their own (`tasks.core.cpu_share`), in turn. Other work on the machine slows all of them; ratios are what counts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import threading
import time
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray

from tasks.core.cpu_share import take_own_share

RESULT = Path(__file__).parent / "results" / "noisy_worker.md"
BLOCK = b"x" * (1 << 20)
HOWS = ("as Ray leaves them", "pinned to a core each", "a share of their own")


class Worker:
    """Works in some threads until it is told to stop, or for some seconds."""

    def __init__(self, how: str, core: int) -> None:
        self.over = threading.Event()
        if how == HOWS[1]:
            os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})
        elif how == HOWS[2] and not take_own_share():
            raise RuntimeError("this machine does not divide CPUs between sessions")

    def start(self, threads: int) -> None:
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while not self.over.is_set():
            hashlib.sha256(BLOCK).digest()

    def speed(self, seconds: float) -> float:
        """MiB a second in one thread."""
        began, blocks = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            hashlib.sha256(BLOCK).digest()
            blocks += 1
        return blocks / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    asked = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    found: dict[str, list[tuple[float, float]]] = {how: [] for how in HOWS}
    for _ in range(asked.rounds):
        for how in HOWS:
            found[how].append(one(how, asked.threads, asked.seconds))
    ray.shutdown()
    rows = [
        f"| {how} | {statistics.median(alone for alone, _ in pairs):,.0f} | {statistics.median(beside for _, beside in pairs):,.0f} "
        f"| {statistics.median(beside / alone for alone, beside in pairs):.2f} |"
        for how, pairs in found.items()
    ]
    lines = [
        "# A quiet worker beside a noisy one",
        "",
        f"`python benchmarks/noisy_worker.py --threads {asked.threads} --seconds {asked.seconds:g} --rounds {asked.rounds}`, {os.cpu_count()} cores. MiB a second of the quiet",
        f"worker, medians: alone, and beside one with {asked.threads} threads.",
        "",
        "| | alone | beside the noisy one | left of its speed |",
        "|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if asked.write:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def one(how: str, threads: int, seconds: float) -> tuple[float, float]:
    """The quiet worker's speed alone and beside the noisy one."""
    actor = ray.remote(num_cpus=1)(Worker)
    noisy, quiet = actor.remote(how, 0), actor.remote(how, 1)
    alone = ray.get(quiet.speed.remote(seconds))
    ray.get(noisy.start.remote(threads))
    beside = ray.get(quiet.speed.remote(seconds))
    for worker in (noisy, quiet):
        ray.kill(worker)
    return alone, beside


if __name__ == "__main__":
    main()
