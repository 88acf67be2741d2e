"""One attempt in the ledger of leases: what it has and wants goes in, how many workers it may have comes out."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tasks.core.clock import utc_now
from tasks.core.errors import PenstockError, ServiceUnavailable, StaleAttempt, TerminalError
from tasks.core.shares import ClusterSpec, Resources, TenantShare, cluster_file
from tasks.core.tenants import load_shares, tenant_file
from tasks.core.units import GIB
from tasks.metadata import MetadataStore
from tasks.metadata.leases import ENDS_KEPT_S, OpenLedger
from tasks.tenancy import SEEN, Book, Lease, beat, foreseen_s, key_of, ledger_time, refusal
from tasks.wiring.context import Context

log = logging.getLogger(__name__)

NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("allocated_s", "used_s", "wasted_s", "cpu_seconds", "gpu_seconds"), 0.0),
    **dict.fromkeys(("rows", "bytes_read", "bytes_written"), 0),
}
"""The account of an attempt that has had no workers."""
_PATIENCE_S = 5.0
"""For the ledger's lock: the driver hands out no shards while it waits."""
_SAY_AGAIN_S = 60.0
_FORESEE_AGAIN_S = 60.0
_PAUSE_EACH_S = 0.02
_RAY_AGAIN_S = 10.0


def first_lease(context: Context, run_id: str, kind: str) -> Lease:
    """The attempt as it asks first."""
    scoring, training = context.spec.inference, context.spec.training
    each = Resources(scoring.gpus_per_worker, scoring.cpus_per_worker, scoring.memory_gib_per_worker or 0.0)
    if kind == "training":
        each = Resources(training.gpus_per_worker, 1.0, training.memory_gib_per_worker or 0.0)
    now = utc_now()
    return Lease(
        tenant=context.spec.tenant,
        pipeline=context.spec.name,
        run_id=run_id,
        kind=kind,
        holder=secrets.token_hex(8),
        gpus=each.gpus,
        cpus=each.cpus,
        memory_gib=each.memory_gib,
        least=1 if kind == "scoring" else training.workers,
        most=scoring.max_workers if kind == "scoring" else training.workers,
        reclaimable=kind == "scoring",
        priority=0,
        since_s=0.0,
        beat_s=0.0,
        width=0,
        workers=0,
        ends_in_s=None,
        starts_in_s=None,
        reason="",
        **NOTHING,
        asked_at_utc=now,
        beat_at_utc=now,
    )


