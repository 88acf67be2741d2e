"""Steps of `<pipeline>.monitor`: measure, join labels, decide, report.

Every day is measured against the reference of the model bundle that scored it. Signals are kept by day and
run in the metadata store, performance and reports in the pipeline's store.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from tasks.core import Settings, utc_now
from tasks.core.errors import LabelsNotMature, NotFound
from tasks.core.ids import canonical_json
from tasks.wiring.causes import explained
from tasks.wiring.context import Context, open_context, parse_day, window
from tasks.wiring.decided import decided_on
from tasks.wiring.series import keep_drift, keep_performance

if TYPE_CHECKING:
    from tasks.metadata import ScoringRun
    from tasks.model import Bundle, Profile
    from tasks.monitoring import DayPerformance, DaySignals, Decision, PerformanceSignal

_HISTORY = timedelta(days=60)
"""How far back measured days matter: four same weekdays with gaps, and the run-up of the CUSUM."""


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
    from tasks.monitoring import Monitor, measure_days

    context = open_context(settings, pipeline)
    first, last = _window(context, first_day, last_day)
    measured = 0
    faults = alarms = 0
    for bundle, by_day, dead_letters in _profiles_by_bundle(context, first, last):
        monitor = Monitor.of(context.spec, bundle.profile_spec, bundle.reference_profiles)
        found = measure_days(
            context.spec,
            monitor,
            profiles=by_day,
            first_day=first,
            last_day=last,
            dead_letters=dead_letters,
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

    A day is measured again when it is asked for again, so labels that come late or change are taken in.
    """
    from tasks.monitoring import performance

    context = open_context(settings, pipeline)
    first, last = _window(context, first_day, last_day)
    asked = parse_day(as_of, "as_of") or utc_now().date()
    days = _published(context, first, last)
    labels = _labels(context, days, asked)
    states: dict[str, int] = defaultdict(int)
    rows = 0
    performances = []
    runs = run_by_day(context, days)
    for day, run_id in days.items():
        scored = scored_rows(context, day, runs.get(day))
        found = performance(context.spec, day=day, scored=scored, labels=labels, as_of=asked)
        context.store.put(performance_key(day, run_id), canonical_json(found.to_json()))
        states[found.state] += 1
        rows += found.labelled_rows
        performances.append(found)
    keep_performance(context, performances, runs)
    result = {
        "first_day": first.isoformat(),
        "last_day": last.isoformat(),
        "as_of": asked.isoformat(),
        "days_labelled": states.get("measured", 0),
        "rows_labelled": rows,
        "states": dict(states),
    }
    context.evidence(dag_run, "labels", result)
    return result


def decide_window(
    settings: Settings, pipeline: str, *, first_day: str, last_day: str, dag_run: str | None = None
) -> dict[str, Any]:
    """The verdict on a window, what to do about it, and why; kept as a decision with its evidence."""
    context = open_context(settings, pipeline)
    first, last = _window(context, first_day, last_day)
    decision = decision_of(context, first, last)
    causes = explained(context, decision).causes
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
        "causes": [cause.what for cause in causes],
        "decision_key": key,
    }
    context.evidence(dag_run, "decision", {**result, "outcome": decision.verdict})
    return result


def report_window(
    settings: Settings, pipeline: str, *, first_day: str, last_day: str, dag_run: str | None = None
) -> dict[str, Any]:
    """One static page for a window: verdict first, then the charts it stands on."""
    from tasks.monitoring import Monitor, render_report

    context = open_context(settings, pipeline)
    first, last = _window(context, first_day, last_day)
    performances, gaps = labelled_history(context, first, last)
    scorers = _profiles_by_bundle(context, first, last)
    newest = max(scorers, key=lambda item: max(item[1]))[0]
    decision = decision_of(context, first, last)
    found = explained(context, decision)
    html = render_report(
        context.spec,
        decision=decision,
        signals=signals_of(context, first, last),
        performances=[one for one in performances if one.day >= first],
        gaps=gaps,
        profiles={day: profile for _, by_day, _ in scorers for day, profile in by_day.items()},
        monitor=Monitor.of(context.spec, newest.profile_spec, newest.reference_profiles),
        model=_scored_by(context, first, last),
        causes=found.causes,
        slices=found.slices,
        changes=found.changes,
        decided=decided_on(context, first, last),
    )
    key = f"monitoring/{first}_{last}/report.html"
    context.store.put(key, html.encode())
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
    if not _published(context, chosen.first_day, chosen.last_day):
        raise _nothing_published(context, chosen.first_day, chosen.last_day)
    return chosen.first_day, chosen.last_day


