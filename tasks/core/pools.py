"""The Airflow pools that the DAGs run in. They have to exist before a task can start."""

from __future__ import annotations

from dataclasses import dataclass

STEP_POOL = "penstock_steps"
RAY_POOL = "penstock_ray"


@dataclass(frozen=True)
class Pool:
    """How a pool is made; its slots are then people's to change."""

    slots: int
    include_deferred: bool
    """Whether a deferred task holds its slot: a task that waits for a Ray job must."""
    description: str


POOLS = {
    STEP_POOL: Pool(2, False, "Steps in task processes; about one for each core"),
    RAY_POOL: Pool(1, True, "Ray jobs at a time; raise it with the cluster"),
}
