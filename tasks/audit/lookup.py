"""Read audit records: by prediction id, and by window of event time in pages."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute as pc

from tasks.audit.archive import ArchivedDate
from tasks.audit.files import FileGone
from tasks.audit.query import AuditFilter, Window, check_id, checked_window
from tasks.audit.reader import Asked, AuditReader, reader_of
from tasks.audit.record import AuditPage, AuditRecord, record_of
from tasks.audit.scorings import FILTERED, Row, as_rows, distinct, joined, passing, steadily
from tasks.core.errors import Expired, NotFound
from tasks.core.ids import prediction_event_time
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

_FIRST_STEP_ROWS = 4_096
_ROWS_PER_WANTED = 4


def by_prediction(
    settings: Settings, spec: PipelineSpec, prediction_id: str, *, run_id: str | None = None
) -> AuditRecord:
    """The audit record of a prediction: the newest scoring of it, or that of `run_id`.

    The id's own time names the event date, the Delta log the file, the file's footer the row group. On S3 the answer may
    be `tasks.audit.reader.MAX_AGE_S` old, unless it is "not found".

    Raises:
        InvalidQuery: `prediction_id` is malformed.
        Expired: Retention has deleted it.
        NotFound: No audit row of that id is kept, or its feature set is lost.
        DataError: The file that holds it is damaged or lost.
    """
    check_id(prediction_id)
    reader = reader_of(settings, spec)
    event_date = prediction_event_time(prediction_id).date()
    asked = Asked((event_date,), prediction_id, prediction_id, fresh=False)
    try:
        found = _scorings(reader, asked)
    except FileGone:
        found = []
    if not _of_run(found, run_id):
        found = steadily(lambda: _scorings(reader, replace(asked, fresh=True)))
    wanted = _of_run(found, run_id)
    if not wanted:
        archived = reader.cold.archived(event_date, fresh=True)
        raise _unknown(prediction_id, event_date, archived, run_id, [row["run_id"] for row in found])
    return _record(reader, spec, wanted[-1], found)


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
        NotFound: A feature set is lost.
        DataError: A file is damaged or lost.
    """
    window = checked_window(spec, start, end, limit=limit, cursor=cursor, filter=filter)
    reader = reader_of(settings, spec)
    records: list[AuditRecord] = []
    for event_date in window.dates():
        wanted = limit + 1 - len(records)
        for chosen, all_of_id in steadily(lambda: _page(reader, event_date, window, wanted)):  # noqa: B023
            if len(records) == limit:
                return AuditPage(tuple(records), window.cursor(records[-1].prediction_id))
            records.append(_record(reader, spec, chosen, all_of_id))
    return AuditPage(tuple(records), None)


def _page(reader: AuditReader, event_date: date, window: Window, wanted: int) -> list[tuple[Row, list[Row]]]:
    """Of the first `wanted` prediction ids of one date that pass: the newest row that does, and all rows."""
    ids = _first_ids(reader, Asked((event_date,), window.low, window.high), window, wanted)
    if not ids:
        return []
    asked = Asked((event_date,), ids[0], ids[-1], ids=pa.array(ids))
    rows = joined(reader, reader.rows(asked))
    passes = dict.fromkeys(ids, False)
    grouped: dict[str, list[Row]] = {item: [] for item in ids}
    rows = rows.append_column("passes", passing(rows, window))
    for row in distinct(rows.to_pylist()):
        if row["prediction_id"] in passes:
            grouped[row["prediction_id"]].append(row)
    found = []
    for of_id in grouped.values():
        chosen = next((row for row in reversed(of_id) if row["passes"]), None)
        if chosen is not None:  # else it was erased or moved on between the two reads
            found.append((chosen, of_id))
    return found


def _first_ids(reader: AuditReader, asked: Asked, window: Window, wanted: int) -> list[str]:
    """The first `wanted` ids of which a scoring passes; reads no further than it has to."""
    columns = ("prediction_id", "event_time", *(() if window.filter.empty else FILTERED))
    found: list[str] = []
    low = asked.low
    for stop in reader.warm.steps(asked, max(_FIRST_STEP_ROWS, _ROWS_PER_WANTED * wanted)):
        if stop < low:
            continue
        rows = joined(reader, reader.rows(replace(asked, low=low, high=stop, columns=columns)), names=columns)
        ids = pc.unique(rows.filter(passing(rows, window)).column("prediction_id"))
        found += ids.take(pc.sort_indices(ids)[: wanted - len(found)]).to_pylist()
        if len(found) == wanted:
            break
        low = f"{stop}!"  # sorts after `stop` and before every other id
    return found


def _scorings(reader: AuditReader, asked: Asked) -> list[Row]:
    return distinct(as_rows(reader, reader.rows(asked)))


def _of_run(rows: list[Row], run_id: str | None) -> list[Row]:
    return [row for row in rows if run_id is None or row["run_id"] == run_id]


def _record(reader: AuditReader, spec: PipelineSpec, row: Row, scorings: list[Row]) -> AuditRecord:
    """The record of `row`, one of all `scorings` of its prediction, which are in order of time."""
    at = next(place for place, one in enumerate(scorings) if one is row)
    newest = scorings[-1]["run_id"]
    older = dict.fromkeys(one["run_id"] for one in scorings[:at] if one["run_id"] != row["run_id"])
    return record_of(
        row,
        reader.feature_set(row["feature_set_version"]),
        top_k=spec.explanations.top_k,
        older=tuple(older),
        newest=newest if newest != row["run_id"] else None,
    )


def _unknown(
    prediction_id: str, event_date: date, archived: ArchivedDate | None, run_id: str | None, runs: list[str]
) -> NotFound:
    if run_id is not None and runs:
        return NotFound(
            f"was not predicted by run {run_id}",
            which=prediction_id,
            fix=f"ask for one of: {', '.join(dict.fromkeys(runs))}",
        )
    if archived is not None and archived.state == "expired":
        return Expired(
            f"explanation data of {event_date} expired at {archived.recorded_at_utc}",
            which=prediction_id,
            fix="raise explanations.expire_days to keep such data longer; what expired is gone",
        )
    return NotFound(
        f"no audit row of that id is kept; its event date is {event_date}",
        which=prediction_id,
        fix="check the id and the pipeline; a prediction is in the audit table once its run is published",
    )
