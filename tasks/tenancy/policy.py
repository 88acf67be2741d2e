"""Who gets how many workers: one pure function over what there is, what is promised and who asks.

The order in which capacity is given out, each time from nothing:

0. Runs that cannot give workers back (gangs of a training) keep what they have until they end.
1. Each tenant gets what it asks for, up to its guarantee.
2. Runs that have waited longer than the cluster's patience get their first workers, the oldest first: of each tenant one gang, and one other
   run if the tenant has nothing.
3. What is left is lent, a worker at a time, to the tenant of the highest priority, and among equals to that with the lowest
   dominant share over weight (weighted dominant-resource fairness), up to its `most`.

Inside a tenant, the run with the fewest workers comes first, then the one with the lowest `rank`: the moment it asked, less
`ageing_s` for each step of priority. As that never changes, a run is overtaken by those of the next
`priority difference x ageing_s` seconds at most, and by none for ever.

A run whose target falls below its width gives workers back when they have finished the shard that they are at, so nothing is lost by
lending. What cannot be given back is lent only out of what nobody is promised.

Source: Ghodsi et al. (2011), "Dominant Resource Fairness: Fair Allocation of Multiple Resource Types".
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import NamedTuple
from zlib import crc32

from tasks.core.shares import ClusterSpec, NodeType, Resources, TenantShare

_SMALL, _TERMS = 4, 7
_SLACK = 1e-6
"""Sums of fractional CPUs and GPUs are no more exact than that."""


@dataclass(frozen=True, slots=True)
class Share:
    """A tenant's share in amounts."""

    guarantee: Resources
    most: Resources
    weight: float = 1.0
    priority: int = 0
    max_runs: int | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to share out."""

    whole: Resources
    nodes: tuple[NodeType, ...] = ()
    ageing_s: float = 600.0
    patience_s: float = 3600.0
    turn_s: float = 900.0
    """So often another tenant is the one that gets the worker which cannot be divided; 0: always the same."""


@dataclass(frozen=True, slots=True)
class Run:
    """Somebody who asks for workers."""

    run_id: str
    tenant: str
    each: Resources
    """Of one worker, which has to be on one node."""
    most: int
    """Workers that it can use now."""
    least: int = 1
    """Fewer are of no use to it. A gang has `least == most`."""
    width: int = 0
    """Workers that it has."""
    reclaimable: bool = True
    """Whether it gives workers back at the next shard boundary."""
    priority: int = 0
    since_s: float = 0.0
    """When it asked first."""

    @property
    def fixed(self) -> bool:
        """Whether it keeps what it has until it ends."""
        return self.width > 0 and not self.reclaimable

    @property
    def asks(self) -> bool:
        """Whether it can use what it needs at least."""
        return self.most >= self.least


class Shape(NamedTuple):
    """What two runs have in common when one fits wherever the other does."""

    each: Resources
    least: int
    reclaimable: bool


class Queue:
    """The runs of all tenants in their order, kept so that one more costs little however many wait."""

    def __init__(self, runs: Iterable[Run] = (), *, ageing_s: float = 600.0) -> None:
        self.runs: dict[str, Run] = {}
        self.groups: dict[str, dict[Shape, list[tuple[float, str]]]] = {}
        """Tenant -> shape -> (rank, run id) in order: those that ask, but for those that keep what they have."""
        self.fixed: dict[str, dict[str, Run]] = {}
        self._ageing_s = ageing_s
        for run in runs:
            self.put(run)

    def rank(self, run: Run) -> float:
        """Runs of a tenant start in ascending order of this."""
        return run.since_s - run.priority * self._ageing_s

    def put(self, run: Run) -> None:
        """Add a run, or take its new state."""
        before = self.runs.get(run.run_id)
        if before is not None:
            same = (before.tenant, before.each, before.least, before.reclaimable, before.fixed, before.asks)
            if same == (run.tenant, run.each, run.least, run.reclaimable, run.fixed, run.asks) and (
                run.fixed or self.rank(before) == self.rank(run)
            ):
                self.runs[run.run_id] = run
                if run.fixed:
                    self.fixed[run.tenant][run.run_id] = run
                return
            self.remove(run.run_id)
        self.runs[run.run_id] = run
        if run.fixed:
            self.fixed.setdefault(run.tenant, {})[run.run_id] = run
            return
        if not run.asks:
            return
        shape = Shape(run.each, run.least, run.reclaimable)
        groups = self.groups.setdefault(run.tenant, {})
        insort(groups.setdefault(shape, []), (self.rank(run), run.run_id))

    def remove(self, run_id: str) -> None:
        """Forget a run; one that is not there is no error."""
        run = self.runs.pop(run_id, None)
        if run is None:
            return
        if run.fixed:
            del self.fixed[run.tenant][run_id]
            return
        if not run.asks:
            return
        groups = self.groups[run.tenant]
        shape = Shape(run.each, run.least, run.reclaimable)
        group = groups[shape]
        del group[bisect_left(group, (self.rank(run), run_id))]
        if not group:
            del groups[shape]
            if not groups:
                del self.groups[run.tenant]

    def copy(self) -> Queue:
        """The same queue, to be changed without this one."""
        other = Queue(ageing_s=self._ageing_s)
        other.runs = dict(self.runs)
        other.groups = {
            tenant: {shape: list(group) for shape, group in groups.items()}
            for tenant, groups in self.groups.items()
        }
        other.fixed = {tenant: dict(runs) for tenant, runs in self.fixed.items()}
        return other


@dataclass(frozen=True)
class Allocation:
    """How many workers each run is to have."""

    widths: Mapping[str, int]
    """Of the runs that are to have any."""
    used: Mapping[str, Resources]
    """By tenant, when every run has its width."""
    left: Resources
    reserved_for: str | None = None
    """The gang that has waited longest beyond patience and does not fit yet: no other gang is begun before it."""

    def width(self, run_id: str) -> int:
        return self.widths.get(run_id, 0)


def allocate(cluster: Cluster, tenants: Mapping[str, Share], queue: Queue, now_s: float) -> Allocation:
    """The width that each run is to have now; the same for the same arguments.

    Args:
        cluster: What there is.
        tenants: The share of each tenant that has one; others are promised nothing and may borrow everything.
        queue: Runs that wait and runs that have workers.
        now_s: By the clock that `since_s` of the runs is from.
    """
    filling = _Filling(cluster, tenants, queue)
    filling.give_guarantees()
    filling.give_patient(now_s - cluster.patience_s)
    filling.lend(int(now_s // cluster.turn_s) if cluster.turn_s else None)
    return Allocation(
        filling.widths,
        {one.name: Resources(*one.used) for one in filling.tenants if any(one.used)},
        Resources(*(max(0.0, amount) for amount in filling.left)),
        filling.reserved_for,
    )


@dataclass(slots=True)
class _Tenant:
    """A tenant while capacity is given out."""

    name: str
    share: Share
    heap: list[tuple[int, float, str]] = field(default_factory=list)
    """(workers given, rank, run): who is next."""
    later: list[tuple[int, float, str]] = field(default_factory=list)
    """Those that did not fit in this round."""
    used: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    fixed: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """The part of `used` that cannot be given back."""
    runs: int = 0
    position: dict[Shape, int] = field(default_factory=dict)
    start: float = 0.0
    """As a part of one worker: what is counted as used already when capacity is lent."""


class _Filling:
    """One allocation under way."""

    def __init__(self, cluster: Cluster, tenants: Mapping[str, Share], queue: Queue) -> None:
        self._queue = queue
        self._per_whole = [1 / there if there else 0.0 for there in cluster.whole]
        self.left = list(cluster.whole)
        self.widths: dict[str, int] = {}
        self.reserved_for: str | None = None
        unknown = Share(Resources(), cluster.whole)
        promised = [sum(share.guarantee[i] for share in tenants.values()) for i in range(3)]
        # After the loss of nodes more may be promised than there is: then everybody is promised less of it.
        self._kept = [
            min(1.0, there / said) if said else 1.0
            for there, said in zip(cluster.whole, promised, strict=True)
        ]
        self._unpromised = [
            max(0.0, there - said) for there, said in zip(cluster.whole, promised, strict=True)
        ]
        self.tenants = [
            _Tenant(name, tenants.get(name, unknown)) for name in sorted({*queue.groups, *queue.fixed})
        ]
        for tenant in self.tenants:
            for run in queue.fixed.get(tenant.name, {}).values():
                self._take(tenant, run, run.width)
                self.widths[run.run_id] = run.width
                tenant.runs += 1
            for shape, group in queue.groups.get(tenant.name, {}).items():
                rank, run_id = group[0]
                tenant.heap.append((0, rank, run_id))
                tenant.position[shape] = 0
            heapify(tenant.heap)

    def give_guarantees(self) -> None:
        """Each tenant what it asks for, within its guarantee."""
        for tenant in self.tenants:
            share = tenant.share
            limit = [
                min(amount * kept, most) + _SLACK
                for amount, kept, most in zip(share.guarantee, self._kept, share.most, strict=True)
            ]
            if any(amount > _SLACK for amount in share.guarantee):
                self._start_alike(tenant, limit)
                while self._give(tenant, limit, promised=True):
                    pass
            self._next_round(tenant)

    def give_patient(self, before: float) -> None:
        """Those whose rank is below `before` and who have nothing yet: their first workers, in the order of ranks.

        Of each tenant one run that shares, if the tenant has nothing at all, and one gang: more would let a tenant with
        many old runs pass its share.
        """
        waiting = [
            (one.heap[0][1], number)
            for number, one in enumerate(self.tenants)
            if one.heap and one.heap[0][0] == 0 and one.heap[0][1] < before
        ]
        heapify(waiting)
        gangs: set[int] = set()
        while waiting:
            _, number = heappop(waiting)
            tenant = self.tenants[number]
            run = self._queue.runs[tenant.heap[0][2]]
            if number in gangs if not run.reclaimable else any(tenant.used):
                tenant.later.append(heappop(tenant.heap))
            else:
                if not run.reclaimable:
                    gangs.add(number)
                self._give_patient(tenant, run)
            if tenant.heap and tenant.heap[0][0] == 0 and tenant.heap[0][1] < before:
                heappush(waiting, (tenant.heap[0][1], number))
        for tenant in self.tenants:
            self._next_round(tenant)

    def _give_patient(self, tenant: _Tenant, run: Run) -> None:
        limit = [amount + _SLACK for amount in tenant.share.most]
        if self._give_first(tenant, run, 0, limit, promised=False):
            return
        own = all(tenant.used[i] + run.each[i] * run.least <= limit[i] for i in range(3))
        if not run.reclaimable and own and self._may_start(tenant) and self.reserved_for is None:
            self.reserved_for = run.run_id  # what others give back would help it
        tenant.later.append(heappop(tenant.heap))

    def lend(self, turn: int | None) -> None:
        """What is left, a worker at a time.

        A tenant whose fair part is 2.4 workers gets 2 or 3. A head start of less than one worker, another one each turn, makes
        that 2.4 in the long run. The starts of a tenant go round by a step: after n turns they are spread more evenly
        than any draw, and what it gets is off by about an n-th, not by the root of it.
        """
        if turn is not None:
            for tenant in self.tenants:
                tenant.start = _start(tenant.name, turn)
        limits = [[amount + _SLACK for amount in one.share.most] for one in self.tenants]
        queue = [
            (-one.share.priority, self._level(one), number)
            for number, one in enumerate(self.tenants)
            if one.heap
        ]
        heapify(queue)
        while queue:
            priority, _, number = queue[0]
            tenant = self.tenants[number]
            if self._give(tenant, limits[number], promised=False):
                heapreplace(queue, (priority, self._level(tenant), number))
            else:
                heappop(queue)

    def _next_round(self, tenant: _Tenant) -> None:
        if tenant.later:
            tenant.heap.extend(tenant.later)
            tenant.later.clear()
            heapify(tenant.heap)

    def _level(self, tenant: _Tenant) -> float:
        (gpus, cpus, memory), used = self._per_whole, tenant.used
        level = max(used[0] * gpus, used[1] * cpus, used[2] * memory)
        if tenant.start and tenant.heap:
            each = self._queue.runs[tenant.heap[0][2]].each
            level += tenant.start * max(each[0] * gpus, each[1] * cpus, each[2] * memory)
        return level / tenant.share.weight

    def _give(self, tenant: _Tenant, limit: Sequence[float], *, promised: bool) -> bool:
        """Give the tenant's next run a worker, or its first ones; False when nothing of it fits any more."""
        while tenant.heap:
            width, _, run_id = tenant.heap[0]
            run = self._queue.runs[run_id]
            if self._give_first(tenant, run, width, limit, promised=promised):
                return True
            if len(tenant.position) == 1 and run.least == 1 and (width or self._may_start(tenant)):
                return False  # all others of the tenant need as much
            tenant.later.append(heappop(tenant.heap))
        return False

    def _give_first(
        self, tenant: _Tenant, run: Run, width: int, limit: Sequence[float], *, promised: bool
    ) -> bool:
        """Give the run at the head of the tenant's heap what it needs next, if that fits."""
        count = run.least if width == 0 else 1
        used, left = tenant.used, self.left
        gpus, cpus, memory = run.each  # no loop: this is asked a thousand times for one decision
        if count > 1:
            gpus, cpus, memory = gpus * count, cpus * count, memory * count
        if (
            (gpus and (gpus > left[0] + _SLACK or used[0] + gpus > limit[0]))
            or (cpus and (cpus > left[1] + _SLACK or used[1] + cpus > limit[1]))
            or (memory and (memory > left[2] + _SLACK or used[2] + memory > limit[2]))
        ):
            return False
        if width == 0:
            if not self._may_start(tenant):
                return False
            if not run.reclaimable and not promised and not self._may_keep(tenant, run):
                return False
            tenant.runs += 1
        if run.reclaimable:
            used[0], used[1], used[2] = used[0] + gpus, used[1] + cpus, used[2] + memory
            left[0], left[1], left[2] = left[0] - gpus, left[1] - cpus, left[2] - memory
        else:
            self._take(tenant, run, count, given=width)
        width += count
        self.widths[run.run_id] = width
        head = tenant.heap[0]
        if width < run.most:
            heapreplace(tenant.heap, (width, head[1], run.run_id))
        else:
            heappop(tenant.heap)
        if width == count:
            self._offer_next(tenant, run)
        return True

    def _may_start(self, tenant: _Tenant) -> bool:
        """Whether the tenant may have one more run with workers."""
        most_runs = tenant.share.max_runs
        return most_runs is None or tenant.runs < most_runs

    def _start_alike(self, tenant: _Tenant, limit: Sequence[float]) -> None:
        """A first worker to each run that fits, when all of the tenant's are of one shape: what one by one would give, sooner."""
        if len(tenant.heap) != 1:
            return
        _, _, first = tenant.heap[0]
        run = self._queue.runs[first]
        each, share = run.each, tenant.share
        if run.least != 1 or not run.reclaimable:
            return
        (shape,) = tenant.position
        group = self._queue.groups[tenant.name][shape]
        room = [min(limit[i] - tenant.used[i], self.left[i] + _SLACK) / each[i] for i in range(3) if each[i]]
        count = min(len(group), int(min(room, default=0.0)))
        if share.max_runs is not None:
            count = min(count, share.max_runs - tenant.runs)
        runs = self._queue.runs
        if count < 2:
            return
        self._take(tenant, run, count)
        tenant.runs += count
        self.widths.update((run_id, 1) for _, run_id in group[:count])
        tenant.heap = [(1, rank, run_id) for rank, run_id in group[:count] if runs[run_id].most > 1]
        tenant.position[shape] = count
        if count < len(group):
            tenant.heap.append((0, *group[count]))
        heapify(tenant.heap)

    def _offer_next(self, tenant: _Tenant, run: Run) -> None:
        """The next run of the same shape may start once this one has."""
        positions = tenant.position
        shape = next(iter(positions)) if len(positions) == 1 else Shape(run.each, run.least, run.reclaimable)
        position = positions[shape] = positions[shape] + 1
        group = self._queue.groups[tenant.name][shape]
        if position < len(group):
            heappush(tenant.heap, (0, *group[position]))

    def _may_keep(self, tenant: _Tenant, run: Run) -> bool:
        """Whether the run may take what it will not give back: no part of it is promised to somebody else."""
        if self.reserved_for not in (None, run.run_id):
            return False
        return all(
            _above(tenant.fixed[i] + run.each[i] * run.least, tenant.share.guarantee[i])
            - _above(tenant.fixed[i], tenant.share.guarantee[i])
            <= self._unpromised[i] + _SLACK
            for i in range(3)
        )

    def _take(self, tenant: _Tenant, run: Run, count: int, *, given: int = 0) -> None:
        for i in (0, 1, 2):
            amount = run.each[i] * count
            if not amount:
                continue
            tenant.used[i] += amount
            self.left[i] -= amount
            if not run.reclaimable and given == 0:
                promised = tenant.share.guarantee[i]
                before = _above(tenant.fixed[i], promised)
                tenant.fixed[i] += amount
                self._unpromised[i] -= _above(tenant.fixed[i], promised) - before


