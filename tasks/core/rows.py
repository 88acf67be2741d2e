"""What identifies rows of a table: entity ids, prediction ids and local days, computed for whole columns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataError
from tasks.core.prediction_ids import PredictionIds
from tasks.core.spec import PipelineSpec

_QUARTER_US = 900_000_000  # no zone has changed its offset inside a quarter of an hour since 1920
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def entity_ids(table: pa.Table, spec: PipelineSpec) -> list[str]:
    """`ids.entity_id` of every row, in row order.

    Raises:
        DataError: A key column is missing or holds nulls.
    """
    values: list[str] = entity_column(table, spec).to_pylist()
    return values


def entity_column(table: pa.Table, spec: PipelineSpec) -> pa.Array:
    """`entity_ids` as a string array of shape (rows,)."""
    parts = [_as_text(_column(table, name)) for name in spec.entity_key]
    joined = parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "|")
    return joined.combine_chunks()


def prediction_ids(table: pa.Table, spec: PipelineSpec) -> list[str]:
    """`ids.prediction_id` of every row, in row order (I5).

    Raises:
        DataError: A key column or the event time is missing or holds nulls, or a time is before 1970.
    """
    found = PredictionIds.of(entity_column(table, spec), event_micros(table, spec), spec)
    values: list[str] = found.texts().to_pylist()
    return values


def local_days(table: pa.Table, spec: PipelineSpec) -> pa.Array:
    """The day of every row in `source.time_zone`, as date32, in row order.

    Raises:
        DataError: The event time is missing, is not a timestamp, or holds nulls.
    """
    micros = event_micros(table, spec)
    local = micros + _per_quarter(micros, _utc_offset(ZoneInfo(spec.source.time_zone)))
    return pa.array((local // 86_400_000_000).astype(np.int32)).cast(pa.date32())


def naive_to_utc(column: pa.ChunkedArray, time_zone: str) -> pa.ChunkedArray:
    """Wall-clock timestamps of `time_zone` as timestamp[us, tz=UTC]; nulls stay.

    A time that the clock shows twice is the first of the two; one that it skips is read with the offset
    from before the change.
    """
    micros = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    valid = pc.is_valid(micros).to_numpy(zero_copy_only=False)
    values = pc.fill_null(micros, 0).to_numpy()
    moved = values - _per_quarter(values, _wall_offset(ZoneInfo(time_zone)))
    filled = pa.array(moved, pa.int64(), mask=~valid).cast(pa.timestamp("us", tz="UTC"))
    return pa.chunked_array([filled])


def utc_to_naive(column: pa.ChunkedArray, time_zone: str) -> pa.ChunkedArray:
    """Moments as the wall-clock timestamps of `time_zone`, timestamp[us] without a zone; nulls stay.

    Offsets come from Python's zoneinfo, which has the `tzdata` package where the machine ships no zones.
    """
    micros = column.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64())
    valid = pc.is_valid(micros).to_numpy(zero_copy_only=False)
    values = pc.fill_null(micros, 0).to_numpy()
    moved = values + _per_quarter(values, _utc_offset(ZoneInfo(time_zone)))
    return pa.chunked_array([pa.array(moved, pa.int64(), mask=~valid).cast(pa.timestamp("us"))])


def event_micros(table: pa.Table, spec: PipelineSpec) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Event times, microseconds since 1970 UTC, shape (rows,).

    Raises:
        DataError: The column is missing, holds nulls, or is not a timestamp with a time zone.
    """
    column = _column(table, spec.event_time)
    if not pa.types.is_timestamp(column.type) or column.type.tz is None:
        raise DataError(
            f"is {column.type}, not a timestamp with a time zone",
            which=f"column {spec.event_time}",
            fix="store the event time as timestamp[us, tz=UTC]",
        )
    micros = column.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64())
    values: np.ndarray[Any, np.dtype[np.int64]] = micros.to_numpy()
    return values


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise DataError(
            "is missing",
            which=f"column {name}",
            fix=f"the table has: {', '.join(table.column_names)}",
        )
    column = table.column(name)
    if column.null_count:
        raise DataError(
            f"is null in {column.null_count:,} of {len(column):,} rows",
            which=f"column {name}",
            fix="remove or repair those rows: without it a row has no identity",
        )
    return column


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`str(value)` of every value, escaped as `ids.entity_id` does."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _as_text(column.cast(kind.value_type))
    if pa.types.is_integer(kind):
        return column.cast(pa.string())  # digits and a sign: nothing to escape
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = column.cast(pa.string())
    else:  # Python's own text of a date, float or bool differs from Arrow's
        text = pa.chunked_array([pa.array([str(value) for value in column.to_pylist()], pa.string())])
    return pc.replace_substring(pc.replace_substring(text, "\\", "\\\\"), "|", "\\|")


def _per_quarter(
    micros: np.ndarray[Any, np.dtype[np.int64]], offset_us: Callable[[int], int]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`offset_us` of each value, asked once for every quarter of an hour that occurs."""
    quarters, index = np.unique(micros // _QUARTER_US, return_inverse=True)
    offsets = np.array([offset_us(int(quarter) * _QUARTER_US) for quarter in quarters], np.int64)
    return offsets[index] if len(offsets) else np.zeros(0, np.int64)


def _utc_offset(zone: ZoneInfo) -> Callable[[int], int]:
    def offset_us(moment_us: int) -> int:
        moment = (_EPOCH + timedelta(microseconds=moment_us)).astimezone(zone)
        return (moment.utcoffset() or timedelta()) // timedelta(microseconds=1)

    return offset_us


def _wall_offset(zone: ZoneInfo) -> Callable[[int], int]:
    def offset_us(wall_us: int) -> int:
        wall = (_EPOCH + timedelta(microseconds=wall_us)).replace(tzinfo=zone)
        return (wall.utcoffset() or timedelta()) // timedelta(microseconds=1)

    return offset_us
