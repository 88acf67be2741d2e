"""Rows that meet the toy suite, ways to damage them, and entries of a suite file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.core import Snapshot

FIRST_DAY = date(2024, 1, 1)
NOW = datetime(2024, 3, 1, 12, tzinfo=UTC)
Take = Callable[..., Snapshot]
WriteSuite = Callable[..., None]


def clock() -> datetime:
    return NOW


def toy_rows(day: date, rows: int = 60) -> pa.Table:
    """Rows of one day that meet every expectation of the toy suite."""
    rng = np.random.default_rng(day.toordinal())
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    bought = rng.integers(0, 2, rows)
    return pa.table(
        {
            "customer": [f"c{day:%m%d}{i:04d}" for i in range(rows)],
            "asked_at": pa.array(
                [midnight + timedelta(seconds=60 * i) for i in range(rows)], pa.timestamp("us", tz="UTC")
            ),
            "price": pa.array(rng.gamma(2.0, 10.0, rows)),
            "visits": pa.array(rng.poisson(3, rows), pa.int64()),
            "city": pa.array(rng.choice(["Basel", "Bern", "Chur", "Genf"], rows)),
            "device": pa.array(rng.choice(["phone", "desktop"], rows)),
            "paid": pa.array(bought * 10.0),
            "bought": pa.array(bought, pa.int8()),
        }
    )


def change(table: pa.Table, column: str, values: dict[int, Any]) -> pa.Table:
    """`table` with some values of one column replaced, by position."""
    cells = table.column(column).to_pylist()
    for position, value in values.items():
        cells[position] = value
    index = table.column_names.index(column)
    return table.set_column(index, column, pa.array(cells, table.schema.field(column).type))


def expect(kind: str, severity: str = "critical", row_level: bool = False, **kwargs: Any) -> dict[str, Any]:
    """One entry of a suite file."""
    entry: dict[str, Any] = {"type": f"expect_{kind}", "kwargs": kwargs, "severity": severity}
    return entry | ({"meta": {"row_level": True}} if row_level else {})
