"""One attempt in the ledger of leases: what it has and wants goes in, how many workers it may have comes out."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from tasks.core.clock import utc_now
from tasks.core.errors import (
    CommitOutcomeUnknown,
    PenstockError,
    ServiceUnavailable,
    StaleAttempt,
    TerminalError,
)
from tasks.core.shares import ClusterSpec, Resources, TenantShare, cluster_file
from tasks.core.tenants import load_shares, tenant_file
from tasks.core.units import GIB
from tasks.metadata import MetadataStore
from tasks.metadata.leases import ASKED, MOST_PAUSE_S, OpenRequest
from tasks.tenancy import Book, Decision, Lease, explained, foreseen_s, key_of, refusal
from tasks.wiring.context import Context
from tasks.wiring.settling import Settler, nobody_decides, shared_out

log = logging.getLogger(__name__)

NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("allocated_s", "used_s", "wasted_s", "cpu_seconds", "gpu_seconds"), 0.0),
    **dict.fromkeys(("rows", "bytes_read", "bytes_written"), 0),
}
"""The account of an attempt that has had no workers."""
_EXPLAINED = ("reason", "starts_in_s")
_LEASE = Lease.__dataclass_fields__
_PATIENCE_S = 5.0
"""For the ledger's lock: the driver hands out no shards while it waits."""
_SAY_AGAIN_S = 60.0
_EXPLAIN_AGAIN_S = 60.0
_EXPLAIN_EACH_S = 0.02
_PAUSE_EACH_S = 0.1
_PART_OF_WAIT = 0.1
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
        counted=0,
        ends_in_s=None,
        starts_in_s=None,
        reason="",
        **NOTHING,
        asked_at_utc=now,
        beat_at_utc=now,
    )


def waiting_pause_s(cluster: ClusterSpec, ahead: int, starts_in_s: float | None) -> float:
    """How long a run that waits may be silent.

    Args:
        cluster: Whose `beat_s` it is at the least.
        ahead: Runs that may be granted their first workers before it.
        starts_in_s: When it may expect its own; None: not foreseen.
    """
    pause_s = min(MOST_PAUSE_S, ahead * _PAUSE_EACH_S)
    if starts_in_s is not None:
        pause_s = min(pause_s, starts_in_s * _PART_OF_WAIT)
    return max(cluster.beat_s, pause_s)


