"""Whether a run can ever get what it asks for, and why one that could has to wait."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from tasks.core.shares import Resources
from tasks.tenancy.policy import Allocation, Cluster, Queue, Run, Share, allocate

_FORECAST_STEPS = 200


def never_fits(cluster: Cluster, share: Share, promised: Resources, run: Run) -> str | None:
    """Why no amount of waiting would give the run its first workers: the limit and the figure; None when it would.

    Args:
        cluster: What there is.
        share: Of the run's tenant.
        promised: Sum of all tenants' guarantees.
        run: Who asks.
    """
    if cluster.nodes:
        places = sum(
            _workers_on(Resources(n.gpus, n.cpus, n.memory_gib), run) * n.count for n in cluster.nodes
        )
        if places < run.least:
            largest = max(cluster.nodes, key=lambda n: (n.gpus, n.cpus, n.memory_gib))
            shown = Resources(largest.gpus, largest.cpus, largest.memory_gib).shown()
            if places == 0:
                return f"a worker needs {run.each.shown()} on one node; the largest node has {shown}"
            return (
                f"it needs {run.least} workers at once with {run.each.shown()} each on one node; "
                f"the nodes have room for {places}"
            )
    need = run.each.times(run.least)
    at_once = (
        f"{run.least} workers at once need {need.shown()}" if run.least > 1 else f"it needs {need.shown()}"
    )
    if not need.within(cluster.whole):
        return f"{at_once}; the cluster has {cluster.whole.shown()}"
    if not need.within(share.most):
        return f"{at_once}; the tenant may have {share.most.shown()} (share.guarantee + share.borrow)"
    if not run.reclaimable:
        rest = Resources(
            *(
                min(most, own + max(0.0, there - all_))
                for most, own, there, all_ in zip(
                    share.most, share.guarantee, cluster.whole, promised, strict=True
                )
            )
        )
        if not need.within(rest):
            return (
                f"{at_once}, and keeps it until it ends; the tenant's guarantee and what is promised to nobody "
                f"come to {rest.shown()}"
            )
    return None


def _workers_on(node: Resources, run: Run) -> int:
    counts = [int(there / need + 1e-9) for there, need in zip(node, run.each, strict=True) if need]
    return min(counts, default=run.least)


def why_waiting(
    cluster: Cluster, tenants: Mapping[str, Share], queue: Queue, found: Allocation, run: Run, now_s: float
) -> str:
    """Why a run without workers has none, in one sentence with the figures."""
    share = tenants.get(run.tenant, Share(Resources(), cluster.whole))
    target = found.width(run.run_id)
    if target:
        return f"gets {target} worker{'' if target == 1 else 's'} as soon as others have finished the shards they are at"
    need = run.each.times(run.least)
    used = found.used.get(run.tenant, Resources())
    busy = sum(width > 0 and queue.runs[other].tenant == run.tenant for other, width in found.widths.items())
    if share.max_runs is not None and busy >= share.max_runs:
        return f"{busy} runs of the tenant have workers, share.max_runs is {share.max_runs}"
    if not used.plus(need).within(share.most):
        return f"the tenant has {used.shown()} and may have {share.most.shown()}; this needs {need.shown()}"
    if found.reserved_for not in (None, run.run_id) and not run.reclaimable:
        first = queue.runs[found.reserved_for or ""]
        whose = first.run_id if first.tenant == run.tenant else "a training of another tenant"
        return f"what comes free is kept for {whose}, which has waited longer"
    before = _before(queue, found, run)
    place = f"; {before} runs of the tenant are before it" if before else ""
    if found.reserved_for == run.run_id:
        return f"it needs {need.shown()} at once, and the next that comes free is kept for it"
    age = now_s - run.since_s
    until = (
        f"; in {cluster.patience_s - age:.0f} s it comes before anything is lent"
        if age < cluster.patience_s
        else ""
    )
    return (
        f"needs {need.shown()}; the tenant uses {used.shown()} of {share.guarantee.shown()} promised, "
        f"and {found.left.shown()} idle is not enough{place}{until}"
    )


def _before(queue: Queue, found: Allocation, run: Run) -> int:
    """Runs of the tenant that ask, have nothing, and come first; each shape's are in order."""
    rank = (queue.rank(run), run.run_id)
    earlier = (group[: bisect_left(group, rank)] for group in queue.groups.get(run.tenant, {}).values())
    return sum(not found.width(other) for group in earlier for _, other in group)


def expected_wait_s(
    cluster: Cluster,
    tenants: Mapping[str, Share],
    queue: Queue,
    run: Run,
    now_s: float,
    ends_in_s: Mapping[str, float],
) -> float | None:
    """When the run will have its first workers, if the others end when they think and nobody else comes; None: unknown.

    The more have ended, the more is free, so the end that it waits for is found by halving.

    Args:
        ends_in_s: Of runs with workers, in how many seconds each expects to end.
    """
    ends = sorted((wait_s, run_id) for run_id, wait_s in ends_in_s.items())[:_FORECAST_STEPS]

    def starts_after(count: int) -> bool:
        left = queue.copy()
        for _, run_id in ends[:count]:
            left.remove(run_id)
        at_s = now_s + (ends[count - 1][0] if count else 0.0)
        return allocate(cluster, tenants, left, at_s).width(run.run_id) > 0

    if not starts_after(len(ends)):
        return None
    count = bisect_left(range(len(ends)), True, key=starts_after)
    return ends[count - 1][0] if count else 0.0
