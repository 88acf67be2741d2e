"""Read audit rows: by prediction id, and by window of event time in pages."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.audit.archive import ArchivedDate, archived_date
from tasks.audit.rows import AUDIT_TABLE, FeatureSet, read_feature_set
from tasks.core.delta import LiveFile, table_view
from tasks.core.errors import DataError, NotFound, TerminalError
from tasks.core.ids import digest_json, event_millis, is_prediction_id, prediction_event_time
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

MAX_PAGE_ROWS = 10_000
MAX_WINDOW_DAYS = 366


class InvalidQuery(TerminalError):
    """The question itself is wrong: a malformed id, a window that ends before it starts, another query's cursor."""


@dataclass(frozen=True)
class AuditRecord(JsonRecord):
    """Everything about one prediction."""

    prediction_id: str
    event_time: datetime
    pipeline: str
    entity_id: str
    prediction: float
    model_version: int
    bundle_digest: str
    run_id: str
    shard_id: int
    source_snapshot: str
    source_key: str
    source_row: int
    feature_set_version: str
    feature_computation_version: str
    features: dict[str, Any]
    """Value by feature name, as the model saw it: float, text or null."""
    attributions: dict[str, float] | None
    """Shift on the logit scale by feature name; None when the prediction was not sampled for explanation."""
    top_features: tuple[str, ...]
    base_value: float | None
    residual: float | None
    explainer: str | None
    explainer_version: str | None
    background_id: str | None
    scored_at: datetime
    tier: str
    """`hot` or `archive`."""
    superseded_runs: tuple[str, ...] = ()
    """Earlier runs that predicted this row too; ask for them by run id."""


@dataclass(frozen=True)
class AuditPage(JsonRecord):
    """One page of a window, in order of prediction id."""

    records: tuple[AuditRecord, ...]
    cursor: str | None
    """Pass it to get the next page; None on the last one."""


@dataclass(frozen=True)
class _Source:
    """One Parquet file that may hold rows of the question."""

    key: str
    tier: str


def by_prediction(
    settings: Settings, spec: PipelineSpec, prediction_id: str, *, run_id: str | None = None
) -> AuditRecord:
    """The audit record of a prediction: the newest scoring of it, or that of `run_id`.

    The id's own time names the event date, the Delta log the file, the file's footer the row group.

    Raises:
        InvalidQuery: `prediction_id` is malformed.
        NotFound: No audit row of that id is kept; the message says whether its date has expired.
    """
    if not is_prediction_id(prediction_id):
        raise InvalidQuery(
            "is not a prediction id", which=repr(prediction_id), fix="give a UUID of version 8 in lower case"
        )
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
    newest = wanted[-1]
    return _record(store, newest, tuple(row["run_id"] for row in found if row is not newest), {})


def by_window(
    settings: Settings,
    spec: PipelineSpec,
    start: datetime,
    end: datetime,
    *,
    limit: int = 100,
    cursor: str | None = None,
) -> AuditPage:
    """Audit records with `start <= event_time < end`, in order of prediction id; the newest scoring of each.

    Args:
        settings: This installation.
        spec: The pipeline.
        start: Timezone-aware.
        end: Timezone-aware, after `start`, at most `MAX_WINDOW_DAYS` later.
        limit: Rows of a page, 1 to `MAX_PAGE_ROWS`.
        cursor: `AuditPage.cursor` of the page before, from the same window.

    Raises:
        InvalidQuery: A bound is naive, the window is empty or too long, or the cursor is not of this query.
    """
    after = _check_window(spec, start, end, limit, cursor)
    store = open_store(settings, prefix=spec.prefix)
    low, high = _id_prefix(start), _id_prefix(end, past=True)
    if after is not None:
        low = max(low, after)
    records: list[AuditRecord] = []
    feature_sets: dict[str, FeatureSet] = {}
    more = False
    for event_date in _dates(start, end):
        if event_date < _date_of(low, start):
            continue
        page = _window_of_date(store, event_date, low, high, start, end, after, limit + 1 - len(records))
        for rows in page:
            if len(records) == limit:
                more = True
                break
            older = tuple(row["run_id"] for row in rows[:-1])
            records.append(_record(store, rows[-1], older, feature_sets))
        if more:
            break
    token = _cursor(spec, start, end, records[-1].prediction_id) if more else None
    return AuditPage(tuple(records), token)


def _window_of_date(
    store: ObjectStore,
    event_date: date,
    low: str,
    high: str,
    start: datetime,
    end: datetime,
    after: str | None,
    wanted: int,
) -> list[list[dict[str, Any]]]:
    """Rows of the first `wanted` prediction ids of one date, grouped by id, oldest scoring first."""
    sources, _ = _sources(store, event_date, low, high)
    bounds = [
        _rows(store, source, low, high, columns=["prediction_id", "event_time"]).select(
            ["prediction_id", "event_time"]
        )
        for source in sources
    ]
    if not bounds:
        return []
    slim = pa.concat_tables(bounds)
    times = slim.column("event_time")
    kind = pa.timestamp("us", tz="UTC")
    mask = pc.and_(pc.greater_equal(times, pa.scalar(start, kind)), pc.less(times, pa.scalar(end, kind)))
    if after is not None:
        mask = pc.and_(mask, pc.greater(slim.column("prediction_id"), after))
    ids = sorted(set(slim.filter(mask).column("prediction_id").to_pylist()))[:wanted]
    if not ids:
        return []
    chosen = set(ids)
    rows = _distinct([_rows(store, source, ids[0], ids[-1]) for source in sources])
    grouped: dict[str, list[dict[str, Any]]] = {item: [] for item in ids}
    for row in rows:
        if row["prediction_id"] in chosen:
            grouped[row["prediction_id"]].append(row)
    return [grouped[item] for item in ids]


