"""What runs hold of the cluster, and what they may hold from now on: one step of the ledger, as a pure function.

Each run with workers beats: it says how many it has and wants, and is told how many it may have. Runs grow only into what is really free,
counting of others what they were granted or still have of it, whichever is more; so the sum never passes the cluster. What a run says
to have without having been granted it counts for nothing, and what it does not give back for `give_back_s`: so a driver that does not
play by the rules keeps from others what it was granted, and no more. Time is the ledger's own: it goes on by what the database's clock went on,
never back, and by a quarter of a lease at the most between two decisions, so that a clock that jumps ends no lease by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any

from tasks.core.records import JsonRecord
from tasks.core.shares import ClusterSpec, Resources, TenantShare
from tasks.tenancy.book import Book, Seen, key_of
from tasks.tenancy.placing import expected_wait_s, never_fits, why_waiting
from tasks.tenancy.policy import Allocation, Run, Share, allocate, cluster_of, shares_of

_LEAST_AMOUNT = 0.01
"""Of a resource: capacity is given out a worker at a time."""


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
    """Workers that it says to have."""
    counted: int
    """Workers that it has or may still have, of those that it was granted."""
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
    def seen(self) -> Seen:
        """What others see of it."""
        own = {name: getattr(self, name) for name in Seen._fields if name in self.__dataclass_fields__}
        return Seen(**{**own, "workers": self.counted})


@dataclass(frozen=True, slots=True)
class Request:
    """What an attempt asks for; of a tenant that may write anything."""

    tenant: str
    pipeline: str
    run_id: str
    gpus: float
    cpus: float
    memory_gib: float
    least: int
    most: int
    reclaimable: bool
    workers: int
    same_attempt: bool
    """Whether the lease that is there is of this attempt."""
    has_heard: bool
    """Whether it has read the width that it has now; before, it may be about to start workers by an earlier one."""

    @property
    def key(self) -> str:
        return key_of(self.tenant, self.pipeline, self.run_id)

    @property
    def sound(self) -> bool:
        """Whether a decision can be made on it: amounts that are finite, and not so small that they cannot be counted out."""
        amounts = (self.gpus, self.cpus, self.memory_gib)
        counted = all(amount == 0 or _LEAST_AMOUNT <= amount < inf for amount in amounts)
        whole = self.least >= 1 and self.most >= 0 and self.workers >= 0
        gang = self.reclaimable or self.least == self.most or self.most == 0
        return counted and whole and gang and (self.gpus > 0 or self.cpus > 0)


@dataclass(frozen=True)
class Decision:
    """What was decided at one moment."""

    found: Allocation
    """What each run is to have when all have given back what is others'."""
    changed: frozenset[str]
    """Keys of the leases that others see otherwise than before."""


def ledger_time(clock_s: float, last: datetime, now: datetime, *, lease_s: float) -> float:
    """The ledger's time at this decision, seconds: see the module."""
    return clock_s + min(max(0.0, (now - last).total_seconds()), lease_s / 4)


def decide(
    spec: ClusterSpec,
    tenants: Mapping[str, TenantShare],
    book: Book,
    asked: Iterable[Request],
    now_s: float,
    number: int = 0,
) -> Decision:
    """Take what is asked and grant what is due, to all runs at once; the book has it afterwards.

    Those that are to have less are told so first, and count with what they had until they have heard it and given it back. Then those
    that are to have more grow into what nobody holds, who has asked first first.

    Args:
        spec: The cluster.
        tenants: Each tenant's share.
        book: Leases of all runs that are alive.
        asked: What new attempts ask for, and attempts that are there in another way than before. One that is not sound is passed over.
        now_s: The ledger's time.
        number: Of this decision, higher than those of all before.
    """
    cluster, shares = cluster_of(spec), shares_of(spec, tenants)
    before: dict[str, Seen | None] = {}

    def put(lease: Seen) -> None:
        before.setdefault(lease.key, book.leases.get(lease.key))
        book.put(lease)

    for request in asked:
        if request.sound:
            put(_taken(spec, tenants, book, request, now_s, number))
    nobody = TenantShare()
    for lease in [
        one for one in book.leases.values() if one.priority != tenants.get(one.tenant, nobody).priority
    ]:
        put(lease._replace(priority=tenants.get(lease.tenant, nobody).priority))
    for lease in [book.leases[key] for key in sorted(book.holding)]:
        put(_given_back(lease, now_s, spec.give_back_s))
    found = allocate(cluster, shares, book.queue, now_s)
    for lease in [book.leases[key] for key in sorted(book.holding)]:
        if found.width(lease.key) < lease.width:
            less = lease._replace(
                width=found.width(lease.key), workers=max(lease.width, lease.workers), granted=number
            )
            put(_given_back(less, now_s, spec.give_back_s))
    grows = [lease for key in found.widths if (lease := book.leases[key]).width < found.width(key)]
    held = book.held()
    for lease in sorted(grows, key=lambda one: (book.queue.rank(one.asks()), one.key)):
        target, has = found.width(lease.key), max(lease.width, lease.workers)
        width = min(target, has + _more(lease.each, held, cluster.whole, target))
        if width >= lease.least and width > lease.width:
            held = held.plus(lease.each.times(max(0, width - has)))
            put(_given_back(lease._replace(width=width, granted=number), now_s, spec.give_back_s))
    changed = frozenset(key for key, had in before.items() if book.leases[key] != had)
    return Decision(found, changed)


