"""Which days are tried, and rows that are bad on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa

from tasks.core import PipelineSpec
from tasks.core.errors import DataError

DEFAULT_DAYS = 21
MIN_TRAIN_DAYS, MIN_VALIDATION_DAYS = 7, 4
"""Early stopping needs days of its own; an interval over days and a slice need at least three."""
FEWEST_DAYS = MIN_TRAIN_DAYS + MIN_VALIDATION_DAYS


@dataclass(frozen=True)
class Sample:
    """Whole days, as near to the border of training and validation as there are."""

    train_first_day: date
    validation_first_day: date
    last_day: date
    days: int


def choose_days(days: Sequence[date], windows: tuple[date, date, date, date], count: int) -> Sample:
    """The last training days and the first validation days of a source, `count` in all, one in five to validate on.

    Args:
        days: Days that the source has, in order.
        windows: First and last training day, first and last validation day.
        count: At least `FEWEST_DAYS`; windows that hold fewer days are taken whole.

    Raises:
        DataError: The windows hold too few days to train and judge on.
    """
    first, train_last, validation_first, last = windows
    train = [day for day in days if first <= day <= train_last]
    validation = [day for day in days if validation_first <= day <= last]
    if len(train) < 2 or not validation:
        raise DataError(
            f"has {len(train)} training days from {first} to {train_last} and {len(validation)} validation days from "
            f"{validation_first} to {last}",
            which="source",
            fix="correct split in pipeline.yaml, or let the source deliver these days",
        )
    held_out = min(len(validation), max(MIN_VALIDATION_DAYS, count // 5))
    kept = train[-max(1, count - held_out) :]
    return Sample(kept[0], validation[0], validation[held_out - 1], len(kept) + held_out)


def days_for_rows(rows: int, rows_per_day: float) -> int:
    """As many whole days as hold about `rows` rows, and never too few to train and judge on."""
    return max(FEWEST_DAYS, int(rows // max(rows_per_day, 1.0)))


@dataclass(frozen=True)
class Planted:
    """A day whose every second row is wrong in one way."""

    rows: pa.Table
    columns: tuple[str, ...]
    """Columns that were changed."""


def plant(rows: pa.Table, spec: PipelineSpec, kind: str) -> Planted:
    """`rows` with faults of `kind` (a key of `KINDS`) in every column that may have them, key and label excepted."""
    fits, spoil = KINDS[kind]
    untouched = {*spec.entity_key, spec.event_time, *spec.label.known_afterwards}
    bad = np.arange(rows.num_rows) % 2 == 0
    columns = []
    for index, field in enumerate(rows.schema):
        if field.name in untouched or not fits(field.type):
            continue
        spoilt = spoil(rows.column(index).combine_chunks(), bad)
        rows = rows.set_column(index, pa.field(field.name, field.type), spoilt)
        columns.append(field.name)
    return Planted(rows, tuple(columns))


def _nulls(column: pa.Array, bad: np.ndarray) -> pa.Array:
    return pa.compute.if_else(pa.array(bad), pa.scalar(None, column.type), column)


def _out_of_range(column: pa.Array, bad: np.ndarray) -> pa.Array:
    """The first bad row gets the smallest number, the next the largest, and so on."""
    low, high = _extremes(column.type)
    planted = np.where(np.arange(len(column)) % 4 == 0, low, high)
    return pa.compute.if_else(pa.array(bad), pa.array(planted).cast(column.type), column)


def _unknown(column: pa.Array, bad: np.ndarray) -> pa.Array:
    return pa.compute.if_else(pa.array(bad), pa.scalar("penstock ci planted this", column.type), column)


def _extremes(kind: pa.DataType) -> tuple[float, float] | tuple[int, int]:
    if pa.types.is_floating(kind):
        return (-1e12, 1e12) if kind.bit_width > 16 else (-6e4, 6e4)
    bits = kind.bit_width
    if pa.types.is_unsigned_integer(kind):
        return 0, min(2**bits - 1, 10**12)
    return -min(2 ** (bits - 1), 10**12), min(2 ** (bits - 1) - 1, 10**12)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


KINDS: dict[str, tuple[Callable[[pa.DataType], bool], Callable[[pa.Array, np.ndarray], pa.Array]]] = {
    "missing values": (lambda _: True, _nulls),
    "numbers out of range": (_is_number, _out_of_range),
    "unknown categories": (_is_text, _unknown),
}
REQUIRED = ("missing values", "numbers out of range")
"""A suite that lets these through is no gate; a text column need not have a list of its values."""
