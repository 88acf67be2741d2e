"""Small daily deliveries, and their days by offset."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa

from tasks.core.spec import Window

FIRST = date(2024, 3, 1)
ROWS = 30


def make_day(offset: int) -> pa.Table:
    """30 visits of one day: UTC times, a numeric and a text column, a label with a null, an outcome column."""
    rng = np.random.default_rng(offset)
    midnight = datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC) + timedelta(days=offset)
    label: list[int | None] = [int(value) for value in rng.integers(0, 2, ROWS)]
    label[0], label[1], label[2] = None, 0, 1
    return pa.table(
        {
            "shop": [f"s{i % 5}" for i in range(ROWS)],
            "visit": pa.array(range(ROWS), pa.int64()),
            "at": pa.array(
                [midnight + timedelta(minutes=40 * i) for i in range(ROWS)], pa.timestamp("us", tz="UTC")
            ),
            "price": rng.random(ROWS).round(6),
            "city": rng.choice(["Basel", "Bern"], ROWS),
            "paid": rng.random(ROWS).round(6),
            "bought": pa.array(label, pa.int8()),
        }
    )


def window(first: int, last: int | None = None) -> Window:
    """Days by their offset from the first."""
    return Window(
        first_day=FIRST + timedelta(days=first),
        last_day=FIRST + timedelta(days=first if last is None else last),
    )
