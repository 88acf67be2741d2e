"""The Parquet files of the predictions and audit tables: their encodings and their statistics."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.delta import FileName, TableFile
from tasks.core.ids import digest_bytes
from tasks.core.object_store import ObjectStore

AUDIT_GROUP_ROWS = 2_048
"""Small, because a look-up by id reads one row group (docs/audit.md)."""

UNREPEATED = b"penstock.unrepeated"
"""Key of a file's metadata: its prediction ids ascend and none comes twice, so a reader need not look."""

_STATISTICS = ("prediction_id", "event_time", "day", "score", "prediction")
_ENCODINGS = {
    "prediction_id": "DELTA_BYTE_ARRAY",
    "event_time": "DELTA_BINARY_PACKED",
    "source_row": "DELTA_BINARY_PACKED",
}
"""Of columns in order, or of small steps: they share what does not change from row to row."""
_NO_DICTIONARY = frozenset({"entity_id"})
"""About as many values as rows: looking for a dictionary costs more than all other columns."""
_OFTEN_REPEATED = {"feature_values": "feature_values.list.element"}
"""Columns of floats that have few values in many pipelines; which encoding is smaller shows in the rows."""
_FEW = 4
"""Values of a column that compression has nothing to gain from."""
_DICTIONARY_BELOW = 0.35
"""Share of distinct values below which a dictionary of floats is smaller than their bytes split into streams."""


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
    leaves = dict(_leaf_columns(table))
    repeated = {path for name, path in _OFTEN_REPEATED.items() if path in leaves and _repeats(table[name])}
    # In lists only: Spark before 4.3 reads split streams with its slow reader alone, and single columns gain nothing.
    split = [path for path, is_float in leaves.items() if is_float and "." in path and path not in repeated]
    encodings = {path: kind for path, kind in _ENCODINGS.items() if path in leaves}
    # To set up a compressor costs more than a page of one value holds: an eighth of all writing, and of reading.
    bare = {path for path in leaves if "." not in path and path not in encodings and _few_values(table[path])}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression={path: "NONE" if path in bare else "ZSTD" for path in leaves},
        use_dictionary=[
            path
            for path, is_float in leaves.items()
            if path in repeated or not (is_float or path in encodings or path in _NO_DICTIONARY)
        ],
        column_encoding={**encodings, **dict.fromkeys(split, "BYTE_STREAM_SPLIT")} or None,
        write_statistics=[name for name in _STATISTICS if name in table.column_names],
        write_page_checksum=True,  # 0.1 % of the size; without it flipped bits would pass for values
        store_schema=False,  # or a reader would get the dictionaries of `constant` instead of plain columns
    ) as writer:
        writer.write_table(table, row_group_size=group_rows)
        if ascending(table):
            writer.add_key_value_metadata({UNREPEATED: b"1"})
    data = sink.getvalue().to_pybytes()
    path = str(name)
    # Attempt-unique, so replacing can only mean a repeated send of the same bytes.
    store.put(f"{folder}/{path}", data)
    return TableFile(path, name.event_date, table.num_rows, len(data), digest_bytes(data), statistics(table))


def ascending(table: pa.Table) -> bool:
    """Whether the prediction ids ascend and none comes twice."""
    ids = table.column("prediction_id").combine_chunks()
    return bool(pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py())


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


def _repeats(lists: pa.ChunkedArray) -> bool:
    """Whether the first row group's worth of these lists holds few distinct values."""
    sample = pc.list_flatten(lists.slice(0, AUDIT_GROUP_ROWS))
    return len(sample) > 0 and pc.count_distinct(sample).as_py() < _DICTIONARY_BELOW * len(sample)


def _few_values(column: pa.ChunkedArray) -> bool:
    """Whether a column holds next to nothing: some value over and over, or nulls."""
    if column.null_count == len(column):
        return True
    if pa.types.is_dictionary(column.type):
        return all(len(chunk.dictionary) <= _FEW for chunk in column.chunks)
    return bool(pc.count_distinct(column.slice(0, AUDIT_GROUP_ROWS), mode="all").as_py() <= _FEW)


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