def _nothing_published(context: Context, *days: date) -> NotFound:
    when = f" from {days[0]} to {days[1]}" if days else ""
    return NotFound(
        f"has no published predictions{when}",
        which=context.spec.name,
        fix=f"run {context.spec.name}.score for those days first",
    )


def _published(context: Context, first: date, last: date) -> dict[date, str]:
    published = context.metadata.published_days(context.spec)
    return {day: run_id for day, run_id in published.items() if first <= day <= last}


def _profiles_by_bundle(
    context: Context, first: date, last: date
) -> list[tuple[Bundle, dict[date, Profile], dict[date, int]]]:
    """(bundle, profile by day, dead letters by day) of every bundle that scored a day of the window.

    Days before the window that the same bundle scored are included: they are its history.
    """
    from tasks.inference import published_records
    from tasks.model import Profile, fetch_bundle

    days = _published(context, first - _HISTORY, last)
    digests = _bundle_by_day(context, list(days))
    wanted = {digest for day, digest in digests.items() if day >= first}
    records = published_records(
        context.settings, context.spec, [day for day in days if digests.get(day) in wanted]
    )
    found = []
    for digest in sorted(wanted):
        bundle = fetch_bundle(context.store, digest, context.settings.cache_dir)
        by_day: dict[date, Profile] = {}
        dead: dict[date, int] = defaultdict(int)
        for record in records:
            if digests.get(record.day) == digest and record.profile:
                profile = Profile.from_json(bundle.profile_spec, record.profile)
                by_day[record.day] = by_day[record.day].merge(profile) if record.day in by_day else profile
                dead[record.day] += record.dead_letters
        found.append((bundle, by_day, dict(dead)))
    return found


def _scored_by(context: Context, first: date, last: date) -> str:
    """`version 3`, or `versions 2, 3` where the champion changed inside the window."""
    runs = run_by_day(context, _published(context, first, last)).values()
    versions = sorted({run.model_version for run in runs if run.model_version})
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"


def _labels(context: Context, days: dict[date, str], as_of: date) -> Any:
    from tasks.data import labels

    try:
        return labels(context.settings, context.spec, days=list(days), as_of=as_of)
    except LabelsNotMature:
        return None


def scored_rows(context: Context, day: date, run: ScoringRun | None) -> Any:
    """A day's predictions of the model that its run pins: an exposed challenger's say nothing of the champion."""
    import pyarrow.compute as pc

    from tasks.inference import read_predictions

    columns = ["prediction_id", "score", "model_version"]
    table = read_predictions(context.settings, context.spec, [day], columns)
    table = table.filter(table.column("score").is_valid())  # what was erased has no score to measure
    if run is not None and run.exposed_version is not None:
        table = table.filter(pc.field("model_version") != run.exposed_version)
    return table.select(["prediction_id", "score"]).rename_columns(["prediction_id", "prediction"])


def signals_of(context: Context, first: date, last: date) -> list[DaySignals]:
    """Newest signals of each published day, of the run that holds it now."""
    from tasks.monitoring import DaySignals

    published = _published(context, first, last)
    stored = context.metadata.signals(context.spec, first_day=first, last_day=last)
    return [DaySignals.from_json(item.signals) for item in stored if published.get(item.day) == item.run_id]


def _performances(context: Context, first: date, last: date) -> list[DayPerformance]:
    from tasks.monitoring import DayPerformance

    found = []
    for day, run_id in _published(context, first, last).items():
        try:
            found.append(
                DayPerformance.from_json(json.loads(context.store.get(performance_key(day, run_id))))
            )
        except NotFound:
            continue
    return found


