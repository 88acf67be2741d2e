"""What scoring and training had of the cluster, made, and cost: one line for each attempt, failed ones too, and one for what a pipeline holds in the store."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from tasks.core import Clock, Settings, pipeline_names, utc_now
from tasks.core.budgets import Prices, load_prices
from tasks.core.errors import ConfigError, PenstockError
from tasks.core.records import JsonRecord
from tasks.metadata import UNDER_WAY, MetadataStore
from tasks.wiring.context import open_context
from tasks.wiring.storage import Looks, gib_months, looks_of

log = logging.getLogger(__name__)

_LOST_AFTER = timedelta(minutes=5)
_TABLES = ("tables/predictions", "tables/audit")
_COSTS = ("cost", *(f"cost_{part}" for part in ("used", "idle", "wasted", "read", "written", "stored")))
STORAGE = "storage"
"""Kind of the lines that say what was held, and not what an attempt had."""
MEASURED = "measured"
"""Outcome of a run whose attempts were not kept: recorded by an older release, or while the metadata store was away."""


@dataclass(frozen=True)
class CostLine(JsonRecord):
    """What one attempt of a run or training had, or what a pipeline holds. Used, idle and wasted time add up to the allocated."""

    tenant: str
    pipeline: str
    kind: str
    """`scoring`, `training`, or `storage`, which has no run, no attempt and no time."""
    run: str
    attempt: str
    outcome: str
    """`finished`, `failed`, `expired` or `lost` (its driver died), `taken over`, `under way`, `measured`, or `held`."""
    model_version: int | None
    at_utc: datetime
    """When it ended, or was heard of last."""
    rows: int | None
    bytes_read: int | None
    """Of source rows; None for an attempt of an older release."""
    bytes_written: int | None
    bytes_stored: int | None
    """Of the run, in the tables now, on the line of the attempt that finished it; of storage, everything at the last look."""
    gib_months: float | None
    """Of storage: what was held in the month until now."""
    measured_cpu_seconds: float
    """In committed shards, as the workers measured them; of a training, its epochs."""
    measured_gpu_seconds: float
    allocated_s: float
    """Worker-seconds, from the moment a worker was asked for to its end."""
    used_s: float
    """Of these, in shards that counted, or in epochs that were kept."""
    idle_s: float
    """Of these, starting and waiting."""
    wasted_s: float
    """Of these, in work that came to nothing."""
    cpu_seconds: float
    """Allocated, as `gpu_seconds`: what is paid for."""
    gpu_seconds: float
    cost: float | None
    """The sum of those that follow; None without a price table, or when none of them has a price."""
    cost_used: float | None
    cost_idle: float | None
    cost_wasted: float | None
    cost_read: float | None
    """None where reading has no price, as the next two."""
    cost_written: float | None
    cost_stored: float | None

    @property
    def failed(self) -> bool:
        return self.outcome in ("failed", "expired", "lost", "taken over")


def cost_ledger(
    settings: Settings,
    *,
    month: str | None = None,
    tenant: str | None = None,
    stored: bool = False,
    may_see: Callable[[str], bool] = lambda _: True,
    clock: Clock = utc_now,
) -> dict[str, Any]:
    """Every attempt of a month (UTC, `2026-11`; default: this one), what was held in it, and the sums by tenant, pipeline and version.

    An attempt counts in the month in which it ended, so that a month that is over does not change.

    Args:
        stored: Look into the tables for what each run has there now.
        may_see: Whether a tenant may be shown, by its name.

    Raises:
        ConfigError: The month or the price table is wrong.
    """
    first, after = month_bounds(month, clock)
    prices = load_prices(settings)
    store = MetadataStore.open(settings)
    chosen = [name for name in ([tenant] if tenant else store.tenants()) if may_see(name)]
    lines = [line for name in chosen for line in month_lines(store, name, first, after, prices, clock=clock)]
    by_run = _stored_bytes(settings, chosen) if stored else {}
    lines = [_with_stored(line, by_run) for line in lines]
    return {
        "month": f"{first:%Y-%m}",
        "currency": prices.currency if prices else None,
        "lines": [line.to_json() for line in lines],
        "by_pipeline": _sums(lines, ("tenant", "pipeline", "kind")),
        "by_version": _sums(
            [line for line in lines if line.kind == "scoring"], ("tenant", "pipeline", "model_version")
        ),
        "by_tenant": _sums(lines, ("tenant",)),
        "stored": _stored_sums(by_run),
        "storage": [look for name in chosen for look in _last_looks(store, name, first, after)],
        "unpriced": _unpriced(prices),
    }


def ledger_csv(ledger: dict[str, Any]) -> str:
    """The lines of a ledger as CSV, for the department that pays."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, [*CostLine.__dataclass_fields__, "currency"], lineterminator="\n")
    writer.writeheader()
    for line in ledger["lines"]:
        writer.writerow({**line, "currency": ledger["currency"]})
    return sink.getvalue()


