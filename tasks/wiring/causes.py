"""The suspected causes behind a decision of the monitor, with what they stand on: slices and changes.

Slices are compared only where labels say that something is wrong. Rows get their slice from the snapshot that their run
scored: of its day's partition the key, the event time and the slice columns are read, and the feature code runs only
when a slice is by a feature that is no column of the source. Nothing of a row is kept; the sums are, by what they are of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING

from tasks.core.errors import DataError, LabelsNotMature, NotFound, PipelineCodeError, TerminalError
from tasks.core.ids import canonical_json, digest_json
from tasks.wiring.changes import BEFORE, changes_of
from tasks.wiring.context import Context
from tasks.wiring.deciding import answers_of
from tasks.wiring.measured import (
    LabelledHistory,
    performance_of,
    run_by_day,
    scored_rows,
    signals_of,
    validation_partitions,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.metadata import ScoringRun
    from tasks.model import Bundle
    from tasks.monitoring import DayPerformance, DaySignals, Decision, PerformanceSignal
    from tasks.monitoring.causes import Cause, Change
    from tasks.monitoring.slices import SlicePerformance, SliceReference

log = logging.getLogger(__name__)

SLICE_DAYS = 28
"""Most days, newest first, that are compared together."""
SLICE_ROWS = 1_000_000
"""Most labelled rows that are compared, of whole days from the newest on; the newest is always among them."""
MOST_CATEGORIES = 40
"""A categorical feature with more is no slice column by itself."""
MOST_COLUMNS = 5


@dataclass(frozen=True)
class Explained:
    """What is known of the causes behind a decision."""

    causes: tuple[Cause, ...]
    slices: SlicePerformance | None
    """None where no labels say that something is wrong."""
    changes: tuple[Change, ...]


def explain(context: Context, decision: Decision, history: LabelledHistory) -> Explained:
    """Causes, slices and changes of a decision's window, from what is stored now.

    Asking again costs a few queries: the comparison of slices is kept, by the runs and labels that it is of.

    Args:
        history: Of the decision's window.
    """
    from tasks.monitoring.causes import suspect
    from tasks.monitoring.decision import DAMAGE, DRIFT, FAULT, known_answer

    changes = tuple(changes_of(context, decision.first_day, decision.last_day))
    if decision.verdict not in (FAULT, DAMAGE, DRIFT):
        return Explained((), None, changes)
    answered = answers_of(context, model_version=None)
    signals = [
        # What somebody has answered before this window is no beginning of what is seen in it.
        replace(item, findings=())
        if item.day < decision.first_day and known_answer(answered, FAULT, item.day, ())
        else item
        for item in signals_of(context, decision.first_day - BEFORE, decision.last_day)
    ]
    slices = slices_of(context, decision, history.gaps)
    causes = suspect(
        decision,
        signals,
        slices,
        changes,
        performances=history.performances,
        gaps=history.gaps,
        source_columns=_source_columns(context, signals),
    )
    return Explained(causes, slices, changes)


def explained(context: Context, decision: Decision, history: LabelledHistory) -> Explained:
    """`explain`, or nothing where a record cannot be read: a decision must not wait for its causes."""
    try:
        return explain(context, decision, history)
    except TerminalError as error:
        log.warning("the causes of the decision on %s are not known: %s", context.spec.name, error)
        return Explained((), None, ())


def slices_of(
    context: Context, decision: Decision, gaps: Sequence[PerformanceSignal]
) -> SlicePerformance | None:
    """Realised and expected performance by slice of the days with damage that a decision is about.

    All of these days that the newest of their models scored are compared together, at most 28 of them: a slice of
    one day has too few rows to say anything.

    Returns:
        None without damage. When what it needs is gone (snapshot, labels), one without slices whose statement says so.
    """
    from tasks.monitoring.causes import damage_since
    from tasks.monitoring.slices import SlicePerformance

    days = damage_since(gaps, decision.last_day)
    if not days or days[-1] < decision.first_day:
        return None
    runs = run_by_day(context, days)
    digest = next((runs[day].bundle_digest for day in reversed(days) if day in runs), None)
    if digest is None:
        return None
    same = [day for day in days if day in runs and runs[day].bundle_digest == digest]
    # With other labels a day's performance is another, and so is the comparison.
    known = {day: performance_of(context, day, runs[day].run_id) for day in same[-SLICE_DAYS:]}
    chosen = _newest(known)
    identity = digest_json(
        [
            [[day.isoformat(), runs[day].run_id, known[day].to_json()] for day in chosen],
            list(context.spec.gates.slices),
        ]
    )
    key = f"monitoring/slices/{chosen[0]}_{chosen[-1]}-{identity[:12]}.json"
    try:
        return SlicePerformance.from_json(json.loads(context.store.get(key)))
    except NotFound:
        pass
    try:
        found = _compared(context, chosen, runs, digest)
    except (NotFound, DataError, LabelsNotMature, PipelineCodeError) as error:
        log.warning("slices of %s to %s are not compared: %s", chosen[0], chosen[-1], error)
        said = f"Slices were not compared: {error.which} {error.what}."
        return SlicePerformance(tuple(chosen), 0, (), (), said)
    context.store.put(key, canonical_json(found.to_json()))
    return found


def _newest(known: dict[date, DayPerformance]) -> list[date]:
    """The newest days that together have at most `SLICE_ROWS` labelled rows, at least one; ascending."""
    chosen: list[date] = []
    rows = 0
    for day in sorted(known, reverse=True):
        rows += known[day].labelled_rows
        if chosen and rows > SLICE_ROWS:
            break
        chosen.append(day)
    return chosen[::-1]


def _compared(
    context: Context, days: Sequence[date], runs: dict[date, ScoringRun], digest: str
) -> SlicePerformance:
    import pyarrow as pa

    from tasks.data import labels
    from tasks.model import fetch_bundle
    from tasks.monitoring.performance import labelled
    from tasks.monitoring.slices import slice_performance

    bundle = fetch_bundle(context.store, digest, context.settings.cache_dir)
    columns = slice_columns(context, bundle)
    truth = labels(context.settings, context.spec, days=days, as_of=context.spec.label.known_from(days[-1]))
    found: list[pa.Table] = []
    pieces: dict[str, list[pa.Array]] = {name: [] for name in columns}
    for day in days:
        scored, _, _ = labelled(scored_rows(context, day, runs[day]), truth)
        joined = scored.join(
            _slice_rows(context, bundle, runs[day], day, columns), "prediction_id", join_type="inner"
        )
        for name in columns:
            pieces[name].append(joined[name].combine_chunks())
        found.append(joined.select(["prediction", "label"]))
    return slice_performance(
        _with_slices(pa.concat_tables(found), pieces),
        columns,
        days=days,
        reference=_reference(context, bundle, columns),
    )


def slice_columns(context: Context, bundle: Bundle) -> tuple[str, ...]:
    """The pipeline's own slices, else its categorical features with few categories; at most five."""
    own = context.spec.gates.slices
    if own:
        return tuple(own)[:MOST_COLUMNS]
    grids = bundle.profile_spec.categorical
    return tuple(grid.name for grid in grids if len(grid.categories) <= MOST_CATEGORIES)[:MOST_COLUMNS]


