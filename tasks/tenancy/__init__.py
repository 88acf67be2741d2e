"""How teams share a cluster: who gets how many workers now, and how many a run should ask for (docs/tenancy.md).

Pure functions; leases of real runs are kept by `tasks.metadata` and joined with these in `tasks.wiring`.
"""

from tasks.tenancy.placing import expected_wait_s, never_fits, why_waiting
from tasks.tenancy.policy import Allocation, Cluster, Queue, Run, Share, allocate, cluster_of, shares_of

__all__ = [
    "Allocation",
    "Cluster",
    "Queue",
    "Run",
    "Share",
    "allocate",
    "cluster_of",
    "expected_wait_s",
    "never_fits",
    "shares_of",
    "why_waiting",
]
