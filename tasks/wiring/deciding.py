"""The decision on a window from what is stored: signals, labels, operations, and what people have answered."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING

from tasks.core import utc_now
from tasks.core.errors import ConfigError, NotFound
from tasks.wiring.context import Context
from tasks.wiring.measured import (
    LABELS_BACK,
    LabelledHistory,
    bundle_by_day,
    published_in,
    run_by_day,
    scorer_of,
    signals_of,
)

if TYPE_CHECKING:
    from tasks.metadata import ScoringRun
    from tasks.monitoring import DayDecision, DayPerformance, Decision, OperationFinding, PerformanceSignal
    from tasks.monitoring.answers import Answered
    from tasks.monitoring.operations import RunCost

_NEIGHBOURS = timedelta(days=3)
"""A day's verdict looks at the two days before and after it."""
_DECISIONS, _RUNS = 200, 60
_DONE = ("published", "verified")


def decision_of(context: Context, first: date, last: date, history: LabelledHistory) -> Decision:
    """The decision on a window, from what is measured now. Raises `NotFound` when nothing is.

    Args:
        history: Of this window.
    """
    from tasks.monitoring import decide
    from tasks.monitoring.operations import label_evidence, taken_in

    signals = signals_of(context, first, last)
    if not signals:
        raise NotFound(
            f"was not measured from {first} to {last}",
            which=context.spec.name,
            fix="run the measure step of these days first",
        )
    performances, gaps = history.performances, history.gaps
    scorers = bundle_by_day(context, [found.day for found in gaps] + [signals[-1].day])
    corrected = _corrected(context, first, last, performances, gaps)
    recent = [found for found in performances if found.day >= first - LABELS_BACK]
    changed = taken_in([(day.day, before, day.verdict) for day, before in corrected])
    decision = decide(
        context.spec,
        signals,
        [found for found in performances if found.day >= first],
        # Labelled days of a model that is gone say nothing of the one that scored this window.
        [gap for gap in gaps if gap.day >= first or scorers.get(gap.day) == scorers.get(signals[-1].day)],
        answered=answers_of(context, model_version=scorer_of(context, first, last)),
        operations=[*_operations(context, first, last, recent), *([changed] if changed else [])],
    )
    return replace(
        decision,
        corrected=tuple(day for day, _ in corrected),
        evidence={**decision.evidence, **label_evidence(context.spec, recent)},
    )


def answers_of(context: Context, *, model_version: int | None) -> tuple[Answered, ...]:
    """What people have answered about earlier cases; about damage, of one version only."""
    from tasks.monitoring.cases import answered_cases, read_cases

    return answered_cases(read_cases(context.store), model_version=model_version)


def _corrected(
    context: Context,
    first: date,
    last: date,
    performances: list[DayPerformance],
    gaps: list[PerformanceSignal],
) -> list[tuple[DayDecision, str]]:
    """Days before the window of which labels that came late now say something else, with what was said before."""
    from tasks.monitoring import decide

    late = {found.day for found in performances if found.taken_in_later and found.day < first}
    measured = signals_of(context, min(late) - _NEIGHBOURS, first - timedelta(days=1)) if late else []
    if not measured:
        return []
    before: dict[date, str] = {}
    for decision in context.metadata.decisions(context.spec, limit=_DECISIONS):
        if (decision.first_day, decision.last_day) == (first, last):
            continue  # an earlier decision on this window may have said so already, and says it again
        for line in (*(decision.record.get("days") or ()), *(decision.record.get("corrected") or ())):
            before.setdefault(date.fromisoformat(str(line["day"])), str(line["verdict"]))
    return [
        (day, before[day.day])
        for day in decide(context.spec, measured, performances, gaps).days
        if day.day in late and before.get(day.day, day.verdict) != day.verdict
    ]


def _operations(
    context: Context, first: date, last: date, performances: list[DayPerformance]
) -> list[OperationFinding]:
    """What is to be said of labels, freshness, cost and clocks, seen from the end of a window."""
    from tasks.monitoring import operations
    from tasks.monitoring.alert_rules import load_rules

    now, spec = utc_now(), context.spec
    published = context.metadata.published_days(spec)
    runs = [_cost(run) for run in context.metadata.runs(spec, limit=_RUNS) if run.status in _DONE][::-1]
    scored = {run_id for day, run_id in published.items() if first <= day <= last}
    upto = max((place for place, run in enumerate(runs) if run.run_id in scored), default=-1)
    try:
        own = load_rules(context.settings).pipelines.get(spec.name)
    except ConfigError:  # platform.alerts fails for it; the verdict on the data does not depend on it
        own = None
    asked = max((found.as_of for found in performances if found.as_of), default=None)
    fresh = operations.freshness(
        max(published, default=None), now=now, objective_hours=own.freshness_hours if own else None
    )
    absent = operations.days_absent(published, first=first, last=last)
    return [
        *(operations.labels_late(spec, performances, as_of=asked) if asked else ()),
        *([fresh] if fresh else ()),
        *([absent] if absent else ()),
        *operations.scoring_cost(runs[: upto + 1]),
        *operations.clock_skew(list(published), runs[-3:], now=now),
        *_other_columns(context, first, last),
    ]


def _other_columns(context: Context, first: date, last: date) -> list[OperationFinding]:
    from tasks.model import fetch_bundle
    from tasks.monitoring.operations import other_columns

    newest = max(published_in(context, first, last))
    run = run_by_day(context, [newest]).get(newest)
    if run is None or not (run.bundle_digest and run.snapshot_id):
        return []
    bundle = fetch_bundle(context.store, run.bundle_digest, context.settings.cache_dir)
    try:
        trained, scored = (
            [
                item
                for item in context.snapshot(name).schema
                if item[0] not in context.spec.label.known_afterwards
            ]
            for name in (bundle.manifest.snapshot_id, run.snapshot_id)
        )
    except NotFound:  # a snapshot was swept
        return []
    found = other_columns(trained, scored)
    return [found] if found else []


def _cost(run: ScoringRun) -> RunCost:
    from tasks.monitoring.operations import RunCost

    return RunCost(
        run.run_id,
        run.rows or 0,
        run.cpu_seconds or 0.0,
        run.gpu_seconds or 0.0,
        run.wall_s or 0.0,
        run.model_version,
        run.planned_at_utc,
    )
