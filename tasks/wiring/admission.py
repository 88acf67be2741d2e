"""Admission of scoring runs on a shared cluster: how many workers each may have, by the ledger of leases.

Only where `tenants/_cluster.yaml` says what there is to share; elsewhere a run takes what its pipeline says, and no ledger is read.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.core import Settings
from tasks.core.errors import (
    CommitOutcomeUnknown,
    PenstockError,
    ServiceUnavailable,
    StaleAttempt,
    TerminalError,
)
from tasks.core.shares import ClusterSpec, Resources, TenantShare, cluster_file
from tasks.core.tenants import load_shares, tenant_file
from tasks.metadata import MetadataStore
from tasks.tenancy import Lease, beat, ledger_time, refusal
from tasks.wiring.context import Context

if TYPE_CHECKING:
    from tasks.inference import Demand

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
"""For the ledger's lock: the driver hands out no shards while it waits."""
_SAY_AGAIN_S = 60.0
_LEAST_PAUSE_S = 0.2


def admission(context: Context, run_id: str) -> Admission | None:
    """What says how many workers a run may have; None where nothing is shared out.

    Raises:
        ConfigError: A file of `tenants/` is wrong, or the guarantees add up to more than the cluster has.
        TerminalError: The run asks for what its tenant can never get; nothing was begun.
    """
    found = load_shares(context.settings)
    if found is None:
        return None
    asked = Admission(context, run_id, *found)
    never = refusal(*found, asked.first().asks())
    if never:
        raise TerminalError(
            f"can never be placed: {never}",
            which=f"run {run_id} of {context.spec.name}, tenant {context.spec.tenant}",
            fix=f"ask for less in pipeline.yaml (inference.gpus_per_worker, cpus_per_worker), or have "
            f"{tenant_file(context.settings, context.spec.tenant)} or {cluster_file(context.settings)} changed",
        )
    return asked


