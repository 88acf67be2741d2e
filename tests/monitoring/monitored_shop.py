"""A synthetic shop whose days are normal until a test says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta

import numpy as np
import pyarrow as pa

from tasks.core.spec import PipelineSpec, parse_pipeline
from tasks.model.profile import Profile, ProfileSpec

SPEC: PipelineSpec = parse_pipeline(
    """
name: shop
description: Synthetic shop visits.
owner: tests
source: {kind: python, uri: s.py}
entity_key: [k]
event_time: t
label: {column: y, delay_days: 1}
features: {numeric: [price, visits, wind], categorical: {city: {}, device: {}}}
split: {train_days: 7, validation_days: 7}
validation: {suite: shop}
drift: {pairs: [[city, device]], min_rows: 200}
""",
    origin="test",
)

FIRST = date(2024, 1, 1)
REFERENCE_DAYS = 70
MONITORED = FIRST + timedelta(days=REFERENCE_DAYS)

Change = Callable[[pa.Table, np.random.Generator], pa.Table]


def rows(day: date, *, n: int = 800, change: Change | None = None) -> pa.Table:
    """The features of a day, the same whenever they are asked for; weekends have fewer rows."""
    rng = np.random.default_rng(day.toordinal())
    n = int(n * (0.6 if day.weekday() >= 5 else 1.0) * rng.uniform(0.97, 1.03))
    wind = rng.normal(8, 2) + rng.normal(0, 2, 48).round(1)
    price = rng.gamma(2, 10, n)
    price[rng.random(n) < 0.01] = np.nan
    city = rng.choice(["Basel", "Bern", "Chur", "Genf"], n, p=[0.4, 0.3, 0.2, 0.1])
    phone = rng.random(n) < np.where(city == "Chur", 0.0, 0.6)
    table = pa.table(
        {
            "price": pa.array(price, from_pandas=True),
            "visits": pa.array(rng.poisson(3, n).astype(np.float64)),
            "wind": pa.array(rng.choice(wind, n)),
            "city": pa.array(city),
            "device": pa.array(np.where(phone, "phone", "desktop")),
        }
    )
    return change(table, rng) if change else table


def probabilities(table: pa.Table) -> np.ndarray:
    """The model: calibrated, because labels are drawn from it."""
    price = np.nan_to_num(table["price"].to_numpy(zero_copy_only=False), nan=20.0)
    visits = np.nan_to_num(table["visits"].to_numpy(zero_copy_only=False), nan=3.0)
    chur = np.array([city == "Chur" for city in table["city"].to_pylist()])
    return 1 / (1 + np.exp(-(-0.3 - 0.08 * (price - 20) + 0.4 * (visits - 3) + 1.5 * chur)))


GRID = ProfileSpec.fit(pa.concat_tables([rows(FIRST + timedelta(days=i)) for i in range(28)]), None, SPEC)


def profile(day: date, *, n: int = 800, change: Change | None = None) -> Profile:
    table = rows(day, n=n, change=change)
    return Profile.of(GRID, table, probabilities(table))


REFERENCE = {FIRST + timedelta(days=i): profile(FIRST + timedelta(days=i)) for i in range(REFERENCE_DAYS)}


def window(days: int, *, faulty: dict[int, Change] | None = None) -> dict[date, Profile]:
    """Profiles of the first `days` monitored days; `faulty` changes some of them by index."""
    return {
        MONITORED + timedelta(days=i): profile(MONITORED + timedelta(days=i), change=(faulty or {}).get(i))
        for i in range(days)
    }


def with_column(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, from_pandas=True))