def month_lines(
    store: MetadataStore,
    tenant: str,
    first: datetime,
    after: datetime,
    prices: Prices | None,
    *,
    clock: Clock = utc_now,
) -> list[CostLine]:
    """The lines of a tenant in a month, oldest first."""
    rows = store.allocation_rows(since=first, until=after, tenant=tenant)
    rows += [
        {
            **row,
            "idle_s": row["allocated_s"] - row["used_s"] - row["wasted_s"],
            "outcome": UNDER_WAY,
            "until_utc": row["beat_at_utc"],
        }
        for row in store.lease_rows()
        if row["tenant"] == tenant and row["allocated_s"] > 0 and first <= row["beat_at_utc"] < after
    ]
    versions = store.versions_of_runs(tenant, [row["run_id"] for row in rows])
    now = clock()
    lines = [_line(row, versions.get((row["pipeline"], row["run_id"])), prices, now) for row in rows]
    known = store.allocated_runs(tenant, since=first)
    lines += [
        _measured(line, prices)
        for line in _recorded(store, tenant, first, after)
        if (line["pipeline"], line["run"]) not in known
    ]
    for pipeline, looks in looks_of(store, tenant, first, after).items():
        last = min(now.date(), after.date() - timedelta(days=1))
        lines.append(_held(tenant, pipeline, looks, first.date(), last, prices))
    return sorted(lines, key=lambda line: (line.at_utc, line.run, line.attempt))


def cost_of(row: Mapping[str, Any], prices: Prices) -> float:
    """What an attempt cost: its workers' time, and what it read and wrote."""
    return sum(part for part in _costs(row, prices).values() if part is not None)


def month_bounds(text: str | None, clock: Clock) -> tuple[datetime, datetime]:
    """First moment of a month and of the next one; raises `ConfigError` for what is no month."""
    if text is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", text):
        raise ConfigError(f"is {text!r}", which="month", fix="write it as 2026-11")
    now = clock()
    year, number = (int(text[:4]), int(text[5:])) if text else (now.year, now.month)
    return datetime(year, number, 1, tzinfo=UTC), datetime(
        year + number // 12, number % 12 + 1, 1, tzinfo=UTC
    )


def _line(row: Mapping[str, Any], version: int | None, prices: Prices | None, now: datetime) -> CostLine:
    lost = row["outcome"] == UNDER_WAY and now - row["until_utc"] > _LOST_AFTER
    scoring = row["kind"] == "scoring"
    return CostLine(
        tenant=row["tenant"],
        pipeline=row["pipeline"],
        kind=row["kind"],
        run=row["run_id"],
        attempt=row["holder"],
        outcome="lost" if lost else row["outcome"],
        model_version=version,
        at_utc=row["until_utc"],
        rows=row["rows"] if scoring else None,
        bytes_read=row["bytes_read"],
        bytes_written=row["bytes_written"] if scoring else None,
        bytes_stored=None,
        gib_months=None,
        measured_cpu_seconds=row["cpu_seconds"],
        measured_gpu_seconds=row["gpu_seconds"],
        allocated_s=row["allocated_s"],
        used_s=row["used_s"],
        idle_s=row["idle_s"],
        wasted_s=row["wasted_s"],
        cpu_seconds=row["allocated_s"] * row["cpus"],
        gpu_seconds=row["allocated_s"] * row["gpus"],
        **_priced({} if prices is None else _costs(row, prices)),
    )


