"""Columns of one value: what a run writes on each of its rows without building n equal strings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def constant(
    value: Any, kind: pa.DataType, n: int, *, where: npt.NDArray[np.bool_] | None = None
) -> pa.DictionaryArray:
    """`value`, which may be None, in n rows, null where `where`, shape (n,), is false; dictionary-encoded.

    Parquet writes the dictionary as it is; read again, the column has the plain type (`table_files.write_table_file`
    leaves Arrow's own schema out of the file).
    """
    if value is None:
        return pa.DictionaryArray.from_arrays(pa.nulls(n, pa.int8()), pa.array([], kind))
    indices = pa.array(np.zeros(n, np.int8), mask=None if where is None else ~where)
    return pa.DictionaryArray.from_arrays(indices, pa.array([value], kind))
