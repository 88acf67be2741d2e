"""Scorings: the audit rows of one prediction, one for each time that it was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.audit.files import ONE_VALUE, FileGone
from tasks.audit.query import Window
from tasks.audit.reader import AuditReader
from tasks.audit.rows import AUDIT_SCHEMA, with_texts

ROW_SCHEMA = pa.schema(
    [
        *(
            pa.field(field.name, pa.dictionary(pa.int32(), pa.string())) if field.name in ONE_VALUE else field
            for field in AUDIT_SCHEMA
        ),
        pa.field("tier", pa.string()),
        pa.field("explanation", pa.string()),
    ]
)
"""Rows of all tiers: `AUDIT_SCHEMA` with its text of few values as dictionaries, and what the tiers add."""

FILTERED = ("model_version", "prediction", "entity_id")
"""Columns that an `AuditFilter` looks at."""

_ORDER = ("prediction_id", "scored_at", "run_id")
_LOOKS = 3

Row = dict[str, Any]
_Answer = TypeVar("_Answer")


def steadily(look: Callable[[], _Answer]) -> _Answer:
    """The answer of `look`; asked again when a file was moved between finding and reading it.

    Raises:
        FileGone: It is gone, and what lists it still does.
    """
    for _ in range(_LOOKS - 1):
        try:
            return look()
        except FileGone:
            continue
    return look()


def joined(reader: AuditReader, tables: Sequence[pa.Table], names: Sequence[str] | None = None) -> pa.Table:
    """Rows of all tiers as one table of `ROW_SCHEMA`'s columns `names`, default all; what a file does not have is null."""
    schema = ROW_SCHEMA if names is None else pa.schema([ROW_SCHEMA.field(name) for name in names])
    whole = [_completed(reader, table, schema) for table in tables if table.num_rows]
    return pa.concat_tables(whole) if whole else schema.empty_table()


def passing(rows: pa.Table, window: Window) -> pa.ChunkedArray:
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
        low = pa.scalar(wanted.min_prediction, pa.float32())
        tests.append(pc.greater_equal(rows.column("prediction"), low))
    if wanted.max_prediction is not None:
        high = pa.scalar(wanted.max_prediction, pa.float32())
        tests.append(pc.less_equal(rows.column("prediction"), high))
    mask = tests[0]
    for test in tests[1:]:
        mask = pc.and_kleene(mask, test)
    return pc.fill_null(mask, False)


def as_rows(reader: AuditReader, tables: Sequence[pa.Table]) -> list[Row]:
    """Rows of all tiers as Python values by column; each has all columns of `AUDIT_SCHEMA`."""
    rows: list[Row] = []
    for table in tables:
        has_all = set(AUDIT_SCHEMA.names).issubset(table.column_names)
        rows += (table if has_all else _completed(reader, table, ROW_SCHEMA)).to_pylist()
    return rows


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Rows in order of id and scoring; one that is in two tiers comes once, as in the first."""
    unique: dict[tuple[Any, ...], Row] = {}
    for row in rows:  # as `rows.online_scored_at` says
        moment = row["scored_at"] if row["source_snapshot"] is None else None
        unique.setdefault((row["prediction_id"], row["run_id"], moment), row)
    return sorted(unique.values(), key=lambda row: tuple(row[name] for name in _ORDER))


def newest(rows: pa.Table) -> pa.Table:
    """The newest scoring of each prediction, in order of id; of equal ones the first. Needs the columns of `_ORDER`."""
    keys = {name: rows.column(name) for name in _ORDER} | {"run_id": rows.column("run_id").cast(pa.string())}
    keys["place"] = pa.chunked_array([np.arange(rows.num_rows, 0, -1)])
    order = pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys])
    ids = keys["prediction_id"].take(order).combine_chunks()
    last = pa.concat_arrays([pc.not_equal(ids[:-1], ids[1:]), pa.array([True][: len(ids)], pa.bool_())])
    return rows.take(order.filter(last))


def _completed(reader: AuditReader, table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema):
        return table
    if "feature_texts" in schema.names:
        table = with_texts(table, reader.feature_set)
    columns = []
    for field in schema:
        if field.name in table.column_names:
            columns.append(_as_type(table.column(field.name), field.type))
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(kind):
        return column
    if pa.types.is_dictionary(kind):
        plain = column.cast(pa.string())
        return plain.dictionary_encode().cast(kind)
    return column.cast(kind)
