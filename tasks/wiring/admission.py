"""Admission of scoring runs on a shared cluster: how many workers each may have, by the ledger of leases.

Only where `tenants/_cluster.yaml` says what there is to share; elsewhere a run takes what its pipeline says, and only what it had
is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tasks.core import Settings
from tasks.core.clock import utc_now
from tasks.core.errors import CommitOutcomeUnknown, PenstockError, ServiceUnavailable
from tasks.core.shares import ClusterSpec, Resources, TenantShare
from tasks.core.tenants import load_shares
from tasks.metadata import UNDER_WAY, MetadataStore
from tasks.tenancy import Lease, Load, ScalingPolicy, target_workers
from tasks.wiring.context import Context
from tasks.wiring.lease_holder import LeaseHolder, first_lease, too_much_said
from tasks.wiring.settling import keeper_is_needed, nobody_decides

if TYPE_CHECKING:
    from tasks.inference import Demand, Width

log = logging.getLogger(__name__)

_LEAST_PAUSE_S = 0.2
_SAVE_S = 30.0
FINISHED, FAILED = "finished", "failed"


def admission(context: Context, run_id: str, *, local: bool = False) -> Width:
    """What says how many workers a run may have, and keeps what it had.

    Args:
        local: The run takes no workers of the cluster.

    Raises:
        ConfigError: A file of `tenants/` is wrong, or the guarantees add up to more than the cluster has.
        TerminalError: The run asks for what its tenant can never get; nothing was begun.
    """
    first = first_lease(context, run_id, "scoring")
    found = None if local else load_shares(context.settings)
    if found is None:
        return Metered(context, first)
    asked = Admission(context, run_id, LeaseHolder(context, first, *found))
    asked.holder.refuse_unplaceable(f"run {run_id}", "inference.gpus_per_worker, cpus_per_worker")
    return asked


class Admission:
    """The lease of one run; a `tasks.inference.Width`.

    Args:
        context: The pipeline.
        run_id: The run.
        holder: Its lease.
        monotonic: Seconds that only go on.
    """

    def __init__(
        self,
        context: Context,
        run_id: str,
        holder: LeaseHolder,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context, self._run_id = context, run_id
        self.holder = holder
        self._monotonic = monotonic
        self._beat_s: float | None = None
        self._workers = 0
        self._width = 0
        self._wanted = 0
        self._changed_s = monotonic()

    def allowed(self, demand: Demand, *, boundary: bool) -> int:
        """Workers that the run may have now.

        Raises:
            ServiceUnavailable: The ledger does not answer: at the start nothing is begun; later the run goes on with what it
                has until its lease may be over.
            StaleAttempt: A newer attempt of the run has taken the lease over.
        """
        now_s, cluster = self._monotonic(), self.holder.cluster
        since_s = None if self._beat_s is None else now_s - self._beat_s
        soon = boundary or demand.workers != self._workers
        pause_s = cluster.beat_s if demand.workers else self.holder.pause_s
        if since_s is not None and since_s < (_LEAST_PAUSE_S if soon else pause_s):
            return min(self._width, self._wants(demand, now_s))
        try:
            mine = self.holder.beat(
                account_of(demand),
                workers=demand.workers,
                most=self._wants(demand, now_s),
                ends_in_s=demand.ends_in_s,
            )
        except (ServiceUnavailable, CommitOutcomeUnknown) as error:
            over_s = cluster.lease_s + (0.0 if demand.workers else pause_s)
            if since_s is None or since_s > over_s:
                raise ServiceUnavailable(
                    f"the ledger of leases does not answer: {error.what}"
                    + ("; nothing was begun" if since_s is None else "; the lease may be over"),
                    which=f"run {self._run_id}",
                    fix="bring the metadata database back and run again: committed shards are kept",
                ) from error
            log.warning(
                "The ledger of leases does not answer, the run goes on with what it has: %s", error.what
            )
            self._width = min(self._width, demand.workers)
            return self._width
        self._beat_s, self._workers, self._width = now_s, demand.workers, mine.width
        return self._width

    def leave(self, demand: Demand) -> None:
        """End the lease; where the ledger does not answer, it ends by itself."""
        self.holder.end(account_of(demand), outcome_of(demand))

    def _wants(self, demand: Demand, now_s: float) -> int:
        """Workers to ask for: what the pool wants or, with a deadline, what meets it."""
        spec = self._context.spec.inference
        if spec.deadline_hours is None:
            return demand.wanted
        rate = None
        if demand.ends_in_s and demand.workers:
            rate = demand.shards_left / demand.ends_in_s / demand.workers
        found = target_workers(
            ScalingPolicy(min(spec.min_workers, demand.wanted), spec.max_workers),
            Load(
                demand.shards_left,
                demand.workers,
                rate,
                deadline_in_s=(self._deadline - utc_now()).total_seconds(),
                since_change_s=now_s - self._changed_s,
            ),
        )
        if found.workers != self._wanted:
            log.info("Asks for %d workers: %s.", found.workers, found.reason)
            self._wanted, self._changed_s = found.workers, now_s
        return found.workers

    @cached_property
    def _deadline(self) -> datetime:
        planned = self._context.metadata.run(self._context.spec, self._run_id)
        begun = planned.planned_at_utc if planned else utc_now()
        return begun + timedelta(hours=self._context.spec.inference.deadline_hours or 0.0)


class Metered:
    """As many workers as a run wants; what it had is kept, as far as the metadata store answers.

    Args:
        context: The pipeline.
        first: The attempt.
        monotonic: Seconds that only go on.
    """

    def __init__(
        self, context: Context, first: Lease, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._context, self._first, self._monotonic = context, first, monotonic
        self._saved_s = monotonic()

    def allowed(self, demand: Demand, *, boundary: bool) -> int:  # noqa: ARG002
        """What it wants; what it has got already stays."""
        now_s = self._monotonic()
        if now_s - self._saved_s >= _SAVE_S:
            self._saved_s = now_s
            keep_account(self._context, self._first, account_of(demand), UNDER_WAY)
        return max(demand.wanted, demand.workers)

    def leave(self, demand: Demand) -> None:
        """Keep what the attempt had."""
        keep_account(self._context, self._first, account_of(demand), outcome_of(demand))


def keep_account(context: Context, first: Lease, account: Mapping[str, Any], outcome: str) -> None:
    """Keep what an attempt without a lease has had; a metadata store that is away costs the account, not the attempt."""
    try:
        context.metadata.put_allocation({**vars(first), **account}, outcome)
    except PenstockError as error:
        log.warning("What %s %s has used is not kept: %s", first.kind, first.run_id, error.what)


def account_of(demand: Demand) -> dict[str, Any]:
    """What an attempt has had and made, as the ledger names it."""
    made = demand.made
    return {
        "allocated_s": demand.allocated_s,
        "used_s": demand.used_s,
        "wasted_s": demand.wasted_s,
        "rows": made.rows,
        "bytes_read": made.bytes_read,
        "bytes_written": made.bytes_written,
        "cpu_seconds": made.cpu_seconds,
        "gpu_seconds": made.gpu_seconds,
    }


def outcome_of(demand: Demand) -> str:
    """Whether the attempt has scored what it was to score."""
    return FAILED if demand.shards_left or demand.made.failed else FINISHED


def cluster_status(settings: Settings, may_see: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """What there is, what each tenant is promised, has and borrows, and each run with its width or the reason why it waits.

    Args:
        may_see: Whether a tenant may be shown, by its name.
    """
    found = load_shares(settings)
    if found is None:
        nothing = dict.fromkeys(("cluster", "ray", "short", "decided_at_utc", "undecided"))
        return {**nothing, "shares": [], "runs": []}
    cluster, shares = found
    store = MetadataStore.open(settings)
    seen = store.seen_size()
    there = cluster.counted(Resources(*seen[1])) if seen else None
    decided = store.last_decision()
    short = there is not None and not cluster.autoscaled and not cluster.resources.within(there)
    leases = [Lease.of_row(row) for row in store.lease_rows()]
    tenants = []
    for name in sorted({*shares, *(lease.tenant for lease in leases)}):
        if not may_see(name):
            continue
        share = shares.get(name, TenantShare())
        held = Resources()
        for lease in leases:
            if lease.tenant == name:
                held = held.plus(lease.seen.holds)
        promised = share.guaranteed(cluster)
        over = Resources(*(max(0.0, mine - own) for mine, own in zip(held, promised, strict=True)))
        tenants.append(
            {
                "tenant": name,
                "guarantee": promised.shown(),
                "has": held.shown(),
                "borrows": over.shown(),
                "may have": share.most(cluster).shown(),
                "weight": share.weight,
                "priority": share.priority,
                "promised_share": round(promised.dominant(cluster.resources), 4),
                "held_share": round(held.dominant(cluster.resources), 4),
                "waiting": sum(lease.tenant == name and not lease.width for lease in leases),
            }
        )
    runs = [
        {
            "tenant": lease.tenant,
            "pipeline": lease.pipeline,
            "kind": lease.kind,
            "run": lease.run_id,
            "workers": lease.workers,
            "width": lease.width,
            "wants": lease.most,
            "asked_at_utc": lease.asked_at_utc.isoformat(timespec="seconds"),
            "beat_at_utc": lease.beat_at_utc.isoformat(timespec="seconds"),
            "waits": lease.reason,
            "starts": lease.expected if lease.reason else "",
        }
        for lease in leases
        if may_see(lease.tenant)
    ]
    return {
        "cluster": cluster.resources.shown(),
        "ray": {"size": there.shown(), "seen_at_utc": seen[0].isoformat(timespec="seconds")}
        if there and seen
        else None,
        "short": too_much_said(cluster.resources, there) if short and there else None,
        "decided_at_utc": decided[0].isoformat(timespec="seconds") if decided else None,
        "undecided": _undecided(settings, store, cluster, decided[1] if decided else None),
        "shares": tenants,
        "runs": runs,
    }


def _undecided(
    settings: Settings, store: MetadataStore, cluster: ClusterSpec, since_s: float | None
) -> str | None:
    """That nobody decides, where somebody has to: drivers of a shared login do so as soon as a run asks."""
    if since_s is not None and since_s <= cluster.lease_s:
        return None
    return nobody_decides(since_s) if keeper_is_needed(settings, store) else None
