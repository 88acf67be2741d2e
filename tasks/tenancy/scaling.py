"""How many workers a run, or a cluster, should ask for: a pure function of what is pending and how fast it goes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ScalingPolicy:
    """Bounds of the answer, and how soon it may change."""

    least: int
    most: int
    cool_down_s: float = 120.0
    """After a change, fewer workers are asked for only when so much time has passed; more at any time."""
    headroom: float = 1.2
    """So many times the workers that the deadline needs by the rate until now."""
    worth_a_worker: int = 2
    """Pending shards for each worker, without a deadline: a worker starts for seconds before it scores anything."""


@dataclass(frozen=True)
class Load:
    """What is known at one moment."""

    pending_shards: int
    workers: int
    shards_per_worker_s: float | None
    """Measured: shards that a worker finishes in a second; None before the first."""
    deadline_in_s: float | None = None
    budget_left: float | None = None
    """Money; None: no limit."""
    worker_hour: float = 0.0
    """Price of a worker's hour."""
    since_change_s: float = math.inf
    """Since the number of workers was last changed."""


@dataclass(frozen=True)
class Target:
    """How many workers, and why."""

    workers: int
    reason: str


def target_workers(policy: ScalingPolicy, load: Load) -> Target:
    """How many workers to ask for now.

    Without pending shards: none, at once. With a deadline and a measured rate: as many as meet it, with headroom; a deadline that is over
    or cannot be met asks for the most. Without: one for every `worth_a_worker` shards. A budget caps what runs at the same time by what the
    pending work can still cost; it never ends a worker in its shard, as targets are obeyed at shard boundaries.

    Raises:
        ValueError: The bounds are in the wrong order, or a figure is negative.
    """
    if not 0 <= policy.least <= policy.most:
        raise ValueError(f"least {policy.least} and most {policy.most} are no bounds")
    if load.pending_shards < 0 or load.workers < 0 or (load.shards_per_worker_s or 0.0) < 0:
        raise ValueError(f"a negative figure: {load}")
    if load.pending_shards == 0:
        return Target(0, "nothing is pending")
    wanted, reason = _wanted(policy, load)
    wanted = min(max(wanted, policy.least), policy.most, load.pending_shards)
    if load.budget_left is not None and load.worker_hour > 0:
        affordable = _affordable(load)
        if affordable < wanted:
            wanted, reason = affordable, f"the budget left, {load.budget_left:.2f}, pays for {affordable}"
            return Target(wanted, reason)
    if wanted < load.workers and load.since_change_s < policy.cool_down_s:
        kept = min(load.workers, policy.most, load.pending_shards)
        if kept > wanted:
            return Target(kept, f"{wanted} would do ({reason}); fewer only after {policy.cool_down_s:.0f} s")
    return Target(wanted, reason)


def _wanted(policy: ScalingPolicy, load: Load) -> tuple[int, str]:
    rate = load.shards_per_worker_s
    if load.deadline_in_s is None or not rate:
        why = "no deadline" if load.deadline_in_s is None else "no rate is measured yet"
        return -(-load.pending_shards // policy.worth_a_worker), f"{load.pending_shards} shards, {why}"
    if load.deadline_in_s <= 0:
        return policy.most, "the deadline is over"
    need, done = policy.headroom * load.pending_shards, rate * load.deadline_in_s
    if need > policy.most * done:
        return policy.most, f"the deadline in {load.deadline_in_s:.0f} s cannot be met with the most"
    return math.ceil(need / done - 1e-9), f"{load.pending_shards} shards in {load.deadline_in_s:.0f} s"


def _affordable(load: Load) -> int:
    """Workers whose next shard, or next minute before a rate is known, the budget still pays for."""
    step_s = 1 / load.shards_per_worker_s if load.shards_per_worker_s else 60.0
    each = load.worker_hour * step_s / 3600
    if each <= 0:
        return load.pending_shards
    return max(0, math.floor(min(load.pending_shards, (load.budget_left or 0.0) / each + 1e-9)))
