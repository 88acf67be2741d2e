"""Which worker scores which shard next. A plain record of assignments: no Ray, no clock, no threads."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

_LEAST_SAMPLES = 3
_LEAST_LIMIT_S = 5.0
_SHARDS_WORTH_A_WORKER = 2


@dataclass(frozen=True)
class Assignment:
    """What a worker is to do now."""

    shard: int
    then: int | None
    """The shard that it gets next, if nobody runs out of work before: it may read that one's rows already."""
    duplicate: bool = False
    """Whether another worker is at this shard, and slow. The first commit wins (I2)."""


class Dispatch:
    """The shards of a run that are not committed, and who is at work on which.

    Every shard is settled exactly once: by the first answer to it, or by the last worker that it may cost.

    Args:
        shards: Numbers, in the order in which they are handed out.
        attempts: Workers that may die over a shard before it counts as failed.
        slow_factor: A running shard is given to an idle worker too when it has taken this many times the median of
            the finished ones (and 5 s); 0 never does.
    """

    def __init__(self, shards: Iterable[int], *, attempts: int, slow_factor: float) -> None:
        self._waiting = deque(shards)
        self._unsettled = set(self._waiting)
        self._reserved: dict[str, int] = {}
        self._running: dict[str, tuple[int, float]] = {}
        self._deaths: Counter[int] = Counter()
        self._taken_s: list[float] = []
        self._attempts = attempts
        self._slow_factor = slow_factor

    @property
    def unsettled(self) -> int:
        """Shards without an answer yet."""
        return len(self._unsettled)

    def assign(self, worker: str, now_s: float) -> Assignment | None:
        """Give an idle worker its next shard; None when there is nothing for it (it may ask again later)."""
        shard = self._next_for(worker)
        duplicate = False
        if shard is None:
            shard = self._slowest(now_s)
            duplicate = shard is not None
        if shard is None:
            return None
        self._running[worker] = (shard, now_s)
        # A reservation at the end of a run could leave somebody idle: then nobody reads ahead any more.
        if not duplicate and len(self._waiting) >= len(self._running):
            self._reserved[worker] = self._waiting.popleft()
        return Assignment(shard, self._reserved.get(worker), duplicate)

    def settle(self, worker: str, now_s: float) -> int | None:
        """A worker has answered: its shard, or None when another worker's answer to it came first."""
        shard, since_s = self._running.pop(worker)
        self._taken_s.append(now_s - since_s)
        return self._settled_now(shard)

    def lose(self, worker: str, *, counts: bool = True) -> int | None:
        """A worker is gone. Its shards wait again; returns the shard that has now cost as many workers as it may.

        Args:
            worker: Known by any assignment, or not.
            counts: False when the worker's end cannot be the shard's fault: its node was taken away.
        """
        ahead = self._reserved.pop(worker, None)
        if ahead is not None:
            self._waiting.appendleft(ahead)
        if worker not in self._running:
            return None
        shard, _ = self._running.pop(worker)
        if shard not in self._unsettled or self._copies(shard):
            return None
        self._deaths[shard] += counts
        if self._deaths[shard] >= self._attempts:
            return self._settled_now(shard)
        self._waiting.appendleft(shard)
        return None

    def _next_for(self, worker: str) -> int | None:
        if worker in self._reserved:
            return self._reserved.pop(worker)
        if self._waiting:
            return self._waiting.popleft()
        if self._reserved:  # better read again than wait for a worker that is busy with another shard
            return self._reserved.pop(next(reversed(self._reserved)))
        return None

    def _slowest(self, now_s: float) -> int | None:
        if not self._slow_factor or len(self._taken_s) < _LEAST_SAMPLES:
            return None
        limit_s = max(_LEAST_LIMIT_S, self._slow_factor * statistics.median(self._taken_s))
        running = [
            (now_s - since_s, shard)
            for shard, since_s in self._running.values()
            if shard in self._unsettled and self._copies(shard) == 1
        ]
        taken_s, shard = max(running, default=(0.0, None))
        return shard if taken_s > limit_s else None

    def _copies(self, shard: int) -> int:
        return sum(running == shard for running, _ in self._running.values())

    def _settled_now(self, shard: int) -> int | None:
        if shard not in self._unsettled:
            return None
        self._unsettled.remove(shard)
        return shard


def wanted_workers(unsettled: int, *, least: int, most: int) -> int:
    """How many workers a run wants: one for every two shards that are left, between `least` and `most`.

    A worker starts for seconds before it scores anything; for a single shard that is rarely worth it.
    """
    return min(unsettled, max(least, min(most, -(-unsettled // _SHARDS_WORTH_A_WORKER))))