def _start(name: str, turn: int) -> float:
    """A tenant's head start in a turn, 0 to 1: each goes round by a step of its own, so that no two meet in the same order each time."""
    return (crc32(name.encode()) / 2**32 + turn * _step(name)) % 1.0


@lru_cache(maxsize=4096)
def _step(name: str) -> float:
    """The first number drawn for the name whose continued fraction begins with small terms: multiples of it spread evenly.

    Source: Kuipers & Niederreiter (1974), "Uniform Distribution of Sequences", chapter 2.3.
    """
    draws = (crc32(f"{attempt} {name}".encode()) / 2**32 for attempt in count())
    return next(drawn for drawn in draws if all(term <= _SMALL for term in _terms(drawn)))


def _terms(value: float) -> Iterator[int]:
    """The first terms of its continued fraction, value between 0 and 1; one that ends early has a large one."""
    for _ in range(_TERMS):
        if value < 1e-9:
            yield _SMALL + 1
            return
        term = int(1 / value)
        yield term
        value = 1 / value - term


def _above(amount: float, limit: float) -> float:
    return max(0.0, amount - limit)


def cluster_of(spec: ClusterSpec) -> Cluster:
    """The cluster as the policy sees it."""
    return Cluster(spec.resources, spec.nodes, spec.ageing_s, spec.patience_s)


def shares_of(spec: ClusterSpec, tenants: Mapping[str, TenantShare]) -> dict[str, Share]:
    """Every tenant's share in amounts."""
    return {
        name: Share(said.guaranteed(spec), said.most(spec), said.weight, said.priority, said.max_runs)
        for name, said in tenants.items()
    }