def explained(
    spec: ClusterSpec,
    tenants: Mapping[str, TenantShare],
    book: Book,
    key: str,
    now_s: float,
    found: Allocation | None = None,
) -> tuple[str, int]:
    """Why a run without workers has none, in one sentence with the figures, and how many it gets when others have given them back.

    Args:
        found: What was decided on this book at this moment, where that is known.
    """
    cluster, shares = cluster_of(spec), shares_of(spec, tenants)
    found = found or allocate(cluster, shares, book.queue, now_s)
    reason = why_waiting(cluster, shares, book.queue, found, book.queue.runs[key], now_s)
    return reason, found.width(key)


def _taken(
    spec: ClusterSpec,
    tenants: Mapping[str, TenantShare],
    book: Book,
    request: Request,
    now_s: float,
    number: int,
) -> Seen:
    """The lease by what its attempt asks for. What it says to have counts as far as it was granted."""
    had = book.leases.get(request.key)
    each = spec.counted(Resources(request.gpus, request.cpus, request.memory_gib))
    lease = Seen(
        *(request.tenant, request.pipeline, request.run_id, *each),
        least=request.least,
        most=request.most,
        reclaimable=request.reclaimable,
        priority=tenants.get(request.tenant, TenantShare()).priority,
        since_s=had.since_s if had else now_s,
        width=0,
        workers=0,
    )
    if had is not None and request.same_attempt and _no_larger(lease, had):
        kept = had._asdict() | {name: getattr(lease, name) for name in ("gpus", "cpus", "memory_gib", "most")}
        if request.has_heard:
            kept["workers"] = min(request.workers, max(had.width, had.workers))
        return Seen(**kept)
    if had is None and not request.reclaimable and request.workers >= request.least:
        free = _more(each, book.held(), spec.resources, request.least)
        if free >= request.least and refusal(spec, tenants, lease.asks()) is None:
            # a gang has its workers, whatever the ledger lost
            return lease._replace(width=request.least, workers=request.least, granted=number)
    return lease


def _no_larger(lease: Seen, had: Seen) -> bool:
    """Whether what was granted to `had` is enough for as many workers of `lease`."""
    same = (lease.least, lease.reclaimable) == (had.least, bool(had.reclaimable))
    return same and lease.each.within(had.each)


def _given_back(lease: Seen, now_s: float, give_back_s: float) -> Seen:
    """The lease with what it still has of what was taken back, which counts for `give_back_s`."""
    if lease.workers <= lease.width:
        return lease if lease.over_since_s is None else lease._replace(over_since_s=None)
    if lease.over_since_s is None:
        return lease._replace(over_since_s=now_s)
    if now_s - lease.over_since_s <= give_back_s:
        return lease
    return lease._replace(workers=lease.width, over_since_s=None)


def foreseen_s(
    spec: ClusterSpec,
    tenants: Mapping[str, TenantShare],
    book: Book,
    key: str,
    now_s: float,
    ends_in_s: Mapping[str, float],
) -> float | None:
    """When a run that waits will have its first workers, by when the others think to end; None: unknown.

    Args:
        ends_in_s: Of runs with workers, by their keys.
    """
    ends = {other: wait_s for other, wait_s in ends_in_s.items() if other in book.queue.runs}
    if not ends:
        return None
    run = book.queue.runs[key]
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