def _sources(
    store: ObjectStore, event_date: date, low: str, high: str
) -> tuple[list[_Source], ArchivedDate | None]:
    """Files of one date that may hold ids in [low, high], hot ones first."""
    view = table_view(store, AUDIT_TABLE)
    live: tuple[LiveFile, ...] = view.files if view else ()
    hot = [
        _Source(f"{AUDIT_TABLE}/{file.path}", "hot")
        for file in live
        if file.event_date == event_date and file.first_id <= high and file.last_id >= low
    ]
    archived = archived_date(store, event_date)
    cold = [_Source(archived.key, "archive")] if archived and archived.state == "archived" else []
    return hot + cold, archived


def _rows(
    store: ObjectStore, source: _Source, low: str, high: str, columns: list[str] | None = None
) -> pa.Table:
    """Rows with low <= prediction_id <= high: only the row groups whose bounds overlap are read."""
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
    """Rows by (prediction id, scoring time); a row that is hot and archived at once comes once, as hot."""
    rows = [row for table in tables for row in table.to_pylist()]
    unique: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:  # hot sources come first
        unique.setdefault((row["prediction_id"], row["run_id"]), row)
    return sorted(unique.values(), key=lambda row: (row["prediction_id"], row["scored_at"], row["run_id"]))


def _record(
    store: ObjectStore, row: dict[str, Any], older: tuple[str, ...], known: dict[str, FeatureSet]
) -> AuditRecord:
    version = row["feature_set_version"]
    features = known.get(version) or read_feature_set(store, version)
    known[version] = features
    values: dict[str, Any] = dict(zip(features.numeric, row["feature_values"], strict=True))
    values.update(row["feature_values_text"])
    attributions = row["attributions"]
    return AuditRecord(
        prediction_id=row["prediction_id"],
        event_time=row["event_time"],
        pipeline=row["pipeline"],
        entity_id=row["entity_id"],
        prediction=row["prediction"],
        model_version=row["model_version"],
        bundle_digest=row["bundle_digest"],
        run_id=row["run_id"],
        shard_id=row["shard_id"],
        source_snapshot=row["source_snapshot"],
        source_key=row["source_key"],
        source_row=row["source_row"],
        feature_set_version=version,
        feature_computation_version=row["feature_computation_version"],
        features={name: values.get(name) for name in features.names},
        attributions=None if attributions is None else dict(zip(features.names, attributions, strict=True)),
        top_features=tuple(features.names[i] for i in row["topk_idx"] or ()),
        base_value=row["base_value"],
        residual=row["residual"],
        explainer=row["explainer"],
        explainer_version=row["explainer_version"],
        background_id=row["background_id"],
        scored_at=row["scored_at"],
        tier=row["tier"],
        superseded_runs=older,
    )


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


def _check_window(
    spec: PipelineSpec, start: datetime, end: datetime, limit: int, cursor: str | None
) -> str | None:
    """The prediction id to continue after."""
    if start.tzinfo is None or end.tzinfo is None:
        raise InvalidQuery(
            "has no time zone", which="window bound", fix="give both bounds with an offset or Z"
        )
    if end <= start:
        raise InvalidQuery(
            f"ends at {end.isoformat()}, before it starts at {start.isoformat()}",
            which="window",
            fix="give an end after the start",
        )
    if end - start > timedelta(days=MAX_WINDOW_DAYS):
        raise InvalidQuery(
            f"spans {(end - start).days} days", which="window", fix=f"ask for at most {MAX_WINDOW_DAYS} days"
        )
    if not 1 <= limit <= MAX_PAGE_ROWS:
        raise InvalidQuery(f"is {limit}", which="limit", fix=f"use 1 to {MAX_PAGE_ROWS}")
    if cursor is None:
        return None
    try:
        raw = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        query, after = raw["query"], raw["after"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise InvalidQuery("is not a cursor", which=repr(cursor), fix="start without a cursor") from error
    if query != _query(spec, start, end) or not isinstance(after, str) or not is_prediction_id(after):
        raise InvalidQuery(
            "is the cursor of another query", which=repr(cursor), fix="repeat the window, or start over"
        )
    return after


def _query(spec: PipelineSpec, start: datetime, end: datetime) -> str:
    return digest_json([spec.prefix, start.astimezone(UTC), end.astimezone(UTC)])[:16]


def _cursor(spec: PipelineSpec, start: datetime, end: datetime, after: str) -> str:
    text = json.dumps({"query": _query(spec, start, end), "after": after})
    return base64.urlsafe_b64encode(text.encode()).decode()


def _id_prefix(moment: datetime, *, past: bool = False) -> str:
    """A text that sorts before every id of that millisecond, or with `past` after all of them."""
    digits = f"{event_millis(moment):012x}"
    return f"{digits[:8]}-{digits[8:]}{'~' if past else ''}"


def _dates(start: datetime, end: datetime) -> Iterator[date]:
    day = start.astimezone(UTC).date()
    last = (end.astimezone(UTC) - timedelta(microseconds=1)).date()
    while day <= last:
        yield day
        day += timedelta(days=1)


def _date_of(low: str, start: datetime) -> date:
    return prediction_event_time(low).date() if is_prediction_id(low) else start.astimezone(UTC).date()