class LeaseHolder:
    """The lease of one attempt. Files of `tenants/` are read again before each decision.

    A beat writes the attempt's own row and reads what it was granted. It decides for all runs only where something has to be decided.

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
        self._settler = Settler()
        self._may_settle: bool | None = None
        self._known = False
        self._width = 0
        self._promised_s = cluster.beat_s
        """After which it was said to be heard of again."""
        self._heard = 0
        """The number of the decision that gave it its width."""
        self._said_s: float | None = None
        self._read_s: float | None = None
        self._ray: Resources | None = None
        self._ray_s: float | None = None
        self._told: tuple[Resources, Resources] | None = None
        self._reason = ""
        self._explained_s: float | None = None
        self._undecided_s: float | None = 0.0
        """How long nobody has decided, where this attempt cannot; None: ever."""
        self._decision: Decision | None = None
        self._foreseen: tuple[float, float | None] | None = None
        self._ahead = 0
        """Runs that may be granted their first workers before this one, as it was seen last."""

    @property
    def pause_s(self) -> float:
        """How long an attempt without workers waits before it asks again: longer the more are before it, shorter the sooner it may
        start, and no longer than it has said."""
        return min(self._promised_s, self._next_pause_s)

    @property
    def _next_pause_s(self) -> float:
        if self._width:
            return self.cluster.beat_s
        return waiting_pause_s(self.cluster, self._ahead, self._starts_in_s())

    @property
    def _leases(self) -> int:
        return 0 if self._settler.book is None else len(self._settler.book)

    def refuse_unplaceable(self, what: str, fields: str) -> None:
        """Raises `TerminalError` with limit and figure when no waiting would give the attempt its first workers."""
        spec = self._context.spec
        never = refusal(self.cluster, self._shares, self._asked().seen.asks())
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
        there = self._ray_size()
        asked = self._asked()
        said = {name: getattr(asked, name) for name in ASKED} | {
            **account,
            "most": most,
            "workers": workers,
            "heard": self._heard,
            "pause_s": 0.0 if workers else self._next_pause_s,
            "ends_in_s": ends_in_s,
            "starts_in_s": self._starts_in_s(),
            "reason": self._reason,
        }
        with self._open().lease_request(asked.tenant, asked.pipeline, asked.run_id) as request:
            if not (self._known and request.tell(said)):
                last = request.last()
                lease, clock = request.granted()
                now_s = clock["beat_s"] if clock else 0.0
                if last is not None and last["holder"] != asked.holder and not last["ended"]:
                    if not self._known and self._at_work(last, lease, now_s):
                        return replace(asked, reason="another attempt of it has its workers")
                    self._take_over(request, last, now_s)
                request.ask(said, now_s)
            lease, clock = request.granted()
        self._known, self._promised_s = True, max(self.cluster.beat_s, said["pause_s"])
        lease = self._settled(said, lease, clock, request.now, there)
        mine = self._explain(said, lease, request.now, there)
        self._say(mine)
        return mine

    def end(self, account: Mapping[str, Any], outcome: str) -> None:
        """End the lease; where the ledger does not answer, it ends by itself."""
        if not self._known:
            return
        first = self._first
        try:
            with self._open().lease_request(first.tenant, first.pipeline, first.run_id) as request:
                last = request.last()
                if last is None or last["holder"] != first.holder or last["ended"]:
                    return
                request.end({**last, **account}, outcome)
            if self._settles():
                self._settle(self._ray_size(), wait=True)
        except PenstockError as error:
            log.warning("The lease of %s ends by itself: %s", self._first.run_id, error.what)

    def _at_work(self, last: Mapping[str, Any], lease: Mapping[str, Any] | None, now_s: float) -> bool:
        """Whether another attempt, whose request was the last, has workers that it keeps until it ends."""
        if lease is None or lease["holder"] != last["holder"] or not lease["width"]:
            return False
        return not last["reclaimable"] and not self._silent(last, now_s)

    def _take_over(self, request: OpenRequest, last: Mapping[str, Any], now_s: float) -> None:
        """End the request of an older attempt, to go on in its place in the queue. Raises `StaleAttempt` in a newer one's."""
        if self._known:
            raise StaleAttempt(
                "a newer attempt has taken its workers over",
                which=f"{self._first.kind} {self._first.run_id}",
                fix="let the newer attempt finish",
            )
        request.end(last, "expired" if self._silent(last, now_s) else "taken over")

    def _silent(self, last: Mapping[str, Any], now_s: float) -> bool:
        return bool(now_s - last["beat_s"] > self.cluster.lease_s + last["pause_s"])

    def _settled(
        self,
        said: Mapping[str, Any],
        lease: dict[str, Any] | None,
        clock: Mapping[str, Any] | None,
        now: datetime,
        there: Resources | None,
    ) -> dict[str, Any] | None:
        """The lease after a decision, where one is due and this login may make it: at once when the attempt asks for something else
        than before, and otherwise when nobody has made one for `beat_s`."""
        new = lease is None or any(lease[name] != said[name] for name in ASKED)
        since_s = None if clock is None else abs((now - clock["beat_at_utc"]).total_seconds())
        if not new and since_s is not None and since_s < self.cluster.beat_s:
            return lease
        if not self._settles():
            self._undecided_s = since_s if since_s is None or since_s > self.cluster.lease_s else 0.0
            return lease
        if self._settle(there, wait=new):
            mine = self._book.leases.get(self._first.key)
            return None if mine is None else {**(lease or {}), **mine._asdict(), "holder": said["holder"]}
        return lease

    def _settle(self, there: Resources | None, *, wait: bool) -> Decision | None:
        self._read_again()
        self._say_size(there)
        self._decision = self._settler.settle(self._open(), self.cluster, self._shares, there, wait=wait)
        return self._decision

    def _settles(self) -> bool:
        """Whether this login may decide."""
        if self._may_settle is None:
            self._may_settle = self._open().may_settle()
        return self._may_settle

    def _explain(
        self,
        said: Mapping[str, Any],
        lease: Mapping[str, Any] | None,
        now: datetime,
        there: Resources | None,
    ) -> Lease:
        """The lease as the attempt has it; where it waits, with the reason, and when it may expect to start."""
        decision, self._decision = self._decision, None
        granted = {} if lease is None or lease["holder"] != said["holder"] else lease
        self._heard = granted.get("granted", 0)
        mine = replace(
            self._asked(),
            **{name: value for name, value in said.items() if name in _LEASE and name not in _EXPLAINED},
            width=granted.get("width", 0),
            counted=granted.get("workers", 0),
            since_s=granted.get("since_s", 0.0),
            beat_at_utc=now,
        )
        if mine.width or not mine.most:
            self._reason, self._explained_s, self._foreseen = "", None, None
            return mine
        now_s, known = self._monotonic(), self._reason
        due = self._explained_s is None or now_s - self._explained_s >= self._explain_again_s
        if decision is not None or due:
            try:
                decided = self._look(decision, there, foresee=due)
                if not known:
                    with self._open().lease_request(mine.tenant, mine.pipeline, mine.run_id) as request:
                        request.explain(mine.holder, self._reason, self._starts_in_s())
                if due and decided:
                    self._explained_s = now_s
            except (
                ServiceUnavailable,
                CommitOutcomeUnknown,
            ) as error:  # the beat is done; what is said of it is not worth a failure
                log.warning("Why %s waits is not known: %s", mine.run_id, error.what)
        return replace(mine, reason=self._reason, starts_in_s=self._starts_in_s())

    def _look(self, decision: Decision | None, there: Resources | None, *, foresee: bool) -> bool:
        """Find out why the attempt waits and, where it is asked for, until when; False when nothing has been decided for it yet."""
        self._read_again()
        store, key = self._open(), self._first.key
        book = self._settler.book if decision else self._settler.look(store, self.cluster.ageing_s)
        if book is None or key not in book.leases:
            self._reason, self._foreseen = self._not_decided(), None
            return False
        spec, now_s = shared_out(self.cluster, there), self._settler.now_s
        self._ahead = book.ahead(key)
        found = decision.found if decision else None
        self._reason, target = explained(spec, self._shares, book, key, now_s, found)
        if target:
            self._foreseen = (self._monotonic(), 0.0)
        elif foresee:
            ends = {key_of(*of): wait_s for of, wait_s in store.lease_ends().items()}
            self._foreseen = (
                self._monotonic(),
                foreseen_s(spec, self._shares, book, key, now_s, ends),
            )
        return True

    def _not_decided(self) -> str:
        if self._undecided_s == 0.0:
            return "it has asked, and what it may have is decided next"
        return nobody_decides(self._undecided_s)

    @property
    def _explain_again_s(self) -> float:
        return max(_EXPLAIN_AGAIN_S, self._leases * _EXPLAIN_EACH_S)

    @property
    def _book(self) -> Book:
        """As it was settled in this beat."""
        assert self._settler.book is not None
        return self._settler.book

    def _starts_in_s(self) -> float | None:
        """What was foreseen last, less the time since then."""
        said_s, wait_s = self._foreseen or (0.0, None)
        return None if wait_s is None else max(0.0, wait_s - (self._monotonic() - said_s))

    def _asked(self) -> Lease:
        share = self._shares.get(self._first.tenant, TenantShare())
        each = self.cluster.counted(self._first.seen.each)
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

    def _say_size(self, there: Resources | None) -> None:
        """Say once when the file promises more than Ray has."""
        if there is None or self.cluster.autoscaled:
            return
        said = self.cluster.resources
        if not said.within(there) and self._told != (said, there):
            self._told = (said, there)
            log.warning("%s", too_much_said(said, self.cluster.counted(there)))

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
