"""Columns of a feature table as the arrays that profiles count."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataError

FloatArray = npt.NDArray[np.float64]


def _chunks(features: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in features.column_names:
        raise DataError(
            "is missing",
            which=f"feature {name}",
            fix=f"return it from features.py; the table has: {', '.join(features.column_names)}",
        )
    return features.column(name)


def _column(features: pa.Table, name: str) -> pa.Array:
    chunked = _chunks(features, name)
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()


def numbers(features: pa.Table, name: str, room: FloatArray | None = None) -> FloatArray:
    """The column as float64 with NaN for null, in `room`, shape (n,), where it is given. Raises `DataError` as `texts` does."""
    column = _chunks(features, name)
    room = np.empty(len(column)) if room is None else room
    at = 0
    for chunk in column.chunks:
        try:
            found = pc.cast(chunk, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"is {column.type}, not numeric: {error}",
                which=f"feature {name}",
                fix="return numbers for it",
            ) from error
        except pa.ArrowNotImplementedError as error:
            raise DataError(
                f"is {column.type}, not numeric", which=f"feature {name}", fix="return numbers for it"
            ) from error
        room[at : at + len(chunk)] = found
        at += len(chunk)
    return room


def texts(features: pa.Table, name: str) -> pa.Array:
    """The column as strings, in one piece. Raises `DataError` when it is missing or has no text form."""
    column = _column(features, name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"is {column.type}, which has no text form", which=f"feature {name}", fix="return strings for it"
        ) from error