def _costs(row: Mapping[str, Any], prices: Prices) -> dict[str, float | None]:
    """The parts of what an attempt cost."""
    idle_s = row["allocated_s"] - row["used_s"] - row["wasted_s"]
    parts = (("used", row["used_s"]), ("idle", idle_s), ("wasted", row["wasted_s"]))
    return {
        **{f"cost_{part}": prices.of(s * row["cpus"], s * row["gpus"]) for part, s in parts},
        "cost_read": prices.of_read(row["bytes_read"]),
        "cost_written": prices.of_written(row["bytes_written"] if row["kind"] == "scoring" else None),
    }


def _priced(parts: Mapping[str, float | None]) -> dict[str, float | None]:
    """A line's costs: their sum and all of them."""
    known = [part for part in parts.values() if part is not None]
    return {**dict.fromkeys(_COSTS), **parts, "cost": sum(known) if known else None}


def _held(
    tenant: str, pipeline: str, looks: Looks, first: date, last: date, prices: Prices | None
) -> CostLine:
    """The line of what a pipeline held from the first to the last day of a month."""
    months, looked = gib_months(looks, first, last), max(looks)
    price = prices.stored_gib_month if prices else None
    return CostLine(
        tenant=tenant,
        pipeline=pipeline,
        kind=STORAGE,
        run="",
        attempt="",
        outcome="held",
        model_version=None,
        at_utc=datetime.combine(last, time.min, UTC),
        rows=None,
        bytes_read=None,
        bytes_written=None,
        bytes_stored=sum(looks[looked].values()),
        gib_months=months,
        measured_cpu_seconds=0.0,
        measured_gpu_seconds=0.0,
        allocated_s=0.0,
        used_s=0.0,
        idle_s=0.0,
        wasted_s=0.0,
        cpu_seconds=0.0,
        gpu_seconds=0.0,
        **_priced({"cost_stored": None if price is None else months * price}),
    )


def _last_looks(
    store: MetadataStore, tenant: str, first: datetime, after: datetime
) -> Iterator[dict[str, Any]]:
    """What each pipeline held when it was looked at last in a month, in parts."""
    for pipeline, looks in looks_of(store, tenant, first, after).items():
        day = max(looks)
        yield {
            "tenant": tenant,
            "pipeline": pipeline,
            "day": day.isoformat(),
            "bytes": sum(looks[day].values()),
            **looks[day],
        }


def _unpriced(prices: Prices | None) -> list[str]:
    """Of what has no price though other things have."""
    if prices is None:
        return []
    names = {"read_gib": "reading", "written_gib": "writing", "stored_gib_month": "storage"}
    return [name for field, name in names.items() if getattr(prices, field) is None]


def _recorded(store: MetadataStore, tenant: str, first: datetime, after: datetime) -> list[dict[str, Any]]:
    """Runs and trainings as they were recorded when they were done."""
    found = [
        {
            "pipeline": pipeline,
            "kind": "scoring",
            "run": run.run_id,
            "model_version": run.model_version,
            "at_utc": run.planned_at_utc,
            "rows": run.rows,
            "cpu": run.cpu_seconds,
            "gpu": run.gpu_seconds or 0.0,
        }
        for pipeline, run in store.runs_everywhere(tenant, since=first, until=after)
        if run.cpu_seconds is not None
    ]
    for pipeline, training in store.trainings_everywhere(tenant, since=first, until=after):
        record = training.record
        spent_s = float(record.get("train_s") or 0.0) * int(record.get("workers") or 1)
        found.append(
            {
                "pipeline": pipeline,
                "kind": "training",
                "run": training.training_id,
                "model_version": None,
                "at_utc": training.recorded_at_utc,
                "rows": None,
                "cpu": spent_s,
                "gpu": spent_s * float(record.get("gpus_per_worker") or 0.0),
            }
        )
    return [{"tenant": tenant, **line} for line in found]


