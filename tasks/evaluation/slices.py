"""Which rows belong to which slice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core import PipelineSpec
from tasks.core.errors import ConfigError

MONTH = "month"
MAX_NUMERIC_VALUES = 12
"""A numeric column with more distinct values than this is cut at its quartiles."""
MAX_VALUES = 40
"""Rarer values of a column share one slice."""
NULL, RARE = "(null)", "(rarer values)"
QUARTILE = re.compile(r"Q\d: ")
"""How the name of a quartile starts."""

TextArray = npt.NDArray[np.object_]


def slice_column(name: str, rows: pa.Table, features: pa.Table, day: date, spec: PipelineSpec) -> pa.Array:
    """The raw slice values of one day's rows: a source column, else a feature, else `month` of the day.

    Raises:
        ConfigError: `gates.slices` names something that is none of these.
    """
    for table in (rows, features):
        if name in table.column_names:
            return table[name].combine_chunks()
    if name == MONTH:
        return pa.array([f"{day:%Y-%m}"] * rows.num_rows, pa.string())
    known = sorted({*rows.column_names, *features.column_names, MONTH})
    raise ConfigError(
        "is neither a source column nor a feature",
        which=f"pipelines/{spec.name}/pipeline.yaml: gates.slices: {name}",
        fix=f"use one of: {', '.join(known)}",
    )


def slice_values(columns: Sequence[pa.Array]) -> TextArray:
    """The slice of every row as text, from the column's pieces by day; shape (n,)."""
    column = pa.chunked_array([piece for piece in columns if len(piece)] or list(columns))
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_number(column.type) and len(pc.unique(column.drop_null())) > MAX_NUMERIC_VALUES:
        return _quartiles(column)
    values = pc.fill_null(column.cast(pa.string()), NULL).to_numpy(zero_copy_only=False).astype(object)
    names, index, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    if len(names) <= MAX_VALUES:
        return np.asarray(names.astype(object)[index])
    rare = np.ones(len(names), dtype=bool)
    rare[np.argsort(-counts, kind="stable")[: MAX_VALUES - 1]] = False
    return np.asarray(np.where(rare, RARE, names.astype(object))[index])


def _quartiles(column: pa.ChunkedArray) -> TextArray:
    numbers = pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()
    known = np.isfinite(numbers)
    edges = np.unique(np.quantile(numbers[known], [0.25, 0.5, 0.75]))
    texts = [f"{edge:.3g}" for edge in edges]
    if len(set(texts)) < len(texts):
        texts = [f"{edge:g}" for edge in edges]
    names = [
        f"up to {texts[0]}",
        *(f"{low} to {high}" for low, high in pairwise(texts)),
        f"above {texts[-1]}",
    ]
    names = [f"Q{number}: {name}" for number, name in enumerate(names, start=1)]
    found = np.full(len(numbers), NULL, dtype=object)
    found[known] = np.array(names, dtype=object)[np.searchsorted(edges, numbers[known], side="left")]
    return found


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))
