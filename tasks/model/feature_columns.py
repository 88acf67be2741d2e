"""Columns of a feature table as the arrays that profiles count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataError

FloatArray = npt.NDArray[np.float64]


def _chunks(features: pa.Table, name: str) -> pa.ChunkedArray:
    index = features.schema.get_field_index(name)
    if index < 0:
        raise DataError(
            "is missing",
            which=f"feature {name}",
            fix=f"return it from features.py; the table has: {', '.join(features.column_names)}",
        )
    return features.column(index)


def _column(features: pa.Table, name: str) -> pa.Array:
    chunked = _chunks(features, name)
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()


def numbers(features: pa.Table, name: str, room: FloatArray | None = None) -> FloatArray:
    """The column as float64 with NaN for null, in `room`, shape (n,), where it is given; else not copied where it lies so already.

    Raises `DataError` as `texts` does.
    """
    column = _chunks(features, name)
    if room is None:
        if column.num_chunks == 1:
            return _numbers(column.chunk(0), column, name)
        room = np.empty(len(column))
    at = 0
    for chunk in column.chunks:
        room[at : at + len(chunk)] = _numbers(chunk, column, name)
        at += len(chunk)
    return room


def number_matrix(features: pa.Table, names: Sequence[str]) -> FloatArray:
    """The columns as float64 with NaN for null, shape (len(names), n), never of the table's memory. Raises `DataError` as `numbers` does."""
    columns = [_chunks(features, name) for name in names]
    if columns and features.num_rows and all(column.type == pa.float64() for column in columns):
        parts = [
            batch.to_tensor(null_to_nan=True, row_major=False).to_numpy().T
            for batch in features.select(names).to_batches()
        ]
        whole: FloatArray = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        return whole
    found = np.empty((len(names), features.num_rows))
    for name, row in zip(names, found, strict=True):
        numbers(features, name, row)
    return found


def _numbers(chunk: pa.Array, column: pa.ChunkedArray, name: str) -> FloatArray:
    try:
        if not pa.types.is_float64(chunk.type):
            chunk = pc.cast(chunk, pa.float64(), safe=False)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"is {column.type}, not numeric: {error}", which=f"feature {name}", fix="return numbers for it"
        ) from error
    except pa.ArrowNotImplementedError as error:
        raise DataError(
            f"is {column.type}, not numeric", which=f"feature {name}", fix="return numbers for it"
        ) from error
    found: FloatArray = chunk.to_numpy(zero_copy_only=False)
    return found


def texts(features: pa.Table, name: str) -> pa.Array:
    """The column as strings, in one piece. Raises `DataError` when it is missing or has no text form."""
    column = _column(features, name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type == pa.string():
        return column
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"is {column.type}, which has no text form", which=f"feature {name}", fix="return strings for it"
        ) from error