def decision_of(context: Context, first: date, last: date) -> Decision:
    """The decision on a window, from what is measured now. Raises `NotFound` when nothing is."""
    from tasks.monitoring import decide

    signals = signals_of(context, first, last)
    if not signals:
        raise NotFound(
            f"was not measured from {first} to {last}",
            which=context.spec.name,
            fix="run the measure step of these days first",
        )
    performances, gaps = labelled_history(context, first, last)
    return decide(context.spec, signals, [found for found in performances if found.day >= first], gaps)


def labelled_history(
    context: Context, first: date, last: date
) -> tuple[list[DayPerformance], list[PerformanceSignal]]:
    """Performance of a window and of the 60 days before it, and the performance chart over all of them."""
    performances = _performances(context, first - _HISTORY, last)
    return performances, _gaps(context, performances)


def _gaps(context: Context, performances: list[DayPerformance]) -> list[PerformanceSignal]:
    """The performance chart: each model's days against its own validation days."""
    from tasks.monitoring import judge_gaps

    by_bundle: dict[str, list[DayPerformance]] = defaultdict(list)
    digests = _bundle_by_day(context, [found.day for found in performances])
    for found in performances:
        if found.day in digests:
            by_bundle[digests[found.day]].append(found)
    signals = [
        signal
        for digest, days in by_bundle.items()
        for signal in judge_gaps(days, _reference_performance(context, digest))
    ]
    return sorted(signals, key=lambda signal: signal.day)


def _reference_performance(context: Context, bundle_digest: str) -> list[DayPerformance]:
    """How a model did on its validation days, by day; scored once per bundle, then kept.

    Empty when the training snapshot is gone: the monitor then falls back to sampling error.
    """
    from tasks.monitoring import DayPerformance

    key = f"monitoring/reference/{bundle_digest}.json"
    try:
        raw = json.loads(context.store.get(key))
    except NotFound:
        raw = [found.to_json() for found in _score_validation_days(context, bundle_digest)]
        context.store.put(key, canonical_json(raw))
    return [DayPerformance.from_json(item) for item in raw]


def _score_validation_days(context: Context, bundle_digest: str) -> list[DayPerformance]:
    import pyarrow as pa

    from tasks.core.partitions import read_partition
    from tasks.core.rows import prediction_ids
    from tasks.model import Scorer, fetch_bundle
    from tasks.monitoring import performance

    bundle = fetch_bundle(context.store, bundle_digest, context.settings.cache_dir)
    try:
        snapshot = context.snapshot(bundle.manifest.snapshot_id)
    except NotFound:
        return []
    scorer, found = Scorer(bundle), []
    for partition in snapshot.partitions:
        if partition.day >= bundle.manifest.validation_first_day:
            rows = read_partition(context.store, partition)
            ids = prediction_ids(rows, context.spec)
            scores = scorer.predict(scorer.encode(scorer.features(rows)))
            found.append(
                performance(
                    context.spec,
                    day=partition.day,
                    scored=pa.table({"prediction_id": ids, "prediction": scores}),
                    labels=pa.table({"prediction_id": ids, "label": rows[context.spec.label.column]}),
                    as_of=date.max,
                )
            )
    return found


def run_by_day(context: Context, days: Iterable[date]) -> dict[date, ScoringRun]:
    """The run that holds each published day; one look-up a run, however many days it scored."""
    published = context.metadata.published_days(context.spec)
    wanted = [day for day in days if day in published]
    runs = {
        run_id: context.metadata.run(context.spec, run_id) for run_id in {published[day] for day in wanted}
    }
    return {day: run for day in wanted if (run := runs[published[day]])}


def _bundle_by_day(context: Context, days: Iterable[date]) -> dict[date, str]:
    """Digest of the bundle that scored each published day."""
    return {day: run.bundle_digest for day, run in run_by_day(context, days).items() if run.bundle_digest}


def performance_key(day: date, run_id: str) -> str:
    return f"monitoring/{day}/performance-{run_id}.json"