def _measured(line: Mapping[str, Any], prices: Prices | None) -> CostLine:
    """A run without attempts: what was measured is all that is known, and counts as used."""
    cost = None if prices is None else prices.of(line["cpu"], line["gpu"])
    return CostLine(
        tenant=line["tenant"],
        pipeline=line["pipeline"],
        kind=line["kind"],
        run=line["run"],
        attempt="",
        outcome=MEASURED,
        model_version=line["model_version"],
        at_utc=line["at_utc"],
        rows=line["rows"],
        bytes_read=None,
        bytes_written=None,
        bytes_stored=None,
        gib_months=None,
        measured_cpu_seconds=line["cpu"],
        measured_gpu_seconds=line["gpu"],
        allocated_s=line["cpu"],
        used_s=line["cpu"],
        idle_s=0.0,
        wasted_s=0.0,
        cpu_seconds=line["cpu"],
        gpu_seconds=line["gpu"],
        **_priced({} if cost is None else {"cost_used": cost, "cost_idle": 0.0, "cost_wasted": 0.0}),
    )


def _with_stored(line: CostLine, by_run: Mapping[tuple[str, str, str], int]) -> CostLine:
    found = by_run.get((line.tenant, line.pipeline, line.run))
    if line.outcome not in ("finished", MEASURED) or found is None:
        return line
    return CostLine(**{**line.__dict__, "bytes_stored": found})


def _stored_bytes(settings: Settings, tenants: list[str]) -> dict[tuple[str, str, str], int]:
    """(tenant, pipeline, run) -> bytes of its files in the predictions and audit tables now."""
    from tasks.core.delta import table_view

    found: dict[tuple[str, str, str], int] = {}
    for name in pipeline_names(settings):
        try:
            context = open_context(settings, name)
            if context.spec.tenant not in tenants:
                continue
            views = [table_view(context.store, folder) for folder in _TABLES]
            for file in (file for view in views if view is not None for file in view.files):
                run = file.name.run_id if file.name is not None else ""
                key = (context.spec.tenant, name, run)
                found[key] = found.get(key, 0) + file.size_bytes
        except PenstockError as error:
            log.warning("What %s has stored is not known: %s", name, error)
    return found


def _stored_sums(by_run: Mapping[tuple[str, str, str], int]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, str], int] = {}
    for (tenant, pipeline, _), size in by_run.items():
        sums[tenant, pipeline] = sums.get((tenant, pipeline), 0) + size
    return [
        {"tenant": tenant, "pipeline": pipeline, "bytes": size}
        for (tenant, pipeline), size in sorted(sums.items())
    ]


def _sums(lines: list[CostLine], by: tuple[str, ...]) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[CostLine]] = {}
    for line in lines:
        groups.setdefault(tuple(getattr(line, name) for name in by), []).append(line)
    seconds = ("allocated_s", "used_s", "idle_s", "wasted_s", "cpu_seconds", "gpu_seconds", "gib_months")
    return [
        {
            **dict(zip(by, key, strict=True)),
            "runs": len({(line.pipeline, line.run) for line in found if line.kind != STORAGE}),
            "attempts": sum(line.kind != STORAGE for line in found),
            "failed": sum(line.failed for line in found),
            "rows": sum(line.rows or 0 for line in found),
            "bytes_read": sum(line.bytes_read or 0 for line in found),
            "bytes_written": sum(line.bytes_written or 0 for line in found),
            **{name: round(sum(getattr(line, name) or 0.0 for line in found), 6) for name in seconds},
            **{name: _sum(getattr(line, name) for line in found) for name in _COSTS},
        }
        for key, found in sorted(groups.items(), key=lambda item: tuple(map(str, item[0])))
    ]


def _sum(parts: Iterable[float | None]) -> float | None:
    """None when no part is known."""
    known = [part for part in parts if part is not None]
    return round(sum(known), 6) if known else None
