"""Steps of `<pipeline>.monitor`: measure, join labels, decide, report.

Every day is measured against the reference of the model bundle that scored it. Signals are kept by day and
run in the metadata store, performance and reports in the pipeline's store.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from tasks.core import Settings, utc_now
from tasks.core.errors import DataError, LabelsNotMature, NotFound, PipelineCodeError
from tasks.core.ids import canonical_json
from tasks.wiring.causes import explained
from tasks.wiring.context import Context, open_context, parse_day, window
from tasks.wiring.decided import decided_on
from tasks.wiring.deciding import answers_of, decision_of
from tasks.wiring.measured import (
    LABELS_BACK,
    labelled_history,
    performance_key,
    performances_of,
    profiles_by_bundle,
    published_in,
    run_by_day,
    scored_by,
    scored_rows,
    signals_of,
)
from tasks.wiring.series import keep_drift, keep_performance

if TYPE_CHECKING:
    from tasks.metadata import ScoringRun
    from tasks.monitoring import DayPerformance

logger = logging.getLogger(__name__)

_DRAWN = timedelta(days=27)
"""A report's charts show so many days before its last one, when its window is shorter."""


def measure_window(
    settings: Settings,
    pipeline: str,
    *,
    first_day: str | None = None,
    last_day: str | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Drift and contract signals of each published day, from the profiles written at scoring time.

    Without days: those of the newest publication.
    """
    from tasks.monitoring import Monitor, measure_days, unjudged_day
    from tasks.monitoring.answers import confirmed_shifts, excluded_days
    from tasks.monitoring.decision import FAULT

    context = open_context(settings, pipeline)
    first, last = _window(context, first_day, last_day)
    answered = answers_of(context, model_version=None)  # an answer about damage says nothing of inputs
    confirmed = confirmed_shifts(answered)
    taught = [day for shift in confirmed for day in shift.days]
    measured = 0
    faults = alarms = 0
    for bundle, by_day, dead_letters, unread in profiles_by_bundle(context, first, last, taught):
        monitor = Monitor.of(context.spec, bundle.profile_spec, bundle.reference_profiles)
        found = measure_days(
            context.spec,
            monitor,
            profiles=by_day,
            first_day=first,
            last_day=last,
            dead_letters=dead_letters,
            confirmed=confirmed,
            excluded=excluded_days(answered, faults=FAULT),
        )
        grid = bundle.profile_spec.digest
        found += tuple(
            unjudged_day(day, rows, why, grid=grid) for day, (rows, why) in unread.items() if day >= first
        )
        runs = run_by_day(context, [signals.day for signals in found])
        for signals in found:
            run = runs[signals.day]
            context.metadata.record_signals(
                context.spec,
                day=signals.day,
                run_id=run.run_id,
                model_version=run.model_version or 0,
                signals=signals.to_json(),
            )
        keep_drift(context, found, runs)
        measured += len(found)
        faults += sum(bool(signals.faults) for signals in found)
        alarms += sum(bool(signals.alarms) for signals in found)
    result = {
        "first_day": first.isoformat(),
        "last_day": last.isoformat(),
        "days": measured,
        "days_with_data_fault": faults,
        "days_with_drift_alarm": alarms,
    }
    context.evidence(dag_run, "measurement", result)
    return result


def join_labels(
    settings: Settings,
    pipeline: str,
    *,
    first_day: str,
    last_day: str,
    as_of: str | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Realised performance of each day whose labels are known on `as_of` (default: today).

    A day is measured again when it is asked for again, so labels that come late or change are taken in. Of the 35 days
    before the window those are measured too whose labels were not all there and are due by now; labels of all these days
    are read at once.
    """
    context = open_context(settings, pipeline)
    first, last = _window(context, first_day, last_day)
    asked = parse_day(as_of, "as_of") or utc_now().date()
    days = published_in(context, first, last)
    known = {found.day: found for found in performances_of(context, first - LABELS_BACK, last)}
    earlier = _to_join_again(context, first, known, asked)
    labels, problem = _labels(context, {**earlier, **days}, asked)
    states: dict[str, int] = defaultdict(int)
    rows = 0
    performances = []
    runs = run_by_day(context, {**earlier, **days})
    late = {}
    for day, run_id in {**earlier, **days}.items():
        before = known.get(day)
        found = _joined(context, day, runs.get(day), labels, asked, before, problem, later=day < first)
        context.store.put(performance_key(day, run_id), canonical_json(found.to_json()))
        performances.append(found)
        if day >= first:
            states[found.state] += 1
            rows += found.labelled_rows
        elif found.labelled_rows > (before.labelled_rows if before else 0):
            late[day.isoformat()] = f"{before.state if before else 'not joined'} -> {found.state}"
    keep_performance(context, performances, runs)
    result = {
        "first_day": first.isoformat(),
        "last_day": last.isoformat(),
        "as_of": asked.isoformat(),
        "days_labelled": states.get("measured", 0),
        "rows_labelled": rows,
        "states": dict(states),
        "late_days": late,
        "problem": problem,
    }
    context.evidence(dag_run, "labels", result)
    return result


def decide_window(
    settings: Settings, pipeline: str, *, first_day: str, last_day: str, dag_run: str | None = None
) -> dict[str, Any]:
    """The verdict on a window, what to do about it, and why; kept as a decision with its evidence."""
    context = open_context(settings, pipeline)
    first, last = _window(context, first_day, last_day)
    history = labelled_history(context, first, last)
    decision = decision_of(context, first, last, history)
    causes = explained(context, decision, history).causes
    record = {**decision.to_json(), "causes": [cause.to_json() for cause in causes]}
    context.metadata.record_decision(
        context.spec,
        action=decision.action,
        verdict=decision.verdict,
        reasons=decision.reasons,
        first_day=first,
        last_day=last,
        dag_run=dag_run,
        record=record,
    )
    key = f"monitoring/{first}_{last}/decision.json"
    context.store.put(key, canonical_json(record))
    result = {
        "verdict": decision.verdict,
        "action": decision.action,
        "headline": decision.headline,
        "reasons": list(decision.reasons),
        "next_steps": list(decision.next_steps),
        "operations": [found.statement for found in decision.operations],
        "causes": [cause.what for cause in causes],
        "decision_key": key,
    }
    context.evidence(dag_run, "decision", {**result, "outcome": decision.verdict})
    return result


def report_window(
    settings: Settings, pipeline: str, *, first_day: str, last_day: str, dag_run: str | None = None
) -> dict[str, Any]:
    """One static page for a window: verdict first, then the charts it stands on.

    Kept once more for each kind of incident that is seen: a case leads to it also when its days have come again, mended.
    """
    from tasks.monitoring import Monitor, render_report
    from tasks.monitoring.cases import kinds_of, report_key

    context = open_context(settings, pipeline)
    first, last = _window(context, first_day, last_day)
    history = labelled_history(context, first, last)
    scorers = profiles_by_bundle(context, first, last)
    newest = max(scorers, key=lambda item: max([*item[1], *item[3]]))[0]
    decision = decision_of(context, first, last, history)
    found = explained(context, decision, history)
    page = render_report(
        context.spec,
        decision=decision,
        signals=signals_of(context, first, last),
        before=signals_of(context, last - _DRAWN, first - timedelta(days=1)),
        performances=history.performances,
        gaps=history.gaps,
        profiles={day: profile for _, by_day, *_ in scorers for day, profile in by_day.items()},
        monitor=Monitor.of(context.spec, newest.profile_spec, newest.reference_profiles),
        model=scored_by(context, first, last),
        causes=found.causes,
        slices=found.slices,
        changes=found.changes,
        decided=decided_on(context, first, last),
    ).encode()
    for kind in ("", *kinds_of(decision)):
        context.store.put(report_key(first, last, kind), page)
    key = report_key(first, last)
    result = {"report_key": key, "report_url": context.report_url(key)}
    context.evidence(dag_run, "report", result)
    return result


def monitor_window(
    settings: Settings,
    pipeline: str,
    *,
    first_day: str | None = None,
    last_day: str | None = None,
    as_of: str | None = None,
) -> dict[str, Any]:
    """All of it by hand: measure, join labels, decide, report."""
    measured = measure_window(settings, pipeline, first_day=first_day, last_day=last_day)
    days = {"first_day": measured["first_day"], "last_day": measured["last_day"]}
    labelled = join_labels(settings, pipeline, **days, as_of=as_of)
    decided = decide_window(settings, pipeline, **days)
    return {**measured, **labelled, **decided, **report_window(settings, pipeline, **days)}


def _window(context: Context, first_day: str | None, last_day: str | None) -> tuple[date, date]:
    first, last = parse_day(first_day, "first_day"), parse_day(last_day, "last_day")
    if first is None and last is None:
        newest = context.metadata.publications(context.spec, limit=1)
        if not newest:
            raise _nothing_published(context)
        first, last = min(newest[0].days), max(newest[0].days)
    chosen = window(first or last, last or first)  # type: ignore[arg-type]
    if not published_in(context, chosen.first_day, chosen.last_day):
        raise _nothing_published(context, chosen.first_day, chosen.last_day)
    return chosen.first_day, chosen.last_day


def _nothing_published(context: Context, *days: date) -> NotFound:
    when = f" from {days[0]} to {days[1]}" if days else ""
    return NotFound(
        f"has no published predictions{when}",
        which=context.spec.name,
        fix=f"run {context.spec.name}.score for those days first",
    )


def _to_join_again(
    context: Context, first: date, known: dict[date, DayPerformance], as_of: date
) -> dict[date, str]:
    """Published days before the window whose labels are worth another look, and their runs."""
    from tasks.monitoring import to_join_again

    before = published_in(context, first - LABELS_BACK, first - timedelta(days=1))
    return {
        day: run_id
        for day, run_id in before.items()
        if to_join_again(context.spec, known.get(day), day, as_of=as_of)
    }


def _joined(
    context: Context,
    day: date,
    run: ScoringRun | None,
    labels: Any,
    as_of: date,
    before: DayPerformance | None,
    problem: str | None,
    *,
    later: bool,
) -> DayPerformance:
    """A day's performance by what is known now; predictions of a day that still has no label are not read again."""
    import pyarrow.compute as pc

    from tasks.monitoring import performance, remembered, still_missing, unread

    own = None if labels is None else labels.filter(pc.field("day") == day)
    if later and before is not None and not before.labelled_rows and not _any_label(own):
        found = still_missing(context.spec, before, as_of=as_of)
    else:
        scored = scored_rows(context, day, run)
        found = performance(context.spec, day=day, scored=scored, labels=own, as_of=as_of)
    if problem is not None:
        found = unread(context.spec, found, before, problem=problem, as_of=as_of)
    return remembered(context.spec, found, before, as_of=as_of, later=later)


def _any_label(labels: Any) -> bool:
    return labels is not None and labels.column("label").null_count < labels.num_rows


def _labels(context: Context, days: dict[date, str], as_of: date) -> tuple[Any, str | None]:
    """(labels, what is wrong with their source); the decision on the data must not wait for labels that cannot be read."""
    from tasks.data import labels

    try:
        return labels(context.settings, context.spec, days=list(days), as_of=as_of), None
    except LabelsNotMature:
        return None, None
    except (DataError, PipelineCodeError) as error:
        logger.warning("labels cannot be read: %s", error)
        return None, f"{error.which} {error.what}"
