"""Move old event dates to the archive, and let archived ones expire. Every step can be repeated.

A date moves like this: write its rows as one archive file, read it back and compare, create the date's next
archive record, remove exactly the files that were copied from the audit table in one Delta transaction. A
crash leaves rows in both places, never in neither; readers take the hot copy.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.audit.archive import (
    ArchivedDate,
    archived_date,
    archived_dates,
    data_key,
    has_moved_on,
    older_keys,
    record,
)
from tasks.audit.cold import COLD_FORMAT, EXPLANATION, check_copy, cold_rows, encode
from tasks.audit.reader import forget_reader
from tasks.audit.restore import is_copy, record_returned, standing_dates
from tasks.audit.rows import (
    AUDIT_SCHEMA,
    AUDIT_TABLE,
    EARLIER_COLUMNS,
    feature_sets,
    online_scored_at,
    with_texts,
)
from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import Change, LiveFile, TableView, commit_change, table_view
from tasks.core.errors import NotFound, StoreUnavailable
from tasks.core.holds import holds, is_held
from tasks.core.ids import digest_bytes
from tasks.core.object_store import AlreadyExists, ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import ExplanationSpec, PipelineSpec

log = logging.getLogger(__name__)

_TURNS = 20
_COLD_ROW_BYTES = 40
"""Of an archived row when there is none to measure by (benchmarks/results/audit_cold.md)."""


@dataclass(frozen=True)
class Retained(JsonRecord):
    """What `retain` did, or with `dry_run` would do."""

    as_of: date
    archived_days: tuple[date, ...]
    archived_rows: int
    expired_days: tuple[date, ...]
    expired_rows: int
    hot_bytes_freed: int
    """Of the audit table's files; they leave the disk when `vacuum` runs."""
    archive_bytes_freed: int
    dry_run: bool
    held_days: tuple[date, ...] = ()
    """Days that are old enough, and stay where they are because a hold is on them."""
    archive_bytes_added: int = 0
    """Of the archived days' files; with `dry_run` an estimate by what the archive holds already."""
    restored_days: tuple[date, ...] = ()
    """Days that are old enough, and stay because somebody restored them for a while."""
    returned_days: tuple[date, ...] = ()
    """Restored days whose time is over: they are in the archive alone again."""


def retain(
    settings: Settings,
    spec: PipelineSpec,
    *,
    as_of: date,
    warm_days: int | None = None,
    expire_days: int | None = None,
    dry_run: bool = False,
    clock: Clock = utc_now,
) -> Retained:
    """Archive event dates older than `warm_days`, expire those older than `expire_days`, as seen on `as_of`.

    Dates with a hold (`tasks.core.holds`) neither move nor expire; restored dates stay until their time is over.

    Args:
        settings: This installation.
        spec: The pipeline.
        as_of: The day from which ages count; for historical data a day of its own time.
        warm_days: Instead of `explanations.warm_days`.
        expire_days: Instead of `explanations.expire_days`.
        dry_run: Only say what would go.
        clock: The time, for records.

    Raises:
        DataError: A hold cannot be read; nothing moved.
        DigestMismatch: An archive file does not hold what was written; nothing was removed from the table.
        StoreUnavailable: The store failed; repeat the call.
    """
    warm_days = spec.explanations.warm_days if warm_days is None else warm_days
    expire_days = spec.explanations.expire_days if expire_days is None else expire_days
    store = open_store(settings, prefix=spec.prefix)
    standing = holds(store)
    restored = standing_dates(store, as_of)
    view = table_view(store, AUDIT_TABLE)
    hot: dict[date, list[LiveFile]] = {}
    held: set[date] = set()
    for file in view.files if view else ():
        if (as_of - file.event_date).days > warm_days:
            if is_held(standing, file.event_date):
                held.add(file.event_date)
            elif file.event_date not in restored:
                hot.setdefault(file.event_date, []).append(file)
    rows = sum(file.rows for files in hot.values() for file in files)
    before = archived_dates(store)
    added = int(rows * _row_bytes(before))
    if not dry_run:
        rows = sum(_archive(store, spec.explanations, event_date, clock) for event_date in sorted(hot))
        after = archived_dates(store)
        for archived in after.values():
            _drop_unreferenced(store, archived)
        added = sum(_size_of(after.get(day)) - _size_of(before.get(day)) for day in hot)
    returned = () if dry_run else record_returned(store, as_of, clock)
    restored = standing_dates(store, as_of)
    old = {
        day: item
        for day, item in archived_dates(store).items()
        if (as_of - day).days > expire_days and day not in restored
    }
    standing = holds(store)  # again: moving days takes its time, and what expires is gone
    held |= {day for day, item in old.items() if item.state == "archived" and is_held(standing, day)}
    old = {day: item for day, item in old.items() if not is_held(standing, day)}
    expired = [item for item in old.values() if item.state == "archived"]
    if not dry_run:
        for item in expired:
            _expire(store, item, clock)
        for day in old:  # also what a crash left of an earlier expiry
            newest = archived_date(store, day)
            if newest is not None and newest.state == "expired":
                store.delete(newest.key)
    done = Retained(
        as_of=as_of,
        archived_days=tuple(sorted(hot)),
        archived_rows=rows,
        expired_days=tuple(item.event_date for item in expired),
        expired_rows=sum(item.rows for item in expired),
        hot_bytes_freed=sum(file.size_bytes for files in hot.values() for file in files),
        archive_bytes_freed=sum(item.size_bytes for item in expired),
        dry_run=dry_run,
        held_days=tuple(sorted(held)),
        archive_bytes_added=added,
        restored_days=tuple(sorted(restored)),
        returned_days=returned,
    )
    log.info(
        "Audit retention as of %s%s: %d days (%s rows) archived, %d days expired, %d held.",
        as_of,
        ", dry run" if dry_run else "",
        len(done.archived_days),
        f"{done.archived_rows:,}",
        len(done.expired_days),
        len(done.held_days),
    )
    forget_reader(spec)
    return done


