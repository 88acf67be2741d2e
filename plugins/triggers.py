"""What starts `<name>.train`: its assets, the DAG that watches for changes, and the words for a run's causes. Wiring only."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, CronTriggerTimetable

from tasks.core.spec import PipelineSpec

WATCH = "*/15 * * * *"
"""When `<name>.watch` looks; what it finds unchanged costs it a listing of the source and some small files."""
ASSETS = {"new_data": "data", "drift": "drift", "code": "code"}
WORDS = {
    "data": "new data",
    "drift": "drift",
    "code": "a change of the code",
}


def trigger_asset(spec: PipelineSpec, trigger: str) -> Asset:
    """Updated when `trigger` asks for a training."""
    kind = ASSETS[trigger]
    return Asset(name=f"{spec.model_name}.{kind}", uri=f"penstock://{spec.prefix}/{kind}", group="penstock")


def train_schedule(spec: PipelineSpec, cron: CronTriggerTimetable | None) -> Any:
    """Cron, any of the pipeline's triggers, or both.

    Airflow keeps one line for each asset and DAG in its queue and takes all of them at once, so any number of updates
    while a run waits or works is one run after it.
    """
    assets: list[Any] = [trigger_asset(spec, trigger) for trigger in spec.training.triggers]
    if not assets:
        return cron
    any_of = reduce(or_, assets) if len(assets) > 1 else assets
    return AssetOrTimeSchedule(timetable=cron, assets=any_of) if cron else any_of


def causes(context: Mapping[str, Any]) -> list[str]:
    """Why this run was started, one line a cause: the person, the case, the clock, or each asset; with the newest reason."""
    run = context["dag_run"]
    events = context.get("triggering_asset_events") or {}
    found = []
    for asset, updates in events.items():
        kind = WORDS.get(asset.name.rsplit(".", 1)[-1], asset.name)
        newest = updates[-1]
        times = f", {len(updates)} updates" if len(updates) > 1 else ""
        reason = (newest.extra or {}).get("reason") or f"asset {asset.name} was updated"
        found.append(f"{kind}{times}: {reason} ({newest.source_dag_id or 'by hand'})")
    if found:
        return found
    kind = str(getattr(run, "run_type", "")).rsplit(".", 1)[-1].lower()
    user = getattr(run, "triggering_user_name", None)
    reason = str((getattr(run, "conf", None) or {}).get("reason") or "").strip()
    if not user and reason:  # another DAG, on behalf of somebody
        return [reason]
    who = f"by hand, {user}" if user else {"scheduled": "the schedule"}.get(kind, kind or "by hand")
    return [f"{who}: {reason}" if reason else who]
