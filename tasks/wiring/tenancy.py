"""Who used how much of the cluster, what it cost, and whether a tenant may go on: quotas, budgets, showback."""

from __future__ import annotations

import csv
import io
import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tasks.core import Clock, Settings, load_pipeline, pipeline_names, utc_now
from tasks.core.budgets import Prices, load_prices, prices_file
from tasks.core.errors import ConfigError, PenstockError, TerminalError
from tasks.core.records import JsonRecord
from tasks.core.tenants import load_tenant, pools_of, tenant_file, tenant_names
from tasks.metadata import MetadataStore
from tasks.wiring.admission import cluster_status
from tasks.wiring.context import Context

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CostLine(JsonRecord):
    """What one run or training used."""

    tenant: str
    pipeline: str
    kind: str
    """`scoring`: measured in committed shards. `training`: wall time of its epochs, on each of its workers."""
    run: str
    model_version: int | None
    at_utc: datetime
    rows: int | None
    cpu_seconds: float
    gpu_seconds: float
    cost: float | None
    """None without a price table."""


def cost_ledger(
    settings: Settings, *, month: str | None = None, tenant: str | None = None, clock: Clock = utc_now
) -> dict[str, Any]:
    """Every run and training of a month (UTC, `2026-11`; default: this one), and the sums by tenant and pipeline.

    `allocations` are what ended leases of a shared cluster were allocated, in worker-seconds: used, idle and wasted time add up to it.

    Raises:
        ConfigError: The month or the price table is wrong.
    """
    first, after = _month(month, clock)
    prices = load_prices(settings)
    store = MetadataStore.open(settings)
    chosen = [tenant] if tenant else store.tenants()
    lines = [line for name in chosen for line in _lines(store, name, first, after, prices)]
    return {
        "month": f"{first:%Y-%m}",
        "currency": prices.currency if prices else None,
        "lines": [line.to_json() for line in lines],
        "by_pipeline": _sums(lines, ("tenant", "pipeline", "kind")),
        "by_version": _sums(
            [line for line in lines if line.kind == "scoring"], ("tenant", "pipeline", "model_version")
        ),
        "by_tenant": _sums(lines, ("tenant",)),
        **_allocated(store, first, after, tenant, prices),
    }


def _allocated(
    store: MetadataStore, first: datetime, after: datetime, tenant: str | None, prices: Prices | None
) -> dict[str, Any]:
    """What leases were allocated, each and by tenant; a lease counts in the month in which it ended."""
    rows = [row for row in store.allocation_rows(since=first, until=after) if tenant in (None, row["tenant"])]
    sums: dict[str, dict[str, Any]] = {}
    for row in rows:
        unit = "gpus" if row["gpus"] else "cpus"
        whole = sums.setdefault(
            row["tenant"],
            {
                "tenant": row["tenant"],
                "leases": 0,
                **dict.fromkeys(("cpu_seconds", "gpu_seconds", "used", "idle", "wasted"), 0.0),
                "cost": None if prices is None else 0.0,
            },
        )
        whole["leases"] += 1
        cpu, gpu = row["allocated_s"] * row["cpus"], row["allocated_s"] * row["gpus"]
        whole["cpu_seconds"] += cpu
        whole["gpu_seconds"] += gpu
        for part in ("used", "idle", "wasted"):
            whole[part] += row[f"{part}_s"] * row[unit]
        if prices is not None:
            whole["cost"] += prices.of(cpu, gpu)
    shown = [
        {**row, "from_utc": row["from_utc"].isoformat(), "until_utc": row["until_utc"].isoformat()}
        for row in rows
    ]
    return {"allocations": shown, "allocated_by_tenant": list(sums.values())}