def _live(store: ObjectStore, event_date: date) -> list[LiveFile]:
    """The audit table's files of a date."""
    view = table_view(store, AUDIT_TABLE)
    return [file for file in view.files if file.event_date == event_date] if view else []


def _size_of(archived: ArchivedDate | None) -> int:
    return archived.size_bytes if archived and archived.state == "archived" else 0


def _row_bytes(archived: dict[date, ArchivedDate]) -> float:
    kept = [item for item in archived.values() if item.state == "archived" and item.rows]
    rows = sum(item.rows for item in kept)
    return sum(item.size_bytes for item in kept) / rows if rows else _COLD_ROW_BYTES


def _archive(store: ObjectStore, kind: ExplanationSpec, event_date: date, clock: Clock) -> int:
    """Move one date; returns the rows that left the audit table."""
    for _ in range(_TURNS):
        files = _live(store, event_date)
        if not files:
            return 0
        before = archived_date(store, event_date)
        if not all(_covered(file, before) for file in files) and not _copy(
            store, kind, event_date, files, before, clock
        ):
            continue  # another retention made this generation first: see what it holds
        removed = _remove(store, event_date)
        if removed:
            return removed
    raise StoreUnavailable(
        "other retentions of this date kept coming first", which=f"audit date {event_date}", fix="repeat"
    )


def _copy(
    store: ObjectStore,
    kind: ExplanationSpec,
    event_date: date,
    files: list[LiveFile],
    before: ArchivedDate | None,
    clock: Clock,
) -> bool:
    """Put the rows of `files`, and of the generation before, into a new generation. False when it was taken."""
    kept = before is not None and before.state == "archived"
    try:
        tables = [_read(store, f"{AUDIT_TABLE}/{file.path}") for file in files]
        if before is not None and kept:
            tables.append(cold_rows(store, before, "", "~").drop_columns([EXPLANATION.name]))
    except NotFound:
        if before is not None and has_moved_on(store, before):
            return False
        if {file.path for file in files} <= {one.path for one in _live(store, event_date)}:
            raise
        return False  # an erasure deleted what it had replaced
    table = _merged(tables)
    data = encode(table, top_k=kind.top_k, values=kind.cold_values)
    sha256 = digest_bytes(data)
    key = data_key(event_date, sha256)
    reached("before-archive-file")
    store.put(key, data)
    check_copy(store, key, sha256, table.num_rows)
    reached("after-archive-file")
    earlier = before.hot_files if before is not None and kept else ()
    made = ArchivedDate(
        event_date=event_date,
        generation=before.generation + 1 if before else 1,
        state="archived",
        key=key,
        rows=table.num_rows,
        size_bytes=len(data),
        sha256=sha256,
        hot_files=tuple(sorted({*earlier, *(file.path for file in files)})),
        recorded_at_utc=iso_utc(clock()),
        format=COLD_FORMAT,
        top_k=kind.top_k,
        values_kept=kind.cold_values,
        explained_rows=table.num_rows - table.column("attributions").null_count,
    )
    try:
        record(store, made)
    except AlreadyExists:
        return False
    reached("after-archive-record")
    return True