class LeaseHolder:
    """The lease of one attempt. Files of `tenants/` are read again at each beat.

    Args:
        context: The pipeline.
        first: The attempt as it asks first.
        cluster: What there is.
        shares: What each tenant is promised.
        monotonic: Seconds that only go on.
    """

    def __init__(
        self,
        context: Context,
        first: Lease,
        cluster: ClusterSpec,
        shares: dict[str, TenantShare],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._first = first
        self.cluster, self._shares = cluster, shares
        self._monotonic = monotonic
        self._store: MetadataStore | None = None
        self._known = False
        self._width = 0
        self._said_s: float | None = None
        self._read_s: float | None = None
        self._ray: Resources | None = None
        self._ray_s: float | None = None
        self._told: tuple[Resources, Resources] | None = None
        self._book: Book | None = None
        self._revision, self._looked_s = 0, 0.0
        self._foreseen: tuple[float, float | None] | None = None

    @property
    def pause_s(self) -> float:
        """How long an attempt without workers waits before it asks again: longer among many, who beat one at a time."""
        leases = 0 if self._book is None else len(self._book)
        return max(self.cluster.beat_s, min(self.cluster.lease_s / 4, leases * _PAUSE_EACH_S))

    def refuse_unplaceable(self, what: str, fields: str) -> None:
        """Raises `TerminalError` with limit and figure when no waiting would give the attempt its first workers."""
        spec = self._context.spec
        never = refusal(self.cluster, self._shares, self._asked().asks())
        if never:
            raise TerminalError(
                f"can never be placed: {never}",
                which=f"{what} of {spec.name}, tenant {spec.tenant}",
                fix=f"ask for less in pipeline.yaml ({fields}), or have "
                f"{tenant_file(self._context.settings, spec.tenant)} or {cluster_file(self._context.settings)} changed",
            )

    def beat(
        self,
        account: Mapping[str, Any],
        *,
        workers: int,
        most: int,
        ends_in_s: float | None = None,
    ) -> Lease:
        """Tell the ledger; returns the lease with the width that the attempt may have from now on.

        Args:
            account: What the attempt has had and made, as `NOTHING` names it.
            workers: That it has.
            most: That it wants.
            ends_in_s: By its own rate.

        Raises:
            StaleAttempt: A newer attempt of the run has taken the lease over.
            ServiceUnavailable: The ledger does not answer.
            CommitOutcomeUnknown: Its answer was lost; the next beat finds what is there.
        """
        self._read_again()
        there = self._ray_size()
        asked = self._asked()
        book, self._book = self._book, None  # what a transaction that fails leaves in it was never so
        with self._open().lease_ledger() as ledger:
            now_s = ledger_time(ledger.clock_s, ledger.clock_at, ledger.now, lease_s=self.cluster.lease_s)
            ledger.set_clock(now_s, there)
            row = ledger.lease(asked.tenant, asked.pipeline, asked.run_id)
            if row is not None and row["holder"] != asked.holder:
                before = Lease.of_row(row)
                alive = now_s - before.beat_s <= self.cluster.lease_s
                if not self._known and before.width and not before.reclaimable and alive:
                    return replace(asked, reason="another attempt of it has its workers")
                mine, row = self._taken_over(ledger, asked, before), None
            elif row is not None:
                mine = replace(Lease.of_row(row), priority=asked.priority)
            else:
                # a gang has its workers, whatever the ledger lost
                kept = 0 if asked.reclaimable else self._width
                mine = replace(asked, since_s=now_s, asked_at_utc=ledger.now, width=kept)
            mine = replace(
                mine,
                most=most,
                workers=workers,
                ends_in_s=ends_in_s,
                starts_in_s=self._foreseen_in_s(),
                beat_s=now_s,
                beat_at_utc=ledger.now,
                **account,
            )
            book = self._read(ledger, book)
            self._end_silent(ledger, book, mine.key, now_s)
            mine = beat(self._shared_out(there), self._shares, book, mine, now_s)
            as_before = row is not None and Lease.of_row(row).seen == mine.seen
            ledger.put(lease_row(mine), revision=row["changed"] if row and as_before else None)
        self._book, self._revision, self._looked_s = book, ledger.revision, now_s
        self._known = True
        mine = self._foresee(mine, there)
        self._say(mine)
        return mine

    def end(self, account: Mapping[str, Any], outcome: str) -> None:
        """End the lease; where the ledger does not answer, it ends by itself."""
        if not self._known:
            return
        first = self._first
        try:
            with self._open().lease_ledger() as ledger:
                row = ledger.lease(first.tenant, first.pipeline, first.run_id)
                if row is not None and row["holder"] == first.holder:
                    ledger.end({**row, **account}, outcome)
        except PenstockError as error:
            log.warning("The lease of %s ends by itself: %s", self._first.run_id, error.what)

    def _taken_over(self, ledger: OpenLedger, asked: Lease, before: Lease) -> Lease:
        """End the lease of an older attempt, and go on in its place in the queue. Raises `StaleAttempt` in a newer one's."""
        if self._known:
            raise StaleAttempt(
                "a newer attempt has taken its workers over",
                which=f"{asked.kind} {asked.run_id}",
                fix="let the newer attempt finish",
            )
        ledger.end(lease_row(before), "taken over")
        return replace(asked, since_s=before.since_s, asked_at_utc=ledger.now)

    def _end_silent(self, ledger: OpenLedger, book: Book, mine: str, now_s: float) -> None:
        """End the leases that have not been heard of for too long; one's own is heard of just now."""
        for row in ledger.unheard(now_s - self.cluster.lease_s):
            lease = Lease.of_row(row)
            if lease.key == mine:
                continue
            book.remove(lease.key)
            if ledger.end(row, "expired"):
                log.warning(
                    "%s %s has not been heard of for %.0f s: its workers are free.",
                    lease.kind.capitalize(),
                    lease.run_id,
                    now_s - lease.beat_s,
                )

    def _read(self, ledger: OpenLedger, book: Book | None) -> Book:
        """Everybody's leases: of those that are known only what has changed."""
        too_old = ledger.clock_s - self._looked_s > ENDS_KEPT_S / 2
        if book is None or too_old or book.ageing_s != self.cluster.ageing_s:
            return Book(ledger.rows(SEEN), ageing_s=self.cluster.ageing_s)
        rows, ended = ledger.changes(self._revision, SEEN)
        for tenant, pipeline, run_id in ended:
            book.remove(key_of(tenant, pipeline, run_id))
        for row in rows:
            book.put(row)
        return book

    def _foreseen_in_s(self) -> float | None:
        """What was foreseen last, less the time since then."""
        said_s, wait_s = self._foreseen or (0.0, None)
        return None if wait_s is None else max(0.0, wait_s - (self._monotonic() - said_s))

    def _foresee(self, mine: Lease, there: Resources | None) -> Lease:
        """When an attempt that waits may expect to start: asked now and then, and while nobody waits for the ledger."""
        if mine.width or self._book is None:
            self._foreseen = None
            return mine
        if not mine.most or mine.starts_in_s == 0.0:
            return mine
        now_s = self._monotonic()
        if self._foreseen is None or now_s - self._foreseen[0] >= _FORESEE_AGAIN_S:
            try:
                ends = {key_of(*key): wait_s for key, wait_s in self._open().lease_ends().items()}
            except ServiceUnavailable as error:  # the beat is done; what is said of it is not worth a failure
                log.warning("When %s starts is not foreseen: %s", mine.run_id, error.what)
                return mine
            spec = self._shared_out(there)
            wait_s = foreseen_s(spec, self._shares, self._book, mine, self._looked_s, ends)
            self._foreseen = (now_s, wait_s)
        return replace(mine, starts_in_s=self._foreseen_in_s())

    def _asked(self) -> Lease:
        share = self._shares.get(self._first.tenant, TenantShare())
        each = self.cluster.counted(self._first.each)
        return replace(self._first, **each._asdict(), priority=share.priority)

    def _open(self) -> MetadataStore:
        if self._store is None:
            self._store = MetadataStore.open(self._context.settings, patience_s=_PATIENCE_S)
        return self._store

    def _read_again(self) -> None:
        """The files as they are now; a file that is being edited wrongly stops no run that is under way."""
        if self._read_s is not None and self._monotonic() - self._read_s < self.cluster.beat_s:
            return
        self._read_s = self._monotonic()
        try:
            self.cluster, self._shares = load_shares(self._context.settings) or (self.cluster, self._shares)
        except PenstockError as error:
            log.warning("Shares stay as they were: %s", error)

    def _ray_size(self) -> Resources | None:
        """What the Ray has that this process is connected to; None when it is connected to none."""
        now_s = self._monotonic()
        if self._ray_s is None or now_s - self._ray_s >= _RAY_AGAIN_S:
            self._ray, self._ray_s = ray_size(), now_s
        return self._ray

    def _shared_out(self, there: Resources | None) -> ClusterSpec:
        """The cluster as the file says, and no larger than Ray is, unless Ray grows by itself."""
        if there is None or self.cluster.autoscaled:
            return self.cluster
        said = self.cluster.resources
        if not said.within(there) and self._told != (said, there):
            self._told = (said, there)
            log.warning("%s", too_much_said(said, self.cluster.counted(there)))
        return self.cluster.at_most(there)

    def _say(self, mine: Lease) -> None:
        now_s = self._monotonic()
        if mine.width != self._width:
            log.info(
                "%s %s may have %d workers (before: %d).",
                *(mine.kind.capitalize(), mine.run_id, mine.width, self._width),
            )
        self._width = mine.width
        if mine.width or (self._said_s is not None and now_s - self._said_s < _SAY_AGAIN_S):
            return
        self._said_s = now_s
        log.info("%s %s waits: %s.", mine.kind.capitalize(), mine.run_id, mine.waits)


def lease_row(lease: Lease) -> dict[str, Any]:
    """The lease as the ledger keeps it."""
    return {name: getattr(lease, name) for name in Lease.__dataclass_fields__}


def ray_size() -> Resources | None:
    """The sum over all nodes of the Ray that this process is connected to; None when it is connected to none."""
    import sys

    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    found = ray.cluster_resources()
    return Resources(found.get("GPU", 0.0), found.get("CPU", 0.0), found.get("memory", 0.0) / GIB)


def too_much_said(said: Resources, there: Resources) -> str:
    """What to say when the file promises more than Ray has."""
    return f"tenants/_cluster.yaml says {said.shown()}; Ray has {there.shown()}: what Ray has is shared out"
