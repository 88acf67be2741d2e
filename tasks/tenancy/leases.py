"""What a run holds of the cluster, and what it may hold from now on: one step of the ledger, as a pure function.

Each run with workers beats: it says how many it has and wants, and is told how many it may have. A run grows only into what is really free,
counting of others what they were granted or still have, whichever is more; so the sum never passes the cluster. Time is the ledger's
own: it goes on by what the database's clock went on, never back, and by a quarter of a lease at the most between two beats, so that a clock
that jumps ends no lease by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tasks.core.records import JsonRecord
from tasks.core.shares import ClusterSpec, Resources, TenantShare
from tasks.tenancy.book import SEEN, Book, key_of
from tasks.tenancy.placing import expected_wait_s, never_fits, why_waiting
from tasks.tenancy.policy import Run, Share, allocate, cluster_of, shares_of


@dataclass(frozen=True)
class Lease(JsonRecord):
    """A run that has workers or waits for some."""

    tenant: str
    pipeline: str
    run_id: str
    kind: str
    """`scoring`, or `training`: a gang."""
    holder: str
    """The attempt that beats for it; a newer attempt of the run takes it over."""
    gpus: float
    """Of one worker, as `cpus` and `memory_gib`."""
    cpus: float
    memory_gib: float
    least: int
    most: int
    """Workers that it wants now."""
    reclaimable: bool
    priority: int
    since_s: float
    beat_s: float
    width: int
    """Workers that it was granted."""
    workers: int
    """Workers that it has."""
    ends_in_s: float | None
    starts_in_s: float | None
    """When it will have its first, if all goes as it looks now; None: not foreseen."""
    reason: str
    """Why it has none, or empty."""
    allocated_s: float
    """Worker-seconds, of which `used_s` went into committed shards and `wasted_s` into attempts that did not commit."""
    used_s: float
    wasted_s: float
    rows: int
    bytes_read: int | None
    """None: begun under an older release, which did not count them."""
    bytes_written: int
    cpu_seconds: float
    gpu_seconds: float
    asked_at_utc: datetime
    beat_at_utc: datetime

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Lease:
        """A lease from a row of the ledger, which has these fields and others."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    @property
    def key(self) -> str:
        return key_of(self.tenant, self.pipeline, self.run_id)

    @property
    def seen(self) -> tuple[Any, ...]:
        """What others see of it, as a `Book` takes it."""
        return tuple([getattr(self, name) for name in SEEN])

    @property
    def waits(self) -> str:
        """Why it has no workers and until when, or empty."""
        if not self.reason:
            return ""
        return f"{self.reason}; {self.expected}"

    @property
    def expected(self) -> str:
        """When it will have its first workers, in words."""
        if self.starts_in_s is None:
            return "start not foreseen"
        return (
            f"expected in about {self.starts_in_s:.0f} s" if self.starts_in_s else "expected within a shard"
        )

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
            least=self.least,
            width=self.width,
            reclaimable=self.reclaimable,
            priority=self.priority,
            since_s=self.since_s,
        )


def ledger_time(clock_s: float, last: datetime, now: datetime, *, lease_s: float) -> float:
    """The ledger's time at this beat, seconds: see the module."""
    return clock_s + min(max(0.0, (now - last).total_seconds()), lease_s / 4)


def beat(
    spec: ClusterSpec, tenants: Mapping[str, TenantShare], book: Book, mine: Lease, now_s: float
) -> Lease:
    """Grant what is due to `mine`; the book has it afterwards.

    Args:
        spec: The cluster.
        tenants: Each tenant's share.
        book: Leases of all runs that are alive; one with the key of `mine` is replaced by it.
        mine: The run that beats, with what it has and wants now, the width that it was granted last, and when it was foreseen to start.
        now_s: The ledger's time.
    """
    cluster, shares = cluster_of(spec), shares_of(spec, tenants)
    book.put(mine.seen)
    found = allocate(cluster, shares, book.queue, now_s)
    target, width = found.width(mine.key), mine.width
    if target <= width:
        width = target
    else:
        held = book.held_beside(mine.key).plus(mine.holds)
        has = max(width, mine.workers)
        width = min(target, has + _more(mine.each, held, cluster.whole, target))
        width = width if width >= mine.least else 0
    reason, wait_s = "", None
    if width == 0 and mine.most:
        run = book.queue.runs[mine.key]
        reason = why_waiting(cluster, shares, book.queue, found, run, now_s)
        wait_s = 0.0 if target else mine.starts_in_s
    mine = replace(mine, width=width, reason=reason, starts_in_s=wait_s)
    book.put(mine.seen)
    return mine


def foreseen_s(
    spec: ClusterSpec,
    tenants: Mapping[str, TenantShare],
    book: Book,
    mine: Lease,
    now_s: float,
    ends_in_s: Mapping[str, float],
) -> float | None:
    """When a run that waits will have its first workers, by when the others think to end; None: unknown.

    Args:
        ends_in_s: Of runs with workers, by their keys.
    """
    ends = {key: wait_s for key, wait_s in ends_in_s.items() if key in book.queue.runs}
    if not ends:
        return None
    run = book.queue.runs[mine.key]
    return expected_wait_s(cluster_of(spec), shares_of(spec, tenants), book.queue, run, now_s, ends)


def refusal(spec: ClusterSpec, tenants: Mapping[str, TenantShare], run: Run) -> str | None:
    """Why the run can never be admitted; None when it can."""
    shares = shares_of(spec, tenants)
    whole = spec.resources
    promised = Resources()
    for share in shares.values():
        promised = promised.plus(share.guarantee)
    return never_fits(cluster_of(spec), shares.get(run.tenant, Share(Resources(), whole)), promised, run)


def _more(each: Resources, held: Resources, whole: Resources, most: int) -> int:
    """Workers that fit into what nobody holds."""
    counts = [
        int((there - taken) / need + 1e-6)
        for need, taken, there in zip(each, held, whole, strict=True)
        if need
    ]
    return max(0, min(counts, default=most))