def _covered(file: LiveFile, archived: ArchivedDate | None) -> bool:
    """Whether the archive holds the rows of this file of the table."""
    if archived is None or archived.state != "archived":
        return False
    return file.path in archived.hot_files or is_copy(file, archived)


def _remove(store: ObjectStore, event_date: date) -> int:
    """Remove from the audit table the files of this date that the archive holds; returns their rows."""
    rows = 0

    def decide(view: TableView) -> Change | None:
        nonlocal rows
        archived = archived_date(store, event_date)
        gone = tuple(
            file for file in view.files if file.event_date == event_date and _covered(file, archived)
        )
        rows = sum(file.rows for file in gone)
        if not gone:
            return None
        return Change(remove=gone, note={"penstock_archived": event_date.isoformat()})

    commit_change(
        store,
        AUDIT_TABLE,
        schema=lambda: AUDIT_SCHEMA,
        decide=decide,
        points=("before-archive-delete", "after-archive-delete"),
    )
    return rows


def _expire(store: ObjectStore, archived: ArchivedDate, clock: Clock) -> None:
    made = replace(
        archived,
        generation=archived.generation + 1,
        state="expired",
        hot_files=(),
        recorded_at_utc=iso_utc(clock()),
        cause="retention",
    )
    try:
        record(store, made)
    except AlreadyExists:
        return  # another retention was faster; the next call sees what it did
    reached("after-expired-record")


def _drop_unreferenced(store: ObjectStore, archived: ArchivedDate) -> None:
    """Delete data of older generations, which the newest one holds too.

    Only files that an older record names: one without a record may be another retention's copy under way.
    """
    for key in older_keys(store, archived) - {archived.key}:
        store.delete(key)


def _read(store: ObjectStore, key: str) -> pa.Table:
    """All columns of a file: those of this release in its order and types, null where an earlier one wrote none."""
    with store.open(key) as file:
        table = with_texts(pq.read_table(file), feature_sets(store))
    for field in AUDIT_SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    known = table.select(AUDIT_SCHEMA.names).cast(AUDIT_SCHEMA)
    for name in table.column_names:
        if name not in (*AUDIT_SCHEMA.names, *EARLIER_COLUMNS):  # of a later release: not this one's to drop
            known = known.append_column(table.schema.field(name), table.column(name))
    return known


def _merged(tables: list[pa.Table]) -> pa.Table:
    """All rows once, by (prediction id, run, moment if online): equal input gives equal order, so equal bytes.

    Of the copies of a row one that was erased counts, then the one of the earlier table.
    """
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    keys = pa.table(
        {
            "prediction_id": table["prediction_id"],
            "run_id": table["run_id"],
            "moment": pc.fill_null(online_scored_at(table).cast(pa.int64()), -1),
            "whole": pc.is_null(table["erasure_id"]),
            "place": np.arange(table.num_rows),
        }
    )
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    keys = keys.take(order)
    same = np.zeros(table.num_rows, np.bool_)
    if table.num_rows:
        one, other = keys.slice(1), keys.slice(0, table.num_rows - 1)
        equal = [pc.equal(one[name], other[name]) for name in ("prediction_id", "run_id", "moment")]
        same[1:] = pc.and_(pc.and_(equal[0], equal[1]), equal[2]).to_numpy()
    return table.take(order.filter(pa.array(~same)))
