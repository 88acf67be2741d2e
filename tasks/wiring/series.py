"""Metric series of registered models: what the steps add to them, and reading them.

Points are about a version, so training and evaluation are entered when the model is registered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.core import Settings, Verdict
from tasks.core.errors import NotFound
from tasks.metadata import NewMetric
from tasks.wiring.context import Context, open_context, parse_day

if TYPE_CHECKING:
    from tasks.metadata import ScoringRun
    from tasks.monitoring import DayPerformance, DaySignals

_Z95 = 1.959964


def keep_registered(context: Context, version: int, trained: Mapping[str, Any], evaluation_key: str) -> None:
    """What training and evaluation measured of a version that is now registered, under the last validation day."""
    from tasks.evaluation import load_evaluation

    found = load_evaluation(context.store, evaluation_key)
    day = found.validation_last_day
    points = [
        NewMetric(name, version, day, float(value), "training", str(trained["training_id"]))
        for name, value in dict(trained.get("metrics") or {}).items()
        if isinstance(value, int | float)
    ]
    groups = {"": found.models.get("candidate", {})}
    groups |= {f"{pair}:": metrics for pair, metrics in found.differences.items()}
    points += [
        NewMetric(
            f"{group}{name}",
            version,
            day,
            item.value,
            "evaluation",
            evaluation_key,
            item.low,
            item.high,
            found.rows,
        )
        for group, metrics in groups.items()
        for name, item in metrics.items()
        if item.value is not None
    ]
    context.metadata.record_metrics(context.spec, points)


def keep_canary(context: Context, version: int, verdict: Verdict) -> None:
    """The paired difference of each day of a canary: challenger's less champion's Brier loss."""
    from tasks.evaluation import CanaryDay

    if verdict.evidence_key is None:
        return
    days = [CanaryDay.from_json(day) for day in json.loads(context.store.get(verdict.evidence_key))["days"]]
    points = [
        NewMetric(
            "brier_difference",
            version,
            day.day,
            day.difference,
            "canary",
            verdict.evidence_key,
            rows=day.rows,
        )
        for day in days
    ]
    context.metadata.record_metrics(context.spec, points)


def keep_performance(
    context: Context, found: Sequence[DayPerformance], runs: Mapping[Any, ScoringRun]
) -> None:
    """Realised AUC and Brier score of each day whose labels are known, with 95 % intervals."""
    points = []
    for day in found:
        run = runs.get(day.day)
        for name, value, error in (("auc", day.auc, day.auc_se), ("brier", day.brier, day.brier_se)):
            if run is None or run.model_version is None or value is None:
                continue
            low, high = (None, None) if error is None else (value - _Z95 * error, value + _Z95 * error)
            points.append(
                NewMetric(
                    name,
                    run.model_version,
                    day.day,
                    value,
                    "monitor",
                    run.run_id,
                    low,
                    high,
                    day.labelled_rows,
                )
            )
    context.metadata.record_metrics(context.spec, points)


def keep_drift(context: Context, found: Sequence[DaySignals], runs: Mapping[Any, ScoringRun]) -> None:
    """Of each scored day: how far each channel moved (`drift:<channel>`, in its normal spread), alarms and mean score."""
    points = []
    for day in found:
        run = runs.get(day.day)
        if run is None or run.model_version is None:
            continue
        values = {f"drift:{channel.channel}": channel.z for channel in day.drift}
        if day.judged:
            values["drift_alarms"] = float(len(day.alarms))
        if day.score_mean is not None:
            values["score_mean"] = day.score_mean
        points += [
            NewMetric(name, run.model_version, day.day, value, "monitor", run.run_id, rows=day.rows)
            for name, value in values.items()
        ]
    context.metadata.record_metrics(context.spec, points)


def metric_series(
    settings: Settings,
    pipeline: str,
    *,
    metric: str | None = None,
    version: int | None = None,
    since: str | None = None,
    until: str | None = None,
    source: str | None = None,
    superseded: bool = False,
) -> dict[str, Any]:
    """The points of a metric by day, both days included; without a metric, the names there are.

    Raises:
        NotFound: No such metric was measured; those that were are named.
    """
    context = open_context(settings, pipeline)
    names = context.metadata.metric_names(context.spec)
    if metric is None:
        return {"pipeline": pipeline, "metrics": names}
    if metric not in names:
        raise NotFound(
            f"has no metric {metric!r}",
            which=pipeline,
            fix=f"use one of: {', '.join(names)}" if names else "register a model or run the monitor first",
        )
    points = context.metadata.series(
        context.spec,
        metric,
        model_version=version,
        since=parse_day(since, "since"),
        until=parse_day(until, "until"),
        source=source,
        superseded=superseded,
    )
    return {"pipeline": pipeline, "metric": metric, "points": [point.to_json() for point in points]}