def ledger_csv(ledger: dict[str, Any]) -> str:
    """The lines of a ledger as CSV, for the department that pays."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, [*CostLine.__dataclass_fields__, "currency"], lineterminator="\n")
    writer.writeheader()
    for line in ledger["lines"]:
        writer.writerow({**line, "currency": ledger["currency"]})
    return sink.getvalue()


def tenancy_status(settings: Settings, *, clock: Clock = utc_now) -> dict[str, Any]:
    """Each tenant: its pipelines, quota, what the month has cost until now, and how that stands to its budget.

    Where a cluster is shared out: what each is promised, has and borrows, and every run with its workers or why it waits.
    """
    pipelines: dict[str, list[str]] = {}
    broken = []
    for name in pipeline_names(settings):
        try:
            pipelines.setdefault(load_pipeline(settings, name).tenant, []).append(name)
        except PenstockError as error:
            broken.append({"pipeline": name, "error": str(error)})
    ledger = cost_ledger(settings, clock=clock)
    spent = {item["tenant"]: item for item in ledger["by_tenant"]}
    tenants = []
    for name in sorted({*pipelines, *tenant_names(settings), *spent}):
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
        **cluster_status(settings),
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


def refuse_over_budget(context: Context, wanted: str, *, clock: Clock = utc_now) -> str:
    """What to say of the budget: empty, or a warning above the soft limit.

    Raises:
        TerminalError: The tenant's month has cost its hard limit: nothing new is begun. What runs goes on.
        ConfigError: There is a budget and no price table.
    """
    settings, spec = context.settings, context.spec
    budget = load_tenant(settings, spec.tenant).budget
    if budget.month_soft is None and budget.month_hard is None:
        return ""
    prices = load_prices(settings)
    if prices is None:
        raise ConfigError(
            "has a budget, and nothing has a price",
            which=str(tenant_file(settings, spec.tenant)),
            fix=f"write {prices_file(settings)} with currency, cpu_hour and gpu_hour",
        )
    first, after = _month(None, clock)
    lines = _lines(context.metadata, spec.tenant, first, after, prices)
    cost = sum(line.cost or 0.0 for line in lines)
    shown = f"tenant {spec.tenant} has used {cost:,.2f} {prices.currency} in {first:%Y-%m}"
    if budget.month_hard is not None and cost >= budget.month_hard:
        raise TerminalError(
            f"{wanted} is refused: {shown}, its hard limit is {budget.month_hard:,.2f}",
            which=spec.name,
            fix=f"wait for the next month, or have budget.month_hard raised in {tenant_file(settings, spec.tenant)}",
        )
    if budget.month_soft is not None and cost >= budget.month_soft:
        warning = f"{shown}, above its soft limit of {budget.month_soft:,.2f}"
        log.warning("%s", warning)
        return warning
    return ""


def _lines(
    store: MetadataStore, tenant: str, first: datetime, after: datetime, prices: Prices | None
) -> list[CostLine]:
    lines = []
    for pipeline, run in store.runs_everywhere(tenant, since=first, until=after):
        cpu, gpu = run.cpu_seconds or 0.0, run.gpu_seconds or 0.0
        cost = prices.of(cpu, gpu) if prices else None
        lines.append(
            CostLine(
                tenant,
                pipeline,
                "scoring",
                run.run_id,
                run.model_version,
                run.planned_at_utc,
                run.rows,
                cpu,
                gpu,
                cost,
            )
        )
    for pipeline, training in store.trainings_everywhere(tenant, since=first, until=after):
        record = training.record
        workers = int(record.get("workers") or 1)
        cpu = float(record.get("train_s") or 0.0) * workers
        gpu = float(record.get("train_s") or 0.0) * workers * float(record.get("gpus_per_worker") or 0.0)
        cost = prices.of(cpu, gpu) if prices else None
        lines.append(
            CostLine(
                tenant,
                pipeline,
                "training",
                training.training_id,
                None,
                training.recorded_at_utc,
                None,
                cpu,
                gpu,
                cost,
            )
        )
    return sorted(lines, key=lambda line: (line.at_utc, line.run))


def _sums(lines: list[CostLine], by: tuple[str, ...]) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[CostLine]] = {}
    for line in lines:
        groups.setdefault(tuple(getattr(line, name) for name in by), []).append(line)
    return [
        {
            **dict(zip(by, key, strict=True)),
            "runs": len(found),
            "rows": sum(line.rows or 0 for line in found),
            "cpu_seconds": round(sum(line.cpu_seconds for line in found), 3),
            "gpu_seconds": round(sum(line.gpu_seconds for line in found), 3),
            "cost": None if found[0].cost is None else round(sum(line.cost or 0.0 for line in found), 6),
        }
        for key, found in sorted(groups.items(), key=lambda item: tuple(map(str, item[0])))
    ]


def _standing(cost: float | None, soft: float | None, hard: float | None) -> str:
    if cost is None or (soft is None and hard is None):
        return "no budget" if soft is None and hard is None else "within"
    if hard is not None and cost >= hard:
        return "spent: nothing new is begun"
    return "above the soft limit" if soft is not None and cost >= soft else "within"


def _month(text: str | None, clock: Clock) -> tuple[datetime, datetime]:
    if text is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", text):
        raise ConfigError(f"is {text!r}", which="month", fix="write it as 2026-11")
    now = clock()
    year, number = (int(text[:4]), int(text[5:])) if text else (now.year, now.month)
    return datetime(year, number, 1, tzinfo=UTC), datetime(
        year + number // 12, number % 12 + 1, 1, tzinfo=UTC
    )
