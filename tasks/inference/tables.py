"""The predictions table's rows and its Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.columns import constant
from tasks.core.delta import FileName, TableFile
from tasks.core.ids import digest_bytes
from tasks.core.object_store import ObjectStore
from tasks.core.scored import ScoredRows
from tasks.core.spec import PipelineSpec

PREDICTION_COLUMNS = (
    "prediction_id",
    "event_time",
    "event_date",
    "day",
    "pipeline",
    "entity_id",
    "score",
    "model_version",
    "bundle_digest",
    "feature_version",
    "run_id",
    "shard",
    "source_snapshot",
    "scored_at",
)
"""Every predictions table has these; the entity key's columns come after `entity_id`."""

PREDICTION_GROUP_ROWS = 16_384
AUDIT_GROUP_ROWS = 2_048
"""Small, because a look-up by id reads one row group (docs/audit.md)."""

_STATISTICS = ("prediction_id", "event_time", "day", "score", "prediction")
_DISTINCT = frozenset({"prediction_id", "event_time", "entity_id", "feature_asof", "source_row"})
"""Columns with about as many values as rows: looking for a dictionary costs more than all other columns."""


def key_column(name: str) -> str:
    """The table's column for an entity key column: its own name, unless the table uses that itself."""
    return f"key_{name}" if name in PREDICTION_COLUMNS else name


def prediction_table(scored: ScoredRows, rows: pa.Table, spec: PipelineSpec) -> pa.Table:
    """Rows of the predictions table, without `event_date`, which the file's folder says.

    Args:
        scored: n rows in order of prediction id.
        rows: The entity key's columns of their source rows, same order; shape (n, columns).
        spec: Names the entity key.
    """
    n = len(scored.prediction_ids)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "prediction_id": scored.prediction_ids.texts(),
        "event_time": scored.event_times,
        "day": pa.repeat(pa.scalar(scored.day, pa.date32()), n),
        "pipeline": constant(scored.pipeline, pa.string(), n),
        "entity_id": scored.entity_ids,
        **{key_column(name): _plain(rows.column(name)) for name in spec.entity_key},
        "score": pa.array(scored.scores, pa.float32()),
        "model_version": constant(scored.model_version, pa.int32(), n),
        "bundle_digest": constant(scored.bundle_digest, pa.string(), n),
        "feature_version": constant(scored.feature_version, pa.string(), n),
        "run_id": constant(scored.run_id, pa.string(), n),
        "shard": constant(scored.shard, pa.int32(), n),
        "source_snapshot": constant(scored.source_snapshot, pa.string(), n),
        "scored_at": constant(scored.scored_at, pa.timestamp("us", tz="UTC"), n),
    }
    return pa.table(columns)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A key column in a type that Delta has: every integer as int64, other unusual types as text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_integer(kind):
        return column.cast(pa.int64())
    if pa.types.is_floating(kind):
        return column.cast(pa.float64())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return column.cast(pa.timestamp("us", tz="UTC"), safe=False)
    if pa.types.is_boolean(kind) or pa.types.is_date32(kind):
        return column
    return column.cast(pa.string())


def by_event_date(table: pa.Table) -> Iterator[tuple[date, pa.Table]]:
    """The rows of each UTC event date, of a table in order of prediction id (so a date's rows are together)."""
    if not table.num_rows:
        return
    dates = np.asarray(table.column("event_time").cast(pa.date32()).cast(pa.int32()).to_numpy())
    cuts = [0, *(np.flatnonzero(np.diff(dates)) + 1).tolist(), len(dates)]
    for start, stop in pairwise(cuts):
        moment: date = table.column("event_time")[start].as_py().date()
        yield moment, table.slice(start, stop - start)


def write_table_file(
    store: ObjectStore, folder: str, name: FileName, table: pa.Table, *, group_rows: int
) -> TableFile:
    """Write one data file under its attempt-unique name; it is part of no table until a transaction adds it."""
    leaves = _leaf_columns(table)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=group_rows,
        compression="zstd",
        use_dictionary=[path for path, split in leaves if not split and path not in _DISTINCT],
        use_byte_stream_split=[path for path, split in leaves if split] or False,
        write_statistics=[name for name in _STATISTICS if name in table.column_names],
        store_schema=False,  # or a reader would get the dictionaries of `constant` instead of plain columns
    )
    data = sink.getvalue().to_pybytes()
    path = str(name)
    # Attempt-unique, so replacing can only mean a repeated send of the same bytes.
    store.put(f"{folder}/{path}", data)
    return TableFile(path, name.event_date, table.num_rows, len(data), digest_bytes(data), statistics(table))


def _leaf_columns(table: pa.Table) -> list[tuple[str, bool]]:
    """(Parquet column path, whether it holds float32) of each leaf column."""
    leaves: list[tuple[str, bool]] = []
    for column in table.schema:
        kind = column.type
        if pa.types.is_list(kind):
            leaves.append((f"{column.name}.list.element", pa.types.is_float32(kind.value_type)))
        elif pa.types.is_map(kind):
            leaves += [(f"{column.name}.key_value.{part}", False) for part in ("key", "value")]
        else:
            leaves.append((column.name, pa.types.is_float32(kind)))
    return leaves


def statistics(table: pa.Table) -> dict[str, Any]:
    """Delta's statistics of a file: row count, bounds and null counts of the columns that queries prune by.

    Rows are in order of prediction id, as everywhere in these tables.
    """
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for name in _STATISTICS:
        if name not in table.column_names:
            continue
        column = table.column(name)
        nulls[name] = column.null_count
        if name == "prediction_id" and len(column):
            low[name], high[name] = column[0].as_py(), column[-1].as_py()
            continue
        bounds = pc.min_max(column)
        if bounds["min"].is_valid:
            low[name], high[name] = _bound(bounds["min"], up=False), _bound(bounds["max"], up=True)
    return {"numRecords": table.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls}


def _bound(value: pa.Scalar, *, up: bool) -> Any:
    if pa.types.is_timestamp(value.type):
        # Delta keeps milliseconds: round outwards, or a reader would prune the row that set the bound.
        micros = value.cast(pa.int64()).as_py()
        millis = -(-micros // 1000) if up else micros // 1000
        moment = pa.scalar(millis, pa.timestamp("ms", tz="UTC")).as_py()
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    found = value.as_py()
    return found.isoformat() if isinstance(found, date) else found
