"""How teams share a cluster: who gets how many workers now, and how many a run should ask for (docs/tenancy.md).

Pure functions; leases of real runs are kept by `tasks.metadata` and joined with these in `tasks.wiring`.
"""

from tasks.tenancy.leases import Lease, Step, beat, ledger_time, refusal
from tasks.tenancy.placing import expected_wait_s, never_fits, why_waiting
from tasks.tenancy.policy import Allocation, Cluster, Queue, Run, Share, allocate, cluster_of, shares_of

__all__ = [
    "Allocation",
    "Cluster",
    "Lease",
    "Queue",
    "Run",
    "Share",
    "Step",
    "allocate",
    "beat",
    "cluster_of",
    "expected_wait_s",
    "ledger_time",
    "never_fits",
    "refusal",
    "shares_of",
    "why_waiting",
]
