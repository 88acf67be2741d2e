"""Everybody's leases as one who decides knows them: kept from one decision to the next, so that only what has changed is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tasks.core.shares import Resources
from tasks.tenancy.policy import Queue, Run


class Seen(NamedTuple):
    """What others see of a lease. What it has used, or when it ends, decides nothing."""

    tenant: str
    pipeline: str
    run_id: str
    gpus: float
    """Of one worker, as `cpus` and `memory_gib`."""
    cpus: float
    memory_gib: float
    least: int
    most: int
    reclaimable: bool
    priority: int
    since_s: float
    width: int
    """Workers that it was granted."""
    workers: int
    """Workers that it has or may still have, of those that it was granted."""
    over_since_s: float | None = None
    """Since when that is more than its width."""
    granted: int = 0
    """The number of the decision that gave it its width."""

    @property
    def key(self) -> str:
        return key_of(self.tenant, self.pipeline, self.run_id)

    @property
    def each(self) -> Resources:
        return Resources(self.gpus, self.cpus, self.memory_gib)

    @property
    def holds(self) -> Resources:
        """What nobody else may be given."""
        return self.each.times(max(self.width, self.workers))

    def asks(self) -> Run:
        """The run as the policy sees it."""
        return Run(
            self.key,
            self.tenant,
            self.each,
            self.most,
            self.least,
            self.width,
            bool(self.reclaimable),
            self.priority,
            self.since_s,
        )


SEEN = Seen._fields


class Book:
    """The leases of all runs, in the order of the policy.

    Args:
        ageing_s: Of the cluster: it orders the queue, so another one needs another book.
    """

    def __init__(self, leases: Iterable[Seen] = (), *, ageing_s: float = 600.0) -> None:
        self.queue = Queue(ageing_s=ageing_s)
        self.ageing_s = ageing_s
        self.leases: dict[str, Seen] = {}
        self.holding: set[str] = set()
        """Keys of those that have workers, or were granted some."""
        for lease in leases:
            self.put(lease)

    def __len__(self) -> int:
        return len(self.leases)

    def put(self, lease: Seen) -> None:
        """Take a lease as it is now."""
        key = lease.key
        self.queue.put(lease.asks())
        self.leases[key] = lease
        if lease.width or lease.workers:
            self.holding.add(key)
        else:
            self.holding.discard(key)

    def remove(self, key: str) -> None:
        """Forget a lease; one that is not there is no error."""
        self.queue.remove(key)
        self.leases.pop(key, None)
        self.holding.discard(key)

    def ahead(self, key: str) -> int:
        """How many runs may be granted their first workers before this one, which waits: those of its tenant that are before it, and as
        many of each other tenant."""
        run = self.queue.runs[key]
        mine = (self.queue.rank(run), key)
        waiting = {
            tenant: [one for group in groups.values() for one in group if one[1] not in self.holding]
            for tenant, groups in self.queue.groups.items()
        }
        before = sum(one < mine for one in waiting.get(run.tenant, ()))
        return sum(min(before, len(others)) for others in waiting.values())

    def held(self) -> Resources:
        """What all of them hold: what they were granted or still have, whichever is more."""
        total = Resources()
        for key in sorted(self.holding):
            total = total.plus(self.leases[key].holds)
        return total


def key_of(tenant: str, pipeline: str, run_id: str) -> str:
    """The name of a lease in the book."""
    return f"{tenant}/{pipeline}/{run_id}"
