"""What rows must be before they become a snapshot. Each check raises a `DataError` with its fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataError
from tasks.core.ids import digest_bytes
from tasks.core.near_names import or_near
from tasks.core.rows import naive_to_utc
from tasks.core.spec import PipelineSpec

_COMPARABLE_ROWS = 20
"""Days with fewer rows may honestly look alike."""


def require_columns(present: Sequence[str], needed: Iterable[str], spec: PipelineSpec) -> None:
    """Refuse a source that lacks a column of `needed`; close matches are offered."""
    missing = [name for name in dict.fromkeys(needed) if name not in present]
    if not missing:
        return
    raise DataError(
        f"lacks {'column' if len(missing) == 1 else 'columns'} {', '.join(or_near(name, present) for name in missing)}",
        which=_source(spec),
        fix=f"name the columns in pipeline.yaml as the source does; it has: {', '.join(present)}",
    )


def with_event_time(table: pa.Table, spec: PipelineSpec, *, allow_null: bool = False) -> pa.Table:
    """`table` with the event time as timestamp[us, tz=UTC].

    Texts are parsed as ISO 8601. A time without an offset is a wall-clock time of `source.time_zone`.

    Raises:
        DataError: The column is not a timestamp or holds nulls.
    """
    name = spec.event_time
    column = table.column(name)
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = _parse_times(column, spec)
        kind = column.type
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us"))
        kind = column.type
    if not pa.types.is_timestamp(kind):
        raise DataError(
            f"is {kind}, not a timestamp",
            which=f"{_source(spec)}, column {name}",
            fix="store it as a timestamp or ISO 8601 text, or name another column as event_time",
        )
    utc = (
        naive_to_utc(column, spec.source.time_zone)
        if kind.tz is None
        else column.cast(pa.timestamp("us", tz="UTC"), safe=False)
    )
    if utc.null_count and not allow_null:
        _refuse_nulls(name, utc.null_count, len(utc), spec)
    return table.set_column(table.column_names.index(name), name, utc)


def _parse_times(column: pa.ChunkedArray, spec: PipelineSpec) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(column)
    with_offset = pc.match_substring_regex(text, r"(Z|[+-]\d{2}:?\d{2})$")
    zoned = bool(pc.any(with_offset).as_py())
    try:
        return text.cast(pa.timestamp("us", tz="UTC") if zoned else pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        example = next((value for value in text.to_pylist() if not _is_time(value)), "")
        raise DataError(
            f"holds text that is not a time, for example {example!r}"
            if example
            else "mixes times with and without an offset",
            which=f"{_source(spec)}, column {spec.event_time}",
            fix="write times as ISO 8601, for example 2024-05-01T08:30:00Z",
        ) from error


def _is_time(value: str | None) -> bool:
    if value is None:
        return True
    for kind in (pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
        try:
            pa.scalar(value).cast(kind)
        except pa.ArrowInvalid:
            continue
        return True
    return False


def refuse_null_keys(table: pa.Table, spec: PipelineSpec) -> None:
    for name in spec.entity_key:
        nulls = table.column(name).null_count
        if nulls:
            _refuse_nulls(name, nulls, table.num_rows, spec)


def _refuse_nulls(name: str, nulls: int, rows: int, spec: PipelineSpec) -> None:
    raise DataError(
        f"is null in {nulls:,} of {rows:,} rows",
        which=f"{_source(spec)}, column {name}",
        fix="deliver rows with their key and time, or filter such rows out in the source",
    )


def refuse_duplicates(table: pa.Table, spec: PipelineSpec) -> None:
    """A row is named by its entity key and event time; two such rows would share a prediction id (I5)."""
    names = [*spec.entity_key, spec.event_time]
    groups = table.select(names).group_by(names).aggregate([([], "count_all")])
    counts = groups.column("count_all")
    repeated = groups.filter(pc.greater(counts, 1))
    if not repeated.num_rows:
        return
    first = repeated.slice(0, 1).to_pylist()[0]
    shown = ", ".join(f"{name}={first[name]}" for name in names)
    raise DataError(
        f"holds {repeated.num_rows:,} key{'s' * (repeated.num_rows > 1)} more than once, for example {shown} ({first['count_all']} rows)",
        which=f"{_source(spec)}, columns {', '.join(names)}",
        fix="deliver each row once, or add the column that tells them apart to entity_key (--key of `penstock new`)",
    )


def with_label(table: pa.Table, spec: PipelineSpec) -> pa.Table:
    """`table` with the label as int8: 0, 1 or null.

    Raises:
        DataError: It holds anything else.
    """
    name = spec.label.column
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    which = f"{_source(spec)}, column {name}"
    fix = "make the label 0, 1 or null (booleans are fine), or name another column as label.column"
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if not (numeric or pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
        raise DataError(f"is {column.type}, not 0 / 1", which=which, fix=fix)
    values = column.cast(pa.float64()) if numeric else column.cast(pa.int8()).cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), None, values)
    others = pc.unique(values.filter(pc.invert(pc.is_in(values, pa.array([0.0, 1.0, None])))))
    if len(others):
        shown = ", ".join(f"{value:g}" for value in others.to_pylist()[:5])
        raise DataError(f"holds {shown}, not only 0, 1 and null", which=which, fix=fix)
    return table.set_column(table.column_names.index(name), name, values.cast(pa.int8()))


def refuse_one_class(table: pa.Table, spec: PipelineSpec) -> None:
    """Nothing can be learned from a label that is always the same."""
    classes = sorted(
        value for value in pc.unique(table.column(spec.label.column)).to_pylist() if value is not None
    )
    if len(classes) == 2:
        return
    found = f"is {classes[0]} in every labelled row" if classes else "is null in every row"
    raise DataError(
        found,
        which=f"{_source(spec)}, column {spec.label.column}",
        fix="choose a training window that holds both outcomes, or another label",
    )


def delivery_digest(day_rows: pa.Table) -> str | None:
    """What a day's rows say apart from when: equal for a batch delivered again under another date.

    None when the day has too few rows to tell.
    """
    if day_rows.num_rows < _COMPARABLE_ROWS:
        return None
    kept = [field.name for field in day_rows.schema if not pa.types.is_temporal(field.type)]
    if not kept:
        return None
    sink = pa.BufferOutputStream()
    table = day_rows.select(kept).combine_chunks().replace_schema_metadata(None)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        # A take copies into fresh buffers: what lies under nulls or before an offset cannot differ
        writer.write_table(table.take(np.arange(table.num_rows)))
    return digest_bytes(sink.getvalue().to_pybytes())


def refuse_redelivery(digests: dict[date, str | None], spec: PipelineSpec) -> None:
    seen: dict[str, date] = {}
    for day in sorted(digests):
        digest = digests[day]
        if digest is None:
            continue
        twin = seen.setdefault(digest, day)
        if twin != day:
            raise DataError(
                f"holds the same rows for {twin} and {day}: one delivery arrived twice",
                which=_source(spec),
                fix=f"deliver the right rows for {day}, or leave that day out",
            )


def _source(spec: PipelineSpec) -> str:
    return f"{spec.name} source {spec.source.uri}"
