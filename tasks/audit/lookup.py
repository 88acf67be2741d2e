"""Read audit rows: by prediction id, and by window of event time in pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.audit.archive import ArchivedDate, archived_date
from tasks.audit.cold import cold_rows
from tasks.audit.query import AuditFilter, Window, check_id, checked_window
from tasks.audit.record import AuditPage, AuditRecord, record_of
from tasks.audit.rows import AUDIT_SCHEMA, AUDIT_TABLE, FeatureSet, read_feature_set
from tasks.core.delta import LiveFile, table_view
from tasks.core.errors import DataError, NotFound
from tasks.core.ids import event_millis, prediction_event_time
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec


@dataclass(frozen=True)
class _Source:
    """One Parquet file that may hold rows of the question."""

    key: str
    tier: str
    archived: ArchivedDate | None = None


def by_prediction(
    settings: Settings, spec: PipelineSpec, prediction_id: str, *, run_id: str | None = None
) -> AuditRecord:
    """The audit record of a prediction: the newest scoring of it, or that of `run_id`.

    The id's own time names the event date, the Delta log the file, the file's footer the row group.

    Raises:
        InvalidQuery: `prediction_id` is malformed.
        NotFound: No audit row of that id is kept; the message says whether its date has expired.
    """
    check_id(prediction_id)
    store = open_store(settings, prefix=spec.prefix)
    event_date = prediction_event_time(prediction_id).date()
    for _ in range(2):  # a second look when retention moved the row between our two looks
        sources, archived = _sources(store, event_date, prediction_id, prediction_id)
        try:
            tables = [_rows(store, source, prediction_id, prediction_id) for source in sources]
            break
        except NotFound:
            continue
    else:
        raise NotFound(
            "its audit file is gone",
            which=prediction_id,
            fix="verify the run, restore the file from a backup",
        )
    found = _distinct(tables)
    wanted = [row for row in found if run_id is None or row["run_id"] == run_id]
    if not wanted:
        raise _unknown(prediction_id, event_date, archived, run_id, [row["run_id"] for row in found])
    return _Records(store, spec).of(wanted[-1], found)


def by_window(
    settings: Settings,
    spec: PipelineSpec,
    start: datetime,
    end: datetime,
    *,
    filter: AuditFilter | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> AuditPage:
    """Audit records with `start <= event_time < end`, in order of prediction id: of each its newest scoring that passes.

    Args:
        settings: This installation.
        spec: The pipeline.
        start: Timezone-aware.
        end: Timezone-aware, after `start`, at most `MAX_WINDOW_DAYS` later.
        filter: Which scorings are wanted; default: all.
        limit: Rows of a page, 1 to `MAX_PAGE_ROWS`.
        cursor: `AuditPage.cursor` of the page before, from the same window and filter.

    Raises:
        InvalidQuery: A bound is naive, the window is empty or too long, the score band is empty, or the cursor is not
            of this query.
    """
    window = checked_window(spec, start, end, limit=limit, cursor=cursor, filter=filter)
    store = open_store(settings, prefix=spec.prefix)
    build = _Records(store, spec)
    records: list[AuditRecord] = []
    for event_date in _dates(window):
        for chosen, all_of_id in _window_of_date(store, event_date, window, limit + 1 - len(records)):
            if len(records) == limit:
                return AuditPage(tuple(records), window.cursor(records[-1].prediction_id))
            records.append(build.of(chosen, all_of_id))
    return AuditPage(tuple(records), None)


class _Records:
    """Builds records; reads each feature set once."""

    def __init__(self, store: ObjectStore, spec: PipelineSpec) -> None:
        self._store = store
        self._top_k = spec.explanations.top_k
        self._feature_sets: dict[str, FeatureSet] = {}

    def of(self, row: dict[str, Any], scorings: list[dict[str, Any]]) -> AuditRecord:
        """The record of `row`, one of all `scorings` of its prediction, which are in order of time."""
        version = row["feature_set_version"]
        if version not in self._feature_sets:
            self._feature_sets[version] = read_feature_set(self._store, version)
        at = next(place for place, one in enumerate(scorings) if one is row)
        newest = scorings[-1]["run_id"]
        return record_of(
            row,
            self._feature_sets[version],
            top_k=self._top_k,
            older=tuple(one["run_id"] for one in scorings[:at] if one["run_id"] != row["run_id"]),
            newest=newest if newest != row["run_id"] else None,
        )


_FILTERED = ("model_version", "prediction", "entity_id")


def _window_of_date(
    store: ObjectStore, event_date: date, window: Window, wanted: int
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Of the first `wanted` prediction ids of one date that pass: the newest row that does, and all rows."""
    low, high = _id_prefix(window.start), _id_prefix(window.end, past=True)
    if window.after is not None:
        low = max(low, window.after)
    sources, _ = _sources(store, event_date, low, high)
    columns = ["prediction_id", "event_time", *(() if window.filter.empty else _FILTERED)]
    slim = pa.concat_tables(
        [_rows(store, source, low, high, columns=columns).select(columns) for source in sources]
        or [pa.table({name: pa.array([], AUDIT_SCHEMA.field(name).type) for name in columns})]
    )
    ids = sorted(set(slim.filter(_passing(slim, window)).column("prediction_id").to_pylist()))[:wanted]
    if not ids:
        return []
    grouped: dict[str, list[dict[str, Any]]] = {item: [] for item in ids}
    for row in _distinct([_rows(store, source, ids[0], ids[-1]) for source in sources]):
        if row["prediction_id"] in grouped:
            grouped[row["prediction_id"]].append(row)
    found = []
    for rows in grouped.values():
        mask = _passing(pa.Table.from_pylist(rows, _slim_schema(columns)), window).to_pylist()
        found.append((next(row for row, passes in zip(rows[::-1], mask[::-1], strict=True) if passes), rows))
    return found


