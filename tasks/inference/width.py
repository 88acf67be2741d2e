"""How many workers a run may have: asked by the pool, answered by whoever shares out the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol


@dataclass(frozen=True)
class Made:
    """What the shards of an attempt came to."""

    rows: int = 0
    bytes_read: int = 0
    """Of source rows, by the plan."""
    bytes_written: int = 0
    """Of predictions and audit rows."""
    cpu_seconds: float = 0.0
    """Measured in the workers, as `gpu_seconds`."""
    gpu_seconds: float = 0.0
    failed: int = 0
    """Shards that could not be scored."""

    def plus(self, outcome: dict[str, Any]) -> Made:
        """With one more `ShardOutcome`."""
        return Made(
            self.rows + outcome["rows"],
            self.bytes_read + outcome["bytes_read"],
            self.bytes_written + outcome["bytes_written"],
            self.cpu_seconds + outcome["cpu_seconds"],
            self.gpu_seconds + outcome["gpu_seconds"],
            self.failed,
        )

    def less(self) -> Made:
        """With one more shard that could not be scored."""
        return replace(self, failed=self.failed + 1)


@dataclass(frozen=True)
class Demand:
    """What a run has and wants at one moment."""

    workers: int
    wanted: int
    shards_left: int
    ends_in_s: float | None
    """By the rate until now; None before the first shard."""
    allocated_s: float
    """Worker-seconds until now."""
    used_s: float
    """Of these, in shards that were committed or found committed."""
    wasted_s: float
    """Of these, in attempts that came to nothing."""
    made: Made = Made()


class Width(Protocol):
    """Admission of one run. Without one, a run has as many workers as it wants."""

    def allowed(self, demand: Demand, *, boundary: bool) -> int:
        """Workers that the run may have now; called often, `boundary` when a shard has just ended.

        Raises:
            PenstockError: The run may not go on: it is refused, was taken over, or its lease is lost.
        """
        ...

    def leave(self, demand: Demand) -> None:
        """The run has given everything back; never raises."""
        ...


@dataclass
class WorkerTime:
    """Where the time of a run's workers went: in all, in shards that counted, and in work that did not."""

    used_s: float = 0.0
    wasted_s: float = 0.0
    _ended_s: float = 0.0
    _since: dict[str, float] = field(default_factory=dict)
    _busy: dict[str, float] = field(default_factory=dict)

    def begin(self, worker: str, now_s: float) -> None:
        self._since[worker] = now_s

    def work(self, worker: str, now_s: float) -> None:
        """It begins a shard."""
        self._busy[worker] = now_s

    def done(self, worker: str, now_s: float, *, counts: bool) -> None:
        """Its shard has ended, and counts or not."""
        taken = now_s - self._busy.pop(worker, now_s)
        if counts:
            self.used_s += taken
        else:
            self.wasted_s += taken

    def end(self, worker: str, now_s: float) -> None:
        """It is gone; what it was at is wasted."""
        self.done(worker, now_s, counts=False)
        self._ended_s += now_s - self._since.pop(worker, now_s)

    def allocated_s(self, now_s: float) -> float:
        return self._ended_s + sum(now_s - since for since in self._since.values())
