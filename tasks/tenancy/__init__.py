"""How teams share a cluster: who gets how many workers now, and how many a run should ask for (docs/tenancy.md).

Pure functions; leases of real runs are kept by `tasks.metadata` and joined with these in `tasks.wiring`.
"""

from tasks.tenancy.book import SEEN, Book, Seen, key_of
from tasks.tenancy.leases import (
    Decision,
    Lease,
    Request,
    decide,
    explained,
    foreseen_s,
    ledger_time,
    refusal,
)
from tasks.tenancy.placing import expected_wait_s, never_fits, why_waiting
from tasks.tenancy.policy import Allocation, Cluster, Queue, Run, Share, allocate, cluster_of, shares_of
from tasks.tenancy.scaling import Load, ScalingPolicy, Target, target_workers

__all__ = [
    "SEEN",
    "Allocation",
    "Book",
    "Cluster",
    "Decision",
    "Lease",
    "Load",
    "Queue",
    "Request",
    "Run",
    "ScalingPolicy",
    "Seen",
    "Share",
    "Target",
    "allocate",
    "cluster_of",
    "decide",
    "expected_wait_s",
    "explained",
    "foreseen_s",
    "key_of",
    "ledger_time",
    "never_fits",
    "refusal",
    "shares_of",
    "target_workers",
    "why_waiting",
]
