"""Steps of `<pipeline>.monitor`: measure, join labels, decide, report.

Every day is measured against the reference of the model bundle that scored it. Signals are kept by day and
run in the metadata store, performance and reports in the pipeline's store.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from tasks.core import Settings, utc_now
from tasks.core.errors import ConfigError, DataError, LabelsNotMature, NotFound, PipelineCodeError
from tasks.core.ids import canonical_json
from tasks.wiring.causes import explained
from tasks.wiring.context import Context, open_context, parse_day, window
from tasks.wiring.decided import decided_on
from tasks.wiring.series import keep_drift, keep_performance

if TYPE_CHECKING:
    from tasks.metadata import ScoringRun
    from tasks.model import Bundle, Profile
    from tasks.monitoring import (
        DayDecision,
        DayPerformance,
        DaySignals,
        Decision,
        OperationFinding,
        PerformanceSignal,
    )
    from tasks.monitoring.answers import Answered
    from tasks.monitoring.operations import RunCost

logger = logging.getLogger(__name__)

_HISTORY = timedelta(days=60)
"""How far back measured days matter: four same weekdays with gaps, and the run-up of the CUSUM."""
_LABELS_BACK = timedelta(days=35)
"""How far before the window labels that come late are taken in."""
_NEIGHBOURS = timedelta(days=3)
"""A day's verdict looks at the two days before and after it."""
_DECISIONS, _RUNS = 200, 60
_DONE = ("published", "verified")


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

    context = open_context(settings, pipeline)
    first, last = _window(context, first_day, last_day)
    answered = answers_of(context, model_version=None)  # an answer about damage says nothing of inputs
    confirmed = confirmed_shifts(answered)
    taught = [day for shift in confirmed for day in shift.days]
    measured = 0
    faults = alarms = 0
    for bundle, by_day, dead_letters, unread in _profiles_by_bundle(context, first, last, taught):
        monitor = Monitor.of(context.spec, bundle.profile_spec, bundle.reference_profiles)
        found = measure_days(
            context.spec,
            monitor,
            profiles=by_day,
            first_day=first,
            last_day=last,
            dead_letters=dead_letters,
            confirmed=confirmed,
            excluded=excluded_days(answered),
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
    days = _published(context, first, last)
    known = {found.day: found for found in _performances(context, first - _LABELS_BACK, last)}
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
        "operations": [found.statement for found in decision.operations],
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
    newest = max(scorers, key=lambda item: max([*item[1], *item[3]]))[0]
    decision = decision_of(context, first, last)
    found = explained(context, decision)
    html = render_report(
        context.spec,
        decision=decision,
        signals=signals_of(context, first, last),
        performances=[one for one in performances if one.day >= first],
        gaps=gaps,
        profiles={day: profile for _, by_day, *_ in scorers for day, profile in by_day.items()},
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
    context: Context, first: date, last: date, taught: Sequence[date] = ()
) -> list[tuple[Bundle, dict[date, Profile], dict[date, int], dict[date, tuple[int, str]]]]:
    """(bundle, profile by day, dead letters by day, rows and why by day without one) of every bundle of the window.

    Days before the window that the same bundle scored are included: they are its history. So are the days `taught`,
    however old: people have confirmed them as normal. A day is profiled whole or not
    at all, for a part of it would look like a loss of rows.
    """
    from tasks.inference import published_records
    from tasks.model import Profile, fetch_bundle

    published = context.metadata.published_days(context.spec)
    days = {
        day: run for day, run in published.items() if first - _HISTORY <= day <= last or day in set(taught)
    }
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
        rows: dict[date, int] = defaultdict(int)
        why: dict[date, str] = {}
        for record in records:
            if digests.get(record.day) != digest:
                continue
            rows[record.day] += record.rows
            dead[record.day] += record.dead_letters
            if not record.profile:
                why[record.day] = "No profile was written when this day was scored; score it again."
                continue
            try:
                profile = Profile.from_json(bundle.profile_spec, record.profile)
            except DataError as error:
                why[record.day] = f"The profile of shard {record.shard} {error.what}: {error.fix}."
                continue
            by_day[record.day] = by_day[record.day].merge(profile) if record.day in by_day else profile
        whole = {day: profile for day, profile in by_day.items() if day not in why}
        found.append((bundle, whole, dict(dead), {day: (rows[day], said) for day, said in why.items()}))
    return found


def _scored_by(context: Context, first: date, last: date) -> str:
    """`version 3`, or `versions 2, 3` where the champion changed inside the window."""
    runs = run_by_day(context, _published(context, first, last)).values()
    versions = sorted({run.model_version for run in runs if run.model_version})
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"


def _to_join_again(
    context: Context, first: date, known: dict[date, DayPerformance], as_of: date
) -> dict[date, str]:
    """Published days before the window whose labels are worth another look, and their runs."""
    from tasks.monitoring import to_join_again

    before = _published(context, first - _LABELS_BACK, first - timedelta(days=1))
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
    from tasks.monitoring.operations import label_evidence, taken_in

    signals = signals_of(context, first, last)
    if not signals:
        raise NotFound(
            f"was not measured from {first} to {last}",
            which=context.spec.name,
            fix="run the measure step of these days first",
        )
    performances, gaps = labelled_history(context, first, last)
    scorers = _bundle_by_day(context, [found.day for found in gaps] + [signals[-1].day])
    corrected = _corrected(context, first, last, performances, gaps)
    recent = [found for found in performances if found.day >= first - _LABELS_BACK]
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


def labelled_history(
    context: Context, first: date, last: date
) -> tuple[list[DayPerformance], list[PerformanceSignal]]:
    """Performance of a window and of the 60 days before it, and the performance chart over all of them."""
    performances = _performances(context, first - _HISTORY, last)
    return performances, _gaps(context, performances)


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
    return [
        *(operations.labels_late(spec, performances, as_of=asked) if asked else ()),
        *([fresh] if fresh else ()),
        *operations.scoring_cost(runs[: upto + 1]),
        *operations.clock_skew(list(published), runs[-3:], now=now),
        *_other_columns(context, first, last),
    ]


def _other_columns(context: Context, first: date, last: date) -> list[OperationFinding]:
    from tasks.model import fetch_bundle
    from tasks.monitoring.operations import other_columns

    newest = max(_published(context, first, last))
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


def answers_of(context: Context, *, model_version: int | None) -> tuple[Answered, ...]:
    """What people have answered about earlier cases; about damage, of one version only."""
    from tasks.monitoring.cases import answered_cases, read_cases

    return answered_cases(read_cases(context.store), model_version=model_version)


def scorer_of(context: Context, first: date, last: date) -> int | None:
    """The version that scored the newest published day of a window."""
    days = _published(context, first, last)
    run = context.metadata.run(context.spec, days[max(days)]) if days else None
    return run.model_version if run else None


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
