"""Synthetic shop visits: 120 rows a day, the same for a day whenever it is asked for."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa

ROWS_PER_DAY = 120
FIRST_DAY, LAST_DAY = date(2024, 1, 1), date(2024, 2, 20)


def days() -> list[date]:
    """Delivered so far. `load` makes later days too: a test that asks for one plays a new delivery."""
    return [FIRST_DAY + timedelta(days=i) for i in range((LAST_DAY - FIRST_DAY).days + 1)]


def load(first_day: date, last_day: date) -> pa.Table:
    days = [first_day + timedelta(days=i) for i in range((last_day - first_day).days + 1)]
    return pa.concat_tables([_day(day) for day in days])


def _day(day: date) -> pa.Table:
    rng = np.random.default_rng(day.toordinal())
    n = ROWS_PER_DAY
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    price = rng.gamma(2.0, 10.0, n).astype(np.float64)
    visits = rng.poisson(3, n).astype(np.int64)
    city = rng.choice(["Basel", "Bern", "Chur", "Genf"], n, p=[0.4, 0.3, 0.2, 0.1])
    device = rng.choice(["phone", "desktop"], n)
    logit = (
        0.8
        - 0.08 * price
        + 0.4 * visits
        + np.where(city == "Chur", 1.5, 0.0)
        - np.where(device == "phone", 0.7, 0.0)
    )
    bought = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    return pa.table(
        {
            "customer": [f"c{day:%m%d}{i:04d}" for i in range(n)],
            "asked_at": pa.array(
                [midnight + timedelta(seconds=int(s)) for s in np.sort(rng.integers(0, 86_400, n))],
                pa.timestamp("us", tz="UTC"),
            ),
            "price": pa.array(np.where(rng.random(n) < 0.03, np.nan, price), from_pandas=True),
            "visits": visits,
            "city": city,
            "device": device,
            "paid": bought * price,
            "bought": pa.array(np.where(rng.random(n) < 0.01, None, bought), pa.int8()),
        }
    )