def _slice_rows(
    context: Context, bundle: Bundle, run: ScoringRun, day: date, columns: Sequence[str]
) -> pa.Table:
    """`prediction_id` and the raw slice columns of a day, from the snapshot that its run scored."""
    import pyarrow as pa

    from tasks.core.partitions import read_partition
    from tasks.core.rows import prediction_ids
    from tasks.evaluation.slices import slice_column

    spec = context.spec
    if run.snapshot_id is None:
        raise NotFound("names no snapshot", which=f"run {run.run_id}", fix="score the day again")
    snapshot = context.snapshot(run.snapshot_id)
    partition = next((part for part in snapshot.partitions if part.day == day), None)
    if partition is None:
        raise NotFound(f"has no {day}", which=f"snapshot {run.snapshot_id}", fix="score the day again")
    present = [name for name, _ in snapshot.schema]
    needed = {*spec.entity_key, spec.event_time, *columns}
    computed = any(name not in present and name in spec.features.names for name in columns)
    rows = read_partition(
        context.store, partition, None if computed else [name for name in present if name in needed]
    )
    features = bundle.feature_code.compute(rows, bundle.spec.features) if computed else pa.table({})
    made = {name: slice_column(name, rows, features, day, spec) for name in columns}
    return pa.table({"prediction_id": prediction_ids(rows, spec), **made})


def _with_slices(rows: pa.Table, pieces: dict[str, list[pa.Array]]) -> pa.Table:
    """Rows with each slice column as text: rare values together, numbers cut at their quartiles."""
    import pyarrow as pa

    from tasks.evaluation.slices import slice_values

    for name, parts in pieces.items():
        rows = rows.append_column(name, pa.array(slice_values(parts).tolist(), pa.string()))
    return rows


def _reference(context: Context, bundle: Bundle, columns: Sequence[str]) -> SliceReference | None:
    """How far each slice is usually off: the model's validation days, scored once and kept; None when they are gone."""
    from tasks.monitoring.slices import SliceReference

    key = f"monitoring/reference/slices-{digest_json([bundle.digest, list(columns)])[:32]}.json"
    try:
        return SliceReference.from_json(json.loads(context.store.get(key)))
    except NotFound:
        pass
    try:
        found = _measured_reference(context, bundle, columns)
    except NotFound:
        return None
    context.store.put(key, canonical_json(found.to_json()))
    return found


def _measured_reference(context: Context, bundle: Bundle, columns: Sequence[str]) -> SliceReference:
    import pyarrow as pa
    import pyarrow.compute as pc

    from tasks.core.partitions import read_partition
    from tasks.evaluation.slices import slice_column
    from tasks.model import Scorer
    from tasks.monitoring.slices import slice_reference

    scorer = Scorer(bundle)
    rows_by_day: list[pa.Table] = []
    pieces: dict[str, list[pa.Array]] = {name: [] for name in columns}
    for partition in validation_partitions(context, bundle):
        rows = read_partition(context.store, partition)
        rows = rows.filter(rows[context.spec.label.column].is_valid())
        features = scorer.features(rows)
        for name in columns:
            pieces[name].append(slice_column(name, rows, features, partition.day, context.spec))
        rows_by_day.append(
            pa.table(
                {
                    "prediction": pa.array(scorer.predict(scorer.encode(features)), pa.float64()),
                    "label": pc.cast(rows[context.spec.label.column], pa.float64()).combine_chunks(),
                }
            )
        )
    if not rows_by_day:
        return slice_reference([], columns)
    # Named over all days at once, as the days under judgement are: by day, rare values would differ from day to day.
    named = _with_slices(pa.concat_tables(rows_by_day), pieces)
    bounds = [0]
    for table in rows_by_day:
        bounds.append(bounds[-1] + table.num_rows)
    days = [named.slice(start, end - start) for start, end in pairwise(bounds)]
    return slice_reference(days, columns)


def _source_columns(context: Context, signals: Sequence[DaySignals]) -> list[str]:
    """Columns of the newest snapshot that was scored; empty when it is gone."""
    runs = run_by_day(context, [signals[-1].day] if signals else [])
    for run in runs.values():
        if run.snapshot_id is not None:
            try:
                return [name for name, _ in context.snapshot(run.snapshot_id).schema]
            except NotFound:
                return []
    return []
