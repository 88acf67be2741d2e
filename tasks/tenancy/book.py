"""Everybody's leases as one who beats knows them: kept from beat to beat, so that only what has changed is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tasks.core.shares import Resources
from tasks.tenancy.policy import Queue, Run

SEEN = (
    *("tenant", "pipeline", "run_id", "gpus", "cpus", "memory_gib", "least", "most"),
    *("reclaimable", "priority", "since_s", "width", "workers"),
)
"""What one attempt sees of another's lease, in the order of a `Book`'s rows. What it has used, or when it ends, decides nothing."""


class Book:
    """The leases of all runs, in the order of the policy.

    Args:
        ageing_s: Of the cluster: it orders the queue, so another one needs another book.
    """

    def __init__(self, rows: Iterable[Sequence[Any]] = (), *, ageing_s: float = 600.0) -> None:
        self.queue = Queue(ageing_s=ageing_s)
        self.ageing_s = ageing_s
        self._held: dict[str, Resources] = {}
        for row in rows:
            self.put(row)

    def __len__(self) -> int:
        return len(self.queue.runs)

    def put(self, row: Sequence[Any]) -> None:
        """Take a lease as it is now, by the columns of `SEEN`."""
        tenant, pipeline, run_id, gpus, cpus, memory_gib, least, most, *rest = row
        reclaimable, priority, since_s, width, workers = rest
        key, each = key_of(tenant, pipeline, run_id), Resources(gpus, cpus, memory_gib)
        self.queue.put(
            Run(key, tenant, each, most, least, width, bool(reclaimable), priority, since_s),
        )
        count = max(width, workers)
        if count:
            self._held[key] = each.times(count)
        else:
            self._held.pop(key, None)

    def remove(self, key: str) -> None:
        """Forget a lease; one that is not there is no error."""
        self.queue.remove(key)
        self._held.pop(key, None)

    def held_beside(self, key: str) -> Resources:
        """What all others hold: what they were granted or still have, whichever is more."""
        total = Resources()
        for other, amount in self._held.items():
            if other != key:
                total = total.plus(amount)
        return total


def key_of(tenant: str, pipeline: str, run_id: str) -> str:
    """The name of a lease in the book."""
    return f"{tenant}/{pipeline}/{run_id}"
