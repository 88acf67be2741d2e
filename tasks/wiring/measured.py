"""What is measured of a pipeline's days, as it is stored: profiles, signals, performance, and the runs that they are of."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from tasks.core.errors import DataError, NotFound
from tasks.core.ids import canonical_json
from tasks.wiring.context import Context

if TYPE_CHECKING:
    from tasks.core.records import PartitionFile
    from tasks.metadata import ScoringRun
    from tasks.model import Bundle, Profile
    from tasks.monitoring import DayPerformance, DaySignals, PerformanceSignal

HISTORY = timedelta(days=60)
"""How far back measured days matter: four same weekdays with gaps, and the run-up of the CUSUM."""
LABELS_BACK = timedelta(days=35)
"""How far before the window labels that come late are taken in."""


def published_in(context: Context, first: date, last: date) -> dict[date, str]:
    """The published days from `first` to `last`, each with the run that holds it."""
    published = context.metadata.published_days(context.spec)
    return {day: run_id for day, run_id in published.items() if first <= day <= last}


def profiles_by_bundle(
    context: Context, first: date, last: date, taught: Sequence[date] = ()
) -> list[tuple[Bundle, dict[date, Profile], dict[date, int], dict[date, tuple[int, str]]]]:
    """(bundle, profile by day, dead letters by day, rows and why by day without one) of every bundle of the window.

    Days before the window that the same bundle scored are included: they are its history. So are the days `taught`,
    however old: people have confirmed them as normal. A day is profiled whole or not at all, for a part of it would look
    like a loss of rows.
    """
    from tasks.inference import published_records
    from tasks.model import Profile, fetch_bundle

    published = context.metadata.published_days(context.spec)
    days = [day for day in published if first - HISTORY <= day <= last or day in taught]
    digests = bundle_by_day(context, days)
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


def scored_by(context: Context, first: date, last: date) -> str:
    """`version 3`, or `versions 2, 3` where the champion changed inside the window."""
    runs = run_by_day(context, published_in(context, first, last)).values()
    versions = sorted({run.model_version for run in runs if run.model_version})
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"


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

    published = published_in(context, first, last)
    stored = context.metadata.signals(context.spec, first_day=first, last_day=last)
    return [DaySignals.from_json(item.signals) for item in stored if published.get(item.day) == item.run_id]


def performances_of(context: Context, first: date, last: date) -> list[DayPerformance]:
    """Performance of each published day, as far as its labels were joined."""
    found = []
    for day, run_id in published_in(context, first, last).items():
        try:
            found.append(performance_of(context, day, run_id))
        except NotFound:
            continue
    return found


def performance_of(context: Context, day: date, run_id: str) -> DayPerformance:
    """Performance of a day as a run scored it. Raises `NotFound` when its labels were not joined."""
    from tasks.monitoring import DayPerformance

    return DayPerformance.from_json(json.loads(context.store.get(performance_key(day, run_id))))


@dataclass(frozen=True)
class LabelledHistory:
    """What the labels say of a window and of the 60 days before it; read once a step, for all that look at it."""

    performances: list[DayPerformance]
    gaps: list[PerformanceSignal]
    """The performance chart over all of these days."""


def labelled_history(context: Context, first: date, last: date) -> LabelledHistory:
    """Of a window, as it is known now."""
    performances = performances_of(context, first - HISTORY, last)
    return LabelledHistory(performances, _gaps(context, performances))


def scorer_of(context: Context, first: date, last: date) -> int | None:
    """The version that scored the newest published day of a window."""
    days = published_in(context, first, last)
    run = context.metadata.run(context.spec, days[max(days)]) if days else None
    return run.model_version if run else None


def _gaps(context: Context, performances: list[DayPerformance]) -> list[PerformanceSignal]:
    """The performance chart: each model's days against its own validation days."""
    from tasks.monitoring import judge_gaps

    by_bundle: dict[str, list[DayPerformance]] = defaultdict(list)
    digests = bundle_by_day(context, [found.day for found in performances])
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
        partitions = validation_partitions(context, bundle)
    except NotFound:
        return []
    scorer, found = Scorer(bundle), []
    for partition in partitions:
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


def validation_partitions(context: Context, bundle: Bundle) -> list[PartitionFile]:
    """The days that a model was judged on. Raises `NotFound` when retention took its training snapshot."""
    snapshot = context.snapshot(bundle.manifest.snapshot_id)
    return [part for part in snapshot.partitions if part.day >= bundle.manifest.validation_first_day]


def run_by_day(context: Context, days: Iterable[date]) -> dict[date, ScoringRun]:
    """The run that holds each published day; one look-up a run, however many days it scored."""
    published = context.metadata.published_days(context.spec)
    wanted = [day for day in days if day in published]
    runs = {
        run_id: context.metadata.run(context.spec, run_id) for run_id in {published[day] for day in wanted}
    }
    return {day: run for day in wanted if (run := runs[published[day]])}


def bundle_by_day(context: Context, days: Iterable[date]) -> dict[date, str]:
    """Digest of the bundle that scored each published day."""
    return {day: run.bundle_digest for day, run in run_by_day(context, days).items() if run.bundle_digest}


def performance_key(day: date, run_id: str) -> str:
    """Where the performance of a day lies, as a run scored it."""
    return f"monitoring/{day}/performance-{run_id}.json"