def _slim_schema(columns: list[str]) -> pa.Schema:
    return pa.schema([AUDIT_SCHEMA.field(name) for name in columns])


def _passing(rows: pa.Table, window: Window) -> pa.Array:
    """Which rows the window and its filter let pass; boolean, shape (rows,)."""
    kind = pa.timestamp("us", tz="UTC")
    times = rows.column("event_time")
    wanted = window.filter
    tests = [
        pc.greater_equal(times, pa.scalar(window.start, kind)),
        pc.less(times, pa.scalar(window.end, kind)),
    ]
    if window.after is not None:
        tests.append(pc.greater(rows.column("prediction_id"), window.after))
    if wanted.model_version is not None:
        tests.append(pc.equal(rows.column("model_version"), wanted.model_version))
    if wanted.entity_id is not None:
        tests.append(pc.equal(rows.column("entity_id"), wanted.entity_id))
    if wanted.min_prediction is not None:
        tests.append(
            pc.greater_equal(rows.column("prediction"), pa.scalar(wanted.min_prediction, pa.float32()))
        )
    if wanted.max_prediction is not None:
        tests.append(pc.less_equal(rows.column("prediction"), pa.scalar(wanted.max_prediction, pa.float32())))
    mask = tests[0]
    for test in tests[1:]:
        mask = pc.and_kleene(mask, test)
    return pc.fill_null(mask, False)


def _sources(
    store: ObjectStore, event_date: date, low: str, high: str
) -> tuple[list[_Source], ArchivedDate | None]:
    """Files of one date that may hold ids in [low, high], warm ones first."""
    view = table_view(store, AUDIT_TABLE)
    live: tuple[LiveFile, ...] = view.files if view else ()
    warm = [
        _Source(f"{AUDIT_TABLE}/{file.path}", "warm")
        for file in live
        if file.event_date == event_date and file.first_id <= high and file.last_id >= low
    ]
    archived = archived_date(store, event_date)
    cold = [_Source(archived.key, "cold", archived)] if archived and archived.state == "archived" else []
    return warm + cold, archived


def _rows(
    store: ObjectStore, source: _Source, low: str, high: str, columns: list[str] | None = None
) -> pa.Table:
    """Rows with low <= prediction_id <= high: only the row groups whose bounds overlap are read."""
    if source.archived is not None:
        found = cold_rows(store, source.archived, low, high, columns)
        return found.append_column("tier", pa.repeat(pa.scalar(source.tier), found.num_rows))
    with store.open(source.key) as raw:
        try:
            file = pq.ParquetFile(raw)
            index = file.schema_arrow.get_field_index("prediction_id")
            groups = []
            for number in range(file.metadata.num_row_groups):
                bounds = file.metadata.row_group(number).column(index).statistics
                if bounds is None or not bounds.has_min_max or (bounds.min <= high and bounds.max >= low):
                    groups.append(number)
            table = file.read_row_groups(groups, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"an audit file is damaged: {error}",
                which=store.url(source.key),
                fix="verify the run that wrote it, and restore the file from a backup",
            ) from error
    ids = table.column("prediction_id")
    table = table.filter(pc.and_(pc.greater_equal(ids, low), pc.less_equal(ids, high)))
    return table.append_column("tier", pa.repeat(pa.scalar(source.tier), table.num_rows))


def _distinct(tables: list[pa.Table]) -> list[dict[str, Any]]:
    """Rows by (prediction id, scoring time); a row that is warm and cold at once comes once, as warm."""
    rows = [row for table in tables for row in table.to_pylist()]
    unique: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:  # warm sources come first
        unique.setdefault((row["prediction_id"], row["run_id"]), row)
    return sorted(unique.values(), key=lambda row: (row["prediction_id"], row["scored_at"], row["run_id"]))


def _unknown(
    prediction_id: str, event_date: date, archived: ArchivedDate | None, run_id: str | None, runs: list[str]
) -> NotFound:
    if run_id is not None and runs:
        return NotFound(
            f"was not predicted by run {run_id}",
            which=prediction_id,
            fix=f"ask for one of: {', '.join(runs)}",
        )
    if archived is not None and archived.state == "expired":
        return NotFound(
            f"explanation data of {event_date} expired at {archived.recorded_at_utc}",
            which=prediction_id,
            fix="raise explanations.expire_days to keep such data longer; what expired is gone",
        )
    return NotFound(
        f"no audit row of that id is kept; its event date is {event_date}",
        which=prediction_id,
        fix="check the id and the pipeline; a prediction is in the audit table once its run is published",
    )


def _id_prefix(moment: datetime, *, past: bool = False) -> str:
    """A text that sorts before every id of that millisecond, or with `past` after all of them."""
    digits = f"{event_millis(moment):012x}"
    return f"{digits[:8]}-{digits[8:]}{'~' if past else ''}"


def _dates(window: Window) -> Iterator[date]:
    """The UTC dates that the rest of the window touches."""
    first = window.start if window.after is None else prediction_event_time(window.after)
    day = first.date()
    last = (window.end - timedelta(microseconds=1)).date()
    while day <= last:
        yield day
        day += timedelta(days=1)
