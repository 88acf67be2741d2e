"""An immutable, digested snapshot of some days of a pipeline's source."""

from __future__ import annotations

import logging
from datetime import date, timedelta
from typing import Literal

import numpy as np
import pyarrow as pa

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.day_span import every_day
from tasks.core.errors import NoRows
from tasks.core.object_store import open_store
from tasks.core.partitions import save_snapshot, table_schema, write_partition
from tasks.core.records import Snapshot
from tasks.core.rows import local_days
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, Window
from tasks.data.checks import (
    delivery_digest,
    refuse_duplicates,
    refuse_null_keys,
    refuse_one_class,
    refuse_redelivery,
    require_columns,
    with_event_time,
    with_label,
)
from tasks.data.sources import open_source

log = logging.getLogger(__name__)


def take_snapshot(
    settings: Settings,
    spec: PipelineSpec,
    *,
    kind: Literal["training", "scoring"],
    window: Window,
    clock: Clock = utc_now,
) -> Snapshot:
    """Copy the window's rows into the store, one partition a day, and record them as one snapshot.

    Repeating it writes nothing: equal rows are the same partitions and the same snapshot. Rows are ordered by
    event time and entity key. A training snapshot keeps rows whose label is null; a scoring snapshot has
    neither label nor outcome columns.

    Raises:
        DataError: The rows cannot be used; the message names the source, the column or file, and the fix.
        PipelineCodeError: The pipeline's own `source.py` raised.
    """
    source = open_source(settings, spec, clock=clock)
    load = source.load if kind == "training" else source.load_with_day_before
    raw = load(window.first_day, window.last_day)
    log.info("%s: %s rows from %s", spec.name, f"{raw.num_rows:,}", spec.source.uri)
    by_day = _checked_days(raw, spec, kind, window)
    store = open_store(settings, prefix=spec.prefix)
    partitions = tuple(write_partition(store, day, rows) for day, rows in by_day.items())
    schema = table_schema(next(iter(by_day.values())))
    snapshot = save_snapshot(
        store,
        Snapshot(
            snapshot_id=Snapshot.identity(spec.name, kind, schema, partitions),
            pipeline=spec.name,
            kind=kind,
            schema=schema,
            partitions=partitions,
            created_at_utc=iso_utc(clock()),
        ),
    )
    log.info(
        "%s: %s snapshot %s, %s rows of %d days",
        spec.name,
        kind,
        snapshot.snapshot_id,
        f"{snapshot.rows:,}",
        len(snapshot.days),
    )
    return snapshot


def prepare_rows(raw: pa.Table, spec: PipelineSpec, *, with_labels: bool, distinct: bool = True) -> pa.Table:
    """Columns and types as every later step expects them; keys present and distinct.

    Args:
        raw: What a source returned.
        spec: The pipeline.
        with_labels: Whether the label must be there.
        distinct: Whether keys must be; labels may come twice.
    """
    needed = [*spec.entity_key, spec.event_time]
    if with_labels:
        needed += [spec.label.column]
    require_columns(raw.column_names, needed, spec)
    rows = with_event_time(raw, spec)
    refuse_null_keys(rows, spec)
    if distinct:
        refuse_duplicates(rows, spec)
    return with_label(rows, spec) if with_labels else rows


def split_days(rows: pa.Table, spec: PipelineSpec, window: Window) -> dict[date, pa.Table]:
    """Rows of each day in the window that has any, ordered by event time and entity key."""
    if not rows.num_rows:
        return {}
    order = [(name, "ascending") for name in (spec.event_time, *spec.entity_key)]
    rows = rows.sort_by(order)
    days = local_days(rows, spec).to_numpy(zero_copy_only=False)
    found, starts = np.unique(days, return_index=True)  # ordered by time, so a day is one run of rows
    ends = [*starts[1:].tolist(), len(days)]
    parts = zip(found.tolist(), starts.tolist(), ends, strict=True)
    return {
        day: rows.slice(start, end - start)
        for day, start, end in parts
        if window.first_day <= day <= window.last_day
    }


def _checked_days(raw: pa.Table, spec: PipelineSpec, kind: str, window: Window) -> dict[date, pa.Table]:
    rows = prepare_rows(raw, spec, with_labels=kind == "training")
    if kind == "scoring":
        outcomes = spec.label.known_afterwards
        rows = rows.drop_columns([name for name in rows.column_names if name in outcomes])
    else:
        require_columns(rows.column_names, spec.label.outcome_columns, spec)
    before = window.first_day - timedelta(days=1)
    by_day = split_days(rows, spec, Window(first_day=before, last_day=window.last_day))
    elsewhere = rows.num_rows - sum(part.num_rows for part in by_day.values())
    if elsewhere:
        log.warning(
            "%s: %s rows of the source are of other days than %s to %s by %s, and are left out.",
            spec.name,
            f"{elsewhere:,}",
            window.first_day,
            window.last_day,
            spec.event_time,
        )
    refuse_redelivery({day: delivery_digest(part) for day, part in by_day.items()}, spec)
    by_day.pop(before, None)
    if not by_day:
        raise NoRows(
            f"has no rows for {window.first_day}..{window.last_day}",
            which=f"{spec.name} source {spec.source.uri}",
            fix="ask for days that the source has, or find out why nothing was delivered",
        )
    absent = [day for day in every_day(window.first_day, window.last_day) if day not in by_day]
    if absent:
        log.warning(
            "%s: no rows on %d of the days asked for: %s%s",
            spec.name,
            len(absent),
            ", ".join(str(day) for day in absent[:5]),
            " ..." if len(absent) > 5 else "",
        )
    if kind == "training":
        refuse_one_class(pa.concat_tables(by_day.values()), spec)
    return by_day
