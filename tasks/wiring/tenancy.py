"""What every tenant may take, has and has spent; and Airflow's pools in step with that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.core import Clock, Settings, utc_now
from tasks.core.tenants import load_tenant, pools_of, tenant_names
from tasks.wiring.admission import cluster_status
from tasks.wiring.context import readable_pipelines
from tasks.wiring.costs import cost_ledger


def tenancy_status(
    settings: Settings, *, may_see: Callable[[str], bool] = lambda _: True, clock: Clock = utc_now
) -> dict[str, Any]:
    """Each tenant: its pipelines, quota, what the month has cost until now, and how that stands to its budget.

    Where a cluster is shared out: what each is promised, has and borrows, and every run with its workers or why it waits.

    Args:
        may_see: Whether a tenant may be shown, by its name.
    """
    pipelines: dict[str, list[str]] = {}
    specs, broken = readable_pipelines(settings)
    for spec in specs:
        pipelines.setdefault(spec.tenant, []).append(spec.name)
    ledger = cost_ledger(settings, may_see=may_see, clock=clock)
    spent = {item["tenant"]: item for item in ledger["by_tenant"]}
    tenants = []
    for name in filter(may_see, sorted({*pipelines, *tenant_names(settings), *spent})):
        said = load_tenant(settings, name)
        used = spent.get(name, {})
        tenants.append(
            {
                "tenant": name,
                "pipelines": pipelines.get(name, []),
                **said.quota.model_dump(),
                "cpu_seconds": used.get("cpu_seconds", 0.0),
                "gpu_seconds": used.get("gpu_seconds", 0.0),
                "cost": used.get("cost"),
                **said.budget.model_dump(),
                "budget": _standing(used.get("cost"), said.budget.month_soft, said.budget.month_hard),
            }
        )
    return {
        "month": ledger["month"],
        "currency": ledger["currency"],
        "tenants": tenants,
        "broken": broken,
        **cluster_status(settings, may_see),
    }


def sync_pools(settings: Settings) -> dict[str, Any]:
    """Make Airflow's pools what the tenants' files say; the pool of a tenant without a quota any more stays as it is."""
    from tasks.local import AirflowClient
    from tasks.local.services import airflow_login, local_settings

    local = local_settings(settings)
    pools = pools_of(settings)
    client = AirflowClient(local.airflow_url, *airflow_login(local))
    try:
        changed = [name for name, pool in pools.items() if client.set_pool(name, pool)]
    finally:
        client.close()
    return {"pools": sorted(pools), "changed": changed}


def _standing(cost: float | None, soft: float | None, hard: float | None) -> str:
    if cost is None or (soft is None and hard is None):
        return "no budget" if soft is None and hard is None else "within"
    if hard is not None and cost >= hard:
        return "spent: nothing new is begun"
    return "above the soft limit" if soft is not None and cost >= soft else "within"
