"""What sharing a cluster by the policy of `tasks/tenancy` gives, beside FIFO, gang-FIFO and static partitions.

    python benchmarks/tenancy_simulator.py [--gpus 2048 --tenants 200 --days 2] [--write]

A discrete-event simulation: runs arrive, finish, and give GPUs back at shard boundaries; who gets how many is asked of
`tasks.tenancy.allocate` itself at each arrival and each end. Simplified: a run's work is done at the rate of its workers (no tail at
its last shards), a worker that starts costs `START_S`, a shard `SHARD_COST_S` on top of its work, and only sums of GPUs count, not
nodes. One worker is one GPU.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import sys
import time
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks.core.shares import Resources
from tasks.tenancy import Cluster, Queue, Run, Share, allocate

RESULT = Path(__file__).parent / "results" / "tenancy_simulator.md"
START_S = 5.0
SHARD_COST_S = 1.5
HOUR = 3600.0
ONE = Resources(1, 1)


@dataclass(slots=True)
class Job:
    """A run of the trace, and where it stands."""

    name: str
    tenant: str
    at: float
    shards: int
    shard_s: float
    most: int
    gang: bool = False
    deadline: float | None = None
    left: float = 0.0
    workers: list[float] = field(default_factory=list)
    """When each started: its shards end every `shard_s` after that."""
    leaving: int = 0
    target: int = 0
    since: float = 0.0
    started: float | None = None
    ended: float | None = None
    version: int = 0

    @property
    def length(self) -> float:
        return self.shard_s + SHARD_COST_S

    @property
    def ideal(self) -> float:
        return START_S + self.shards * self.length / self.most

    @property
    def works(self) -> bool:
        return bool(self.workers) and (not self.gang or len(self.workers) == self.most)


class Owed:
    """How long tenants wait for GPUs that are theirs: within their guarantee, asked for, and not there."""

    def __init__(self, guarantee: dict[str, int]) -> None:
        self.guarantee = guarantee
        self.open: dict[str, deque[float]] = defaultdict(deque)
        self.waited: list[float] = []

    def look(self, tenant: str, demand: int, used: int, now: float) -> None:
        queue = self.open[tenant]
        owed = max(0, min(demand, self.guarantee[tenant]) - used)
        while len(queue) < owed:
            queue.append(now)
        while len(queue) > owed:
            waited = now - queue.popleft()
            if waited > 0:
                self.waited.append(waited)


class Simulation:
    """One trace under one policy."""

    def __init__(self, gpus: int, shares: dict[str, Share], jobs: Sequence[Job], *, until: float) -> None:
        self.gpus, self.free, self.shares, self.until = gpus, gpus, shares, until
        self.jobs = [replace(job, left=job.shards * job.length, workers=[]) for job in jobs]
        self.events: list[tuple[float, int, str, Job, int]] = []
        self.count = 0
        self.now = 0.0
        self.used: dict[str, int] = defaultdict(int)
        self.demand: dict[str, int] = defaultdict(int)
        self.owed = Owed({name: int(share.guarantee.gpus) for name, share in shares.items()})
        self.busy = self.wanted = self.lost = self.started_s = 0.0
        self.taken: dict[str, float] = defaultdict(float)
        self.decisions: list[float] = []
        for job in self.jobs:
            self.at(job.at, "arrive", job)

    def at(self, when: float, what: str, job: Job) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what, job, job.version))

    def run(self) -> Simulation:
        while self.events and self.events[0][0] <= self.until:
            when, _, what, job, version = heapq.heappop(self.events)
            self.spend(when)
            if what == "arrive":
                self.demand[job.tenant] += job.most
                self.arrived(job)
            elif what == "end" and version == job.version:
                job.left, job.ended = 0.0, when
                self.demand[job.tenant] -= job.most
                self.give_back(job, len(job.workers))
                self.finished(job)
            elif what == "boundary":
                self.boundary(job)
            elif what == "turn":
                self.turn(job)
                continue
            self.owed.look(job.tenant, self.demand[job.tenant], self.used[job.tenant], when)
        self.spend(self.until)
        return self

    def spend(self, when: float) -> None:
        passed, self.now = when - self.now, when
        self.busy += passed * (self.gpus - self.free)
        self.wanted += passed * min(self.gpus, sum(self.demand.values())) if passed else 0.0
        for tenant, used in self.used.items():
            self.taken[tenant] += passed * used

    def account(self, job: Job) -> None:
        if job.works:
            job.left = max(0.0, job.left - (self.now - job.since) * len(job.workers))
        job.since = self.now

    def resumed(self, job: Job) -> None:
        job.version += 1
        if job.works and job.ended is None:
            self.at(self.now + job.left / len(job.workers), "end", job)

    def grant(self, job: Job, count: int) -> None:
        self.account(job)
        job.workers += [self.now] * count
        self.free -= count
        self.used[job.tenant] += count
        job.left += START_S * count
        self.started_s += START_S * count
        if job.started is None and job.works:
            job.started = self.now
        self.resumed(job)
        self.owed.look(job.tenant, self.demand[job.tenant], self.used[job.tenant], self.now)

    def give_back(self, job: Job, count: int) -> None:
        self.account(job)
        del job.workers[:count]
        self.free += count
        self.used[job.tenant] -= count
        self.resumed(job)

    def turn(self, job: Job) -> None: ...
    def boundary(self, job: Job) -> None: ...
    def arrived(self, job: Job) -> None: ...
    def finished(self, job: Job) -> None: ...


class Fair(Simulation):
    """The policy of `tasks/tenancy`: targets from `allocate`, GPUs back at shard boundaries."""

    cluster: Cluster

    def run(self) -> Simulation:
        self.cluster = Cluster(Resources(self.gpus, self.gpus), ageing_s=600, patience_s=HOUR)
        self.queue = Queue(ageing_s=600)
        self.by_name = {job.name: job for job in self.jobs}
        self.hungry: dict[str, Job] = {}
        self.active: dict[str, Job] = {}
        if self.jobs:
            self.at(self.cluster.turn_s, "turn", self.jobs[0])
        return super().run()

    def arrived(self, job: Job) -> None:
        self.queue.put(
            Run(
                job.name,
                job.tenant,
                ONE,
                job.most,
                least=job.most if job.gang else 1,
                reclaimable=not job.gang,
                since_s=job.at,
            )
        )
        self.decide()

    def finished(self, job: Job) -> None:
        self.queue.remove(job.name)
        self.active.pop(job.name, None)
        self.hungry.pop(job.name, None)
        self.decide()

    def turn(self, job: Job) -> None:
        self.decide()
        self.at(self.now + self.cluster.turn_s, "turn", job)

    def decide(self) -> None:
        began = time.process_time()
        widths = allocate(self.cluster, self.shares, self.queue, self.now).widths
        self.decisions.append(time.process_time() - began)
        for name in [name for name in self.active if name not in widths]:
            self.retarget(self.active.pop(name), 0)
        for name, width in widths.items():
            job = self.by_name[name]
            if job.target != width:
                self.active[name] = job
                self.retarget(job, width)
        self.feed()

    def retarget(self, job: Job, width: int) -> None:
        job.target = width
        if width > len(job.workers):
            self.hungry.setdefault(job.name, job)
        else:
            self.hungry.pop(job.name, None)
        leave = len(job.workers) - width - job.leaving
        if leave > 0 and job.ended is None:
            left = sorted(job.length - (self.now - begun) % job.length for begun in job.workers)
            for wait in left[job.leaving : job.leaving + leave]:
                job.leaving += 1
                self.at(self.now + wait, "boundary", job)

    def boundary(self, job: Job) -> None:
        job.leaving -= 1
        if job.ended is None and len(job.workers) > job.target:
            self.give_back(job, 1)
            self.feed()

    def feed(self) -> None:
        """What is free to those who wait for it, the earliest first."""
        for name, job in list(self.hungry.items()):
            if not self.free:
                return
            need = job.target - len(job.workers)
            if job.gang and need > self.free:
                continue
            self.grant(job, min(need, self.free))
            if job.gang:
                self.queue.put(replace(self.queue.runs[name], width=job.most))
            if len(job.workers) >= job.target:
                del self.hungry[name]


class Fifo(Simulation):
    """Whoever came first takes what is free and keeps it until it ends; a gang gathers GPUs while they come free."""

    gathers = True

    def run(self) -> Simulation:
        self.line: list[tuple[float, str, Job]] = []
        return super().run()

    def arrived(self, job: Job) -> None:
        insort(self.line, (job.at, job.name, job))
        self.feed()

    def finished(self, job: Job) -> None:
        self.line = [entry for entry in self.line if entry[2] is not job]
        self.feed()

    def feed(self) -> None:
        while self.free and self.line:
            job = self.line[0][2]
            need = job.most - len(job.workers)
            if job.gang and need > self.free and not self.gathers:
                return
            self.grant(job, min(need, self.free))
            if len(job.workers) == job.most:
                del self.line[0]


class GangFifo(Fifo):
    """FIFO in which a gang starts with all of its GPUs, and everybody behind it waits until then."""

    gathers = False


class Static(Simulation):
    """Each tenant has its part for itself, and inside it gang-FIFO."""

    def run(self) -> Simulation:
        parts = static_parts(self.gpus, self.shares)
        self.part = dict(parts)
        self.lines: dict[str, list[tuple[float, str, Job]]] = defaultdict(list)
        self.owed.guarantee = parts
        return super().run()

    def arrived(self, job: Job) -> None:
        insort(self.lines[job.tenant], (job.at, job.name, job))
        self.feed(job.tenant)

    def finished(self, job: Job) -> None:
        self.lines[job.tenant] = [entry for entry in self.lines[job.tenant] if entry[2] is not job]
        self.feed(job.tenant)

    def feed(self, tenant: str) -> None:
        line = self.lines[tenant]
        while line:
            job = line[0][2]
            room = self.part[tenant] - self.used[tenant]
            need = job.most - len(job.workers)
            if room <= 0 or (job.gang and need > room):
                return
            self.grant(job, min(need, room))
            if len(job.workers) == job.most:
                del line[0]


def static_parts(gpus: int, shares: dict[str, Share]) -> dict[str, int]:
    total = sum(share.guarantee.gpus for share in shares.values())
    exact = {name: gpus * share.guarantee.gpus / total for name, share in shares.items()}
    parts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: parts[name] - exact[name])[: gpus - sum(parts.values())]:
        parts[name] += 1
    return parts


def make_shares(gpus: int, tenants: int, seed: int) -> dict[str, Share]:
    """Guarantees of a few large and many small tenants, 80 % of the cluster in all; weights as the guarantees."""
    rng = random.Random(seed)
    sizes = [1 / (rank + 3) for rank in range(tenants)]
    rng.shuffle(sizes)
    total = sum(sizes)
    whole = Resources(gpus, gpus)
    shares = {}
    for number, size in enumerate(sizes):
        part = max(1, int(gpus * 0.8 * size / total))
        shares[f"t{number:03d}"] = Share(Resources(part, part), whole, weight=float(part))
    return shares


def make_trace(
    kind: str, gpus: int, shares: dict[str, Share], days: float, seed: int, shard_s: float | None
) -> list[Job]:
    """Arrivals of some days: `realistic`, `bursty` or `adversarial`; the offered load is about 0.9 of the cluster.

    realistic: each tenant by day more than by night, sizes log-normal, every twelfth a gang. bursty: a tenant is silent nine hours of
    ten and sends ten times as much in the tenth. adversarial: one tenant sends the work of a third of the cluster at the very start of
    each day, in the largest runs, beside the others' usual ones.
    """
    rng = random.Random(seed)
    jobs: list[Job] = []
    names = list(shares)
    noisy = max(names, key=lambda name: shares[name].guarantee.gpus)
    total = sum(share.guarantee.gpus for share in shares.values())
    load = 0.6 if kind == "adversarial" else 0.9
    for name in names:
        if kind == "adversarial" and name == noisy:
            continue
        part = int(shares[name].guarantee.gpus)
        budget = load * gpus * days * 24 * HOUR * part / total
        phase = rng.uniform(0, 24 * HOUR)
        while budget > 0:
            when = rng.uniform(0, days * 24 * HOUR)
            if kind == "bursty":
                burst = int(when // (10 * HOUR))
                when = min(
                    days * 24 * HOUR - 1, burst * 10 * HOUR + (phase % (9 * HOUR)) + rng.uniform(0, HOUR)
                )
            elif rng.random() > 0.55 + 0.45 * math.sin((when / HOUR - 7) / 24 * 2 * math.pi):
                continue
            seconds = shard_s or rng.uniform(30, 60)
            gang = rng.random() < 1 / 12
            work = min(40 * HOUR, rng.lognormvariate(math.log(2.0 * HOUR), 1.3)) * (3 if gang else 1)
            most = min(part, rng.choice([2, 4, 8])) if gang else rng.choice([4, 8, 16, 32])
            shards = max(1, round(work / seconds))
            job = Job(
                "", name, when, shards, seconds, min(most, max(1, shards // 2)) if not gang else most, gang
            )
            if rng.random() < 0.3:
                job.deadline = when + 3 * job.ideal + 900
            jobs.append(job)
            budget -= shards * job.length
    if kind == "adversarial":
        for day in range(math.ceil(days)):
            work = 0.33 * gpus * 24 * HOUR * min(1.0, days - day)
            while work > 0:
                seconds = shard_s or rng.uniform(30, 60)
                jobs.append(Job("", noisy, day * 24 * HOUR, round(40 * HOUR / seconds), seconds, 64))
                work -= 40 * HOUR
    jobs.sort(key=lambda job: job.at)
    for number, job in enumerate(jobs):
        job.name = f"r{number:06d}"
    return jobs


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def figures(done: Simulation) -> dict[str, float]:
    """What is told of one simulation."""
    slow: list[float] = []
    waits: dict[str, list[float]] = defaultdict(list)
    speeds: dict[str, list[float]] = defaultdict(list)
    missed = promised = 0
    for job in done.jobs:
        end = job.ended if job.ended is not None else done.until  # at least so slow
        slowdown = max(1.0, (end - job.at) / job.ideal)
        slow.append(slowdown)
        speeds[job.tenant].append(1 / slowdown)
        waits[job.tenant].append((done.until if job.started is None else job.started) - job.at)
        if job.deadline is not None and job.deadline <= done.until:
            promised += 1
            missed += end > job.deadline
    means = [statistics.fmean(values) for values in speeds.values()]
    worst = sorted(quantile(values, 0.95) for values in waits.values())
    return {
        "utilisation": done.busy / done.wanted,
        "reclaim p50, s": quantile(done.owed.waited, 0.5),
        "reclaim p95, s": quantile(done.owed.waited, 0.95),
        "slowdown p50": quantile(slow, 0.5),
        "slowdown p95": quantile(slow, 0.95),
        "wait p95 of the median tenant, s": quantile(worst, 0.5),
        "wait p95 of the worst tenant, s": worst[-1],
        "Jain of speeds": sum(means) ** 2 / (len(means) * sum(value * value for value in means)),
        "deadlines missed, %": 100 * missed / max(1, promised),
        "work lost, GPU-s": done.lost,
        "unfinished": sum(job.ended is None for job in done.jobs),
    }


def entitlements(gpus: int, shares: dict[str, Share]) -> dict[str, float]:
    """What each gets when all ask for everything: its guarantee, and of the rest by weight, by bisection of the level."""
    low, high = 0.0, gpus / min(share.weight for share in shares.values())
    for _ in range(200):
        level = (low + high) / 2
        total = sum(max(share.guarantee.gpus, level * share.weight) for share in shares.values())
        low, high = (level, high) if total < gpus else (low, level)
    return {name: max(share.guarantee.gpus, low * share.weight) for name, share in shares.items()}


def long_run(gpus: int, tenants: int, seed: int) -> dict[str, float]:
    """Everybody asks for everything for four days; how far from its entitlement does each end?"""
    shares = make_shares(gpus, tenants, seed)
    rng = random.Random(seed)
    until = 96 * HOUR
    jobs = []
    for name in shares:
        for number in range(4):
            seconds = rng.uniform(30, 60)
            jobs.append(
                Job(
                    f"{name}.{number}",
                    name,
                    rng.uniform(0, 60),
                    10**7,
                    seconds,
                    int(gpus * rng.uniform(0.3, 1)),
                )
            )
    alone = Fair(gpus, shares, jobs, until=HOUR).run()  # in the first minute not everybody asks yet
    done = Fair(gpus, shares, jobs, until=until).run()
    wanted = entitlements(gpus, shares)
    errors = {
        name: abs((done.taken[name] - alone.taken[name]) / (until - HOUR) - wanted[name]) for name in shares
    }
    return {
        "largest, % of the cluster": 100 * max(errors.values()) / gpus,
        "sum, % of the cluster": 100 * sum(errors.values()) / gpus,
        "largest, % of the tenant's own": 100 * max(errors[name] / wanted[name] for name in shares),
        "mean, % of the tenant's own": 100 * statistics.fmean(errors[name] / wanted[name] for name in shares),
    }


def admission(gpus: int, tenants: int) -> tuple[float, float]:
    """Median and p95 of a decision beside 10,000 waiting runs, in CPU-milliseconds."""
    rng = random.Random(1)
    shares = make_shares(gpus, tenants, 1)
    cluster, queue = Cluster(Resources(gpus, gpus)), Queue()
    names = list(shares)
    for number in range(10_000):
        run = Run(f"r{number}", rng.choice(names), ONE, rng.choice([4, 8, 16]), since_s=rng.uniform(0, 1000))
        queue.put(run)
    taken = []
    for number in range(100):
        began = time.process_time()
        queue.put(Run(f"n{number}", rng.choice(names), ONE, 8, since_s=1000.0 + number))
        allocate(cluster, shares, queue, 1000.0 + number)
        taken.append(1000 * (time.process_time() - began))
    return quantile(taken, 0.5), quantile(taken, 0.95)


def table(rows: dict[str, dict[str, float]]) -> list[str]:
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    return lines + [
        f"| {name} | " + " | ".join(_shown(row[name]) for row in rows.values()) + " |" for name in names
    ]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=2048)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--days", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    asked = parser.parse_args()
    lines = [
        "# Sharing a cluster, simulated",
        "",
        f"`python benchmarks/tenancy_simulator.py --gpus {asked.gpus} --tenants {asked.tenants} --days {asked.days:g} --seed {asked.seed}`.",
        "What the figures mean for choosing quotas: [docs/tenancy.md](../../docs/tenancy.md#what-a-simulation-says).",
    ]
    policies = {"this policy": Fair, "FIFO": Fifo, "gang-FIFO": GangFifo, "static partitions": Static}
    shares = make_shares(asked.gpus, asked.tenants, asked.seed)
    until = asked.days * 24 * HOUR
    for kind in ("realistic", "bursty", "adversarial"):
        jobs = make_trace(kind, asked.gpus, shares, asked.days, asked.seed, None)
        rows = {}
        decisions: list[float] = []
        for name, policy in policies.items():
            began = time.monotonic()
            done = policy(asked.gpus, shares, jobs, until=until).run()
            decisions = decisions or done.decisions
            rows[name] = figures(done)
            print(
                kind,
                name,
                {key: _shown(value) for key, value in rows[name].items()},
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
        told = f"{len(jobs):,} runs, {sum(job.gang for job in jobs):,} of them gangs"
        lines += ["", f"## {kind}: {told}", "", *table(rows)]
        lines += [
            "",
            f"Decisions: {len(decisions):,}, median {1000 * quantile(decisions, 0.5):.1f} CPU-ms, p95 {1000 * quantile(decisions, 0.95):.1f}.",
        ]
    rows = {}
    for seconds in (10, 30, 60, 300, 900):
        small = make_shares(256, 16, asked.seed)
        jobs = make_trace("realistic", 256, small, 1.0, asked.seed, float(seconds))
        done = Fair(256, small, jobs, until=24 * HOUR).run()
        found = figures(done)
        rows[f"{seconds} s"] = {
            "reclaim p50, s": found["reclaim p50, s"],
            "reclaim p95, s": found["reclaim p95, s"],
            "slowdown p95": found["slowdown p95"],
            "goodput, %": 100 * seconds / (seconds + SHARD_COST_S) * (1 - done.started_s / done.busy),
        }
    lines += ["", "## Seconds of work in a shard (256 GPUs, 16 tenants, realistic)", "", *table(rows)]
    rows = {
        f"{gpus} GPUs, {tenants} tenants": long_run(gpus, tenants, 3)
        for gpus, tenants in ((256, 8), (asked.gpus, 20), (asked.gpus, asked.tenants))
    }
    lines += ["", "## Long-run share against entitlement, everybody always asking", "", *table(rows)]
    lines += [
        "",
        "## A decision beside 10,000 waiting runs, CPU-ms",
        "",
        "| | median | p95 |",
        "|---|---|---|",
    ]
    for gpus, tenants in ((64, 8), (256, 32), (1024, 100), (2048, 200), (4096, 200)):
        middle, high = admission(gpus, tenants)
        lines.append(f"| {gpus} GPUs, {tenants} tenants | {middle:.2f} | {high:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if asked.write:
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