class Admission:
    """The lease of one run; a `tasks.inference.Width`. Files of `tenants/` are read again at each beat.

    Args:
        context: The pipeline.
        run_id: The run.
        cluster: What there is.
        shares: What each tenant is promised.
        monotonic: Seconds that only go on.
    """

    def __init__(
        self,
        context: Context,
        run_id: str,
        cluster: ClusterSpec,
        shares: dict[str, TenantShare],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context, self._run_id = context, run_id
        self._cluster, self._shares = cluster, shares
        self._monotonic = monotonic
        self._holder = secrets.token_hex(8)
        self._store: MetadataStore | None = None
        self._beat_s: float | None = None
        self._workers = 0
        self._width = 0
        self._said_s: float | None = None
        self._read_s: float | None = None

    def first(self) -> Lease:
        """The run as it asks first."""
        from tasks.core.clock import utc_now

        spec = self._context.spec
        share = self._shares.get(spec.tenant, TenantShare())
        each = self._cluster.counted(
            Resources(spec.inference.gpus_per_worker, spec.inference.cpus_per_worker)
        )
        return Lease(
            tenant=spec.tenant,
            pipeline=spec.name,
            run_id=self._run_id,
            holder=self._holder,
            **each._asdict(),
            least=1,
            most=spec.inference.max_workers,
            reclaimable=True,
            priority=share.priority,
            since_s=0.0,
            beat_s=0.0,
            width=0,
            workers=0,
            ends_in_s=None,
            reason="",
            allocated_s=0.0,
            used_s=0.0,
            wasted_s=0.0,
            asked_at_utc=utc_now(),
            beat_at_utc=utc_now(),
        )

    def allowed(self, demand: Demand, *, boundary: bool) -> int:
        """Workers that the run may have now.

        Raises:
            ServiceUnavailable: The ledger does not answer: at the start nothing is begun; later the run goes on with what it
                has until its lease may be over.
            StaleAttempt: A newer attempt of the run has taken the lease over.
        """
        now_s = self._monotonic()
        since_s = None if self._beat_s is None else now_s - self._beat_s
        soon = boundary or demand.workers != self._workers
        if since_s is not None and since_s < (_LEAST_PAUSE_S if soon else self._cluster.beat_s):
            return self._width
        try:
            self._width = self._beat(demand)
        except (ServiceUnavailable, CommitOutcomeUnknown) as error:
            if since_s is None or since_s > self._cluster.lease_s:
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
        self._beat_s, self._workers = now_s, demand.workers
        return self._width

    def leave(self, demand: Demand) -> None:
        """End the lease; where the ledger does not answer, it ends by itself."""
        if self._beat_s is None:
            return
        try:
            with self._open().lease_ledger() as ledger:
                for row in ledger.rows:
                    if row["holder"] == self._holder:
                        ledger.end({**row, **_times(demand)}, "released")
        except PenstockError as error:
            log.warning("The lease of run %s ends by itself: %s", self._run_id, error.what)

    def _open(self) -> MetadataStore:
        if self._store is None:
            self._store = MetadataStore.open(self._context.settings, patience_s=_PATIENCE_S)
        return self._store

    def _beat(self, demand: Demand) -> int:
        self._cluster, self._shares = self._read_again()
        with self._open().lease_ledger() as ledger:
            now_s = ledger_time(ledger.clock_s, ledger.clock_at, ledger.now, lease_s=self._cluster.lease_s)
            ledger.set_clock(now_s)
            found = {lease.key: lease for lease in map(_lease, ledger.rows)}
            mine = self.first()
            before = found.get(mine.key)
            if before is not None and before.holder != self._holder:
                if self._beat_s is not None:
                    raise StaleAttempt(
                        "a newer attempt has taken its workers over",
                        which=f"run {self._run_id}",
                        fix="let the newer attempt finish",
                    )
                ledger.end(ledger_row(before), "taken over")
                mine = replace(mine, since_s=before.since_s, asked_at_utc=ledger.now)
            elif before is not None:
                mine = replace(before, priority=mine.priority)
            else:
                mine = replace(mine, since_s=now_s, asked_at_utc=ledger.now)
            mine = replace(
                mine,
                most=demand.wanted,
                workers=demand.workers,
                ends_in_s=demand.ends_in_s,
                beat_s=now_s,
                beat_at_utc=ledger.now,
                **_times(demand),
            )
            step = beat(self._cluster, self._shares, found.values(), mine, now_s)
            for lease in step.expired:
                log.warning(
                    "Run %s has not been heard of for %.0f s: its workers are free.",
                    lease.run_id,
                    now_s - lease.beat_s,
                )
                ledger.end(ledger_row(lease), "expired")
            ledger.put(ledger_row(step.mine))
        self._say(step.mine)
        return step.mine.width

    def _read_again(self) -> tuple[ClusterSpec, dict[str, TenantShare]]:
        """The files as they are now; a file that is being edited wrongly stops no run that is under way."""
        if self._read_s is not None and self._monotonic() - self._read_s < self._cluster.beat_s:
            return self._cluster, self._shares
        self._read_s = self._monotonic()
        try:
            return load_shares(self._context.settings) or (self._cluster, self._shares)
        except PenstockError as error:
            log.warning("Shares stay as they were: %s", error)
            return self._cluster, self._shares

    def _say(self, mine: Lease) -> None:
        now_s = self._monotonic()
        if mine.width != self._width:
            log.info("Run %s may have %d workers (before: %d).", mine.run_id, mine.width, self._width)
        if mine.width or (self._said_s is not None and now_s - self._said_s < _SAY_AGAIN_S):
            return
        self._said_s = now_s
        log.info("Run %s waits: %s.", mine.run_id, mine.reason)


def ledger_row(lease: Lease) -> dict[str, Any]:
    """The lease as the ledger keeps it."""
    return {name: getattr(lease, name) for name in Lease.__dataclass_fields__}


def _lease(row: dict[str, Any]) -> Lease:
    return Lease(**row)


def _times(demand: Demand) -> dict[str, Any]:
    return {"allocated_s": demand.allocated_s, "used_s": demand.used_s, "wasted_s": demand.wasted_s}


def cluster_status(settings: Settings) -> dict[str, Any]:
    """What there is, what each tenant is promised, has and borrows, and each run with its width or the reason why it waits."""
    found = load_shares(settings)
    if found is None:
        return {"cluster": None, "shares": [], "runs": []}
    cluster, shares = found
    leases = [_lease(row) for row in MetadataStore.open(settings).lease_rows()]
    tenants = []
    for name in sorted({*shares, *(lease.tenant for lease in leases)}):
        share = shares.get(name, TenantShare())
        held = Resources()
        for lease in leases:
            if lease.tenant == name:
                held = held.plus(lease.holds)
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
                "waiting": sum(lease.tenant == name and not lease.width for lease in leases),
            }
        )
    runs = [
        {
            "tenant": lease.tenant,
            "pipeline": lease.pipeline,
            "run": lease.run_id,
            "workers": lease.workers,
            "width": lease.width,
            "wants": lease.most,
            "asked_at_utc": lease.asked_at_utc.isoformat(timespec="seconds"),
            "beat_at_utc": lease.beat_at_utc.isoformat(timespec="seconds"),
            "waits": lease.reason,
        }
        for lease in leases
    ]
    return {"cluster": cluster.resources.shown(), "shares": tenants, "runs": runs}
