"""Settling the ledger of leases: what is asked is taken, what is due is granted, and whoever is silent is forgotten.

Any process whose login may decide settles for all runs: each driver where drivers share one login, and `penstock tenancy keep` where tenants
have logins of their own. Two of them never decide at once, and it does not matter which one does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from tasks.core import Settings
from tasks.core.mlflow_login import tenant_user
from tasks.core.shares import ClusterSpec, Resources, TenantShare
from tasks.core.tenants import tenant_names
from tasks.metadata import MetadataStore
from tasks.metadata.leases import ASKED, ENDS_KEPT_S, LedgerView, OpenLedger
from tasks.tenancy import (
    SEEN,
    Book,
    Decision,
    Request,
    Seen,
    decide,
    key_of,
    ledger_time,
)

log = logging.getLogger(__name__)

_KEY = ("tenant", "pipeline", "run_id")
_GRANTED = ("width", "workers", "priority", "over_since_s", "granted")
_ASKED = (*_KEY, *(name for name in ASKED if name not in ("kind", "holder")))


class Settler:
    """Everybody's leases in memory, and the decisions that are made on them."""

    def __init__(self) -> None:
        self.book: Book | None = None
        self.now_s = 0.0
        """The ledger's time at the last look."""
        self._revision = 0

    def settle(
        self,
        store: MetadataStore,
        cluster: ClusterSpec,
        shares: Mapping[str, TenantShare],
        there: Resources | None = None,
        *,
        wait: bool = True,
    ) -> Decision | None:
        """Decide for all runs; None when somebody else does so at this moment, and `wait` is not asked for.

        Args:
            store: With a login that may decide.
            cluster: What there is to share.
            shares: What each tenant is promised.
            there: What Ray has, where it is known; otherwise what the last one who knew has said lately.

        Raises:
            ServiceUnavailable: The ledger does not answer.
            CommitOutcomeUnknown: Its answer was lost; the next decision finds what is there.
        """
        book, self.book = self.book, None  # what a transaction that fails leaves in it was never so
        with store.lease_ledger() if wait else store.lease_ledger_if_free() as ledger:
            if ledger is None:
                self.book = book
                return None
            now_s = ledger_time(ledger.clock_s, ledger.clock_at, ledger.now, lease_s=cluster.lease_s)
            book = self._read(ledger, book, cluster.ageing_s)
            ledger.set_clock(now_s, there)
            decision = _decided(ledger, shared_out(cluster, there or _lately(ledger, cluster)), shares, book)
        self.book, self.now_s, self._revision = book, now_s, ledger.revision
        for row in store.sweep_requests(now_s - cluster.lease_s):
            log.warning(
                "%s %s has not been heard of for %.0f s: its workers are free.",
                *(row["kind"].capitalize(), row["run_id"], now_s - row["beat_s"]),
            )
        return decision

    def look(self, store: MetadataStore, ageing_s: float) -> Book | None:
        """Everybody's leases as they are, without a lock; None when nobody has ever settled the ledger."""
        book, self.book = self.book, None
        with store.lease_view() as view:
            if view is not None:
                book = self._read(view, book, ageing_s)
                self.book, self.now_s, self._revision = book, view.clock_s, view.revision
        return self.book

    def _read(self, ledger: LedgerView, book: Book | None, ageing_s: float) -> Book:
        """Everybody's leases: of those that are known only what has changed."""
        too_old = ledger.clock_s - self.now_s > ENDS_KEPT_S / 2
        if book is None or too_old or book.ageing_s != ageing_s:
            return Book((Seen(*row) for row in ledger.rows(SEEN)), ageing_s=ageing_s)
        rows, ended = ledger.changes(self._revision, SEEN)
        for key in ended:
            book.remove(key_of(*key))
        for row in rows:
            book.put(Seen(*row))
        return book


def shared_out(cluster: ClusterSpec, there: Resources | None) -> ClusterSpec:
    """The cluster as the file says, and no larger than Ray is, unless Ray grows by itself."""
    return cluster if there is None or cluster.autoscaled else cluster.at_most(there)


def keeper_is_needed(settings: Settings, store: MetadataStore) -> bool:
    """Whether a tenant has a login of its own, with which no driver decides."""
    return store.has_login([tenant_user(name) for name in tenant_names(settings)])


def nobody_decides(since_s: float | None) -> str:
    """What whoever waits is told where tenants have logins of their own and nobody has decided for so long; None: ever."""
    since = "never" if since_s is None else f"not for {since_s:.0f} s"
    return f"nobody decides what runs may have ({since}): `penstock tenancy keep` has to run"


def _decided(
    ledger: OpenLedger, cluster: ClusterSpec, shares: Mapping[str, TenantShare], book: Book
) -> Decision:
    """Decide, and put what has changed into the ledger."""
    heard_since_s = ledger.clock_s - cluster.lease_s
    for row in ledger.unheard(heard_since_s):
        ledger.end([row[name] for name in _KEY])
        book.remove(key_of(*(row[name] for name in _KEY)))
    rows = ledger.asked(heard_since_s)
    asked = [
        Request(
            **{name: row[name] for name in _ASKED},
            same_attempt=row["granted_to"] == row["holder"],
            has_heard=bool(row["has_heard"]),
        )
        for row in rows
    ]
    decision = decide(cluster, shares, book, asked, ledger.clock_s, ledger.next_revision)
    by_key = {request.key: row for request, row in zip(asked, rows, strict=True) if request.sound}
    for key, row in by_key.items():
        if key in decision.changed or row["granted_to"] != row["holder"]:
            ledger.put({**book.leases[key]._asdict(), "kind": row["kind"], "holder": row["holder"]})
    for key in sorted(decision.changed - set(by_key)):
        lease = book.leases[key]
        ledger.grant(
            (lease.tenant, lease.pipeline, lease.run_id),
            {name: getattr(lease, name) for name in _GRANTED},
        )
    return decision


def _lately(ledger: OpenLedger, cluster: ClusterSpec) -> Resources | None:
    """Ray's size as somebody has seen it since the last lease could have ended."""
    seen = ledger.size
    if seen is None or abs((ledger.now - seen[0]).total_seconds()) > cluster.lease_s:
        return None
    return Resources(*seen[1])
