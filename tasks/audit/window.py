"""All rows of a window of event time as one Arrow table: what exports and monitors read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from tasks.audit.query import AuditFilter, InvalidQuery, Window, checked_window
from tasks.audit.reader import Asked, AuditReader, reader_of
from tasks.audit.scorings import FILTERED, ROW_SCHEMA, joined, newest, passing, steadily
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.core.table_files import ascending

MAX_TABLE_ROWS = 2_000_000
"""Rows of one table: about 600 MB with 20 features and all columns."""

_KEYS = ("prediction_id", "scored_at", "run_id")
_COLUMNS = tuple(name for name in ROW_SCHEMA.names if name != "explanation")


def window_table(
    settings: Settings,
    spec: PipelineSpec,
    start: datetime,
    end: datetime,
    *,
    columns: Sequence[str] | None = None,
    filter: AuditFilter | None = None,
) -> pa.Table:
    """All predictions with `start <= event_time < end`, of each the newest scoring that passes, in order of id.

    Files and row groups outside the window are not read, nor columns that nobody wants.

    Args:
        settings: This installation.
        spec: The pipeline.
        start: Timezone-aware.
        end: Timezone-aware, after `start`, at most `MAX_WINDOW_DAYS` later.
        columns: Which, in this order; default: those of `AUDIT_SCHEMA` and `tier`. `explanation` may be asked for too.
        filter: Which scorings are wanted; default: all.

    Returns:
        At most `MAX_TABLE_ROWS` rows. Text that a run repeats (`ONE_VALUE`) comes as dictionary<int32, string>.

    Raises:
        InvalidQuery: As `by_window`; or an unknown column, or too many rows.
        DataError: A file is damaged or lost.
    """
    window = checked_window(spec, start, end, limit=1, filter=filter)
    names = _checked(_COLUMNS if columns is None else columns)
    reader = reader_of(settings, spec)
    return steadily(lambda: _table(reader, window, names))


def _table(reader: AuditReader, window: Window, names: tuple[str, ...]) -> pa.Table:
    asked = Asked(window.dates(), window.low, window.high)
    _refuse_more_than(sum(source.least_rows(asked) for source in reader.sources))
    if not window.filter.empty:
        ids = _passing_ids(reader, asked, window)
        asked = replace(asked, ids=ids)
        if not len(ids):
            return joined(reader, [], names)
    ascends = reader.warm.known_ascending(asked)
    if not window.filter.empty or not window.in_whole_milliseconds:
        needed = (*names, "prediction_id", "event_time", *(() if window.filter.empty else FILTERED))
    else:
        needed = names if ascends else (*names, "prediction_id")
    rows = _read(reader, asked, window, needed)
    # What is known is known of the warm rows; others may repeat them.
    ascends = ascends and not pc.any(pc.not_equal(rows.column("tier"), reader.warm.tier)).as_py()
    if not ascends and not ("prediction_id" in needed and ascending(rows)):
        rows = newest(_read(reader, asked, window, (*needed, *_KEYS)))
    _refuse_more_than(rows.num_rows)
    return rows.select(names)


def _read(reader: AuditReader, asked: Asked, window: Window, needed: tuple[str, ...]) -> pa.Table:
    """Rows of all tiers that pass, with the columns `needed` and `tier`; a prediction may come more than once."""
    needed = tuple(dict.fromkeys((*needed, "tier")))
    stored = tuple(name for name in needed if name != "tier")
    rows = joined(reader, reader.rows(replace(asked, columns=stored)), needed)
    if asked.ids is not None:
        rows = rows.filter(pc.is_in(rows.column("prediction_id"), value_set=asked.ids))
    if window.filter.empty and window.in_whole_milliseconds:
        return rows
    return rows.filter(passing(rows, window))


def _passing_ids(reader: AuditReader, asked: Asked, window: Window) -> pa.Array:
    """Ids of which a scoring passes, in order."""
    rows = _read(reader, asked, window, ("prediction_id", "event_time", *FILTERED))
    ids = pc.unique(rows.column("prediction_id"))
    return ids.take(pc.sort_indices(ids))


def _checked(columns: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in columns if name not in ROW_SCHEMA.names]
    if unknown or not columns:
        raise InvalidQuery(
            "are not columns of audit rows" if unknown else "is empty",
            which=", ".join(unknown) or "columns",
            fix=f"use some of: {', '.join(ROW_SCHEMA.names)}",
        )
    return tuple(dict.fromkeys(columns))


def _refuse_more_than(rows: int) -> None:
    if rows > MAX_TABLE_ROWS:
        raise InvalidQuery(
            f"holds {rows:,} predictions or more; a table has at most {MAX_TABLE_ROWS:,}",
            which="window",
            fix="ask for shorter windows one after the other, or page through it",
        )
