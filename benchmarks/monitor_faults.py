"""Sixteen kinds of fault for `monitor_decisions.py`, injected between the raw rows of a day and the model.

Each kind has variants (another column, mostly); its twelve start days take them in turn. What is random comes from a
generator of the kind, the start and the day, so that every call injects the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from functools import partial
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.model import Scorer
from tasks.model.encoder import FeatureEncoder, Matrix
from tasks.model.profile import ATTRIBUTIONS

HOLD, ALERT, ASK = "hold_scoring", "alert", "ask_person"
LABEL = "late"
LABEL_DAYS, INPUT_DAYS = 28, 14
STALE = timedelta(days=7)

RowsOf = Callable[[date], pa.Table]
FEATURE_OF = {
    "precip_in": "precip",
    "distance_miles": "block_slack_min",
    "dest_recent_delay_min": "dest_recent_delay",
    "carrier_recent_delay_min": "carrier_recent_delay",
    "origin_recent_delay_min": "origin_recent_delay",
    "route_week_delay_min": "route_week_delay",
    "origin_overdue_min": "origin_overdue",
}
"""Feature of a raw column where the names differ."""
PAIRED = ("carrier", "origin")


@dataclass(frozen=True)
class Moment:
    """One faulty day."""

    day: date
    start: date
    variant: str
    rng: np.random.Generator
    rows_of: RowsOf
    """The rows that really came on a day."""
    scorer: Scorer
    spread: Callable[[str], float]
    """Standard deviation of a raw column over the validation days."""

    @property
    def index(self) -> int:
        """Days since the start."""
        return (self.day - self.start).days


@dataclass(frozen=True)
class Fault:
    """A kind of fault. At most one of the functions changes something."""

    name: str
    story: str
    right: str
    """The action that it calls for."""
    variants: tuple[str, ...]
    rows: Callable[[pa.Table, Moment], pa.Table] | None = None
    labels: Callable[[npt.NDArray[np.float64], Moment], npt.NDArray[np.float64]] | None = None
    encoded: Callable[[Matrix, pa.Table, Moment], Matrix] | None = None
    touches: Callable[[str], Sequence[str]] = lambda variant: variant.split(" + ")
    """Raw columns that a variant changes; `*` for all, nothing for the number of rows alone."""
    by_labels: bool = False
    """Whether no test of single input columns is meant to see it: it then has 28 days in place of 14."""

    @property
    def days(self) -> int:
        return LABEL_DAYS if self.by_labels else INPUT_DAYS

    def channels(self, variant: str) -> frozenset[str] | None:
        """Features whose values change, the score and what it rests on; None for all."""
        columns = list(self.touches(variant))
        if "*" in columns:
            return None
        changed = {FEATURE_OF.get(column, column) for column in columns}
        changed |= {"gust_mph"} if "wind_mph" in changed else set()  # no gust reported: the mean wind
        changed |= {"time_sin", "time_cos"} if "sched_dep_minute" in changed else set()
        changed |= {"block_slack_min"} if "sched_block_min" in changed else set()
        changed |= {"carrier x origin"} if changed & set(PAIRED) else set()
        return frozenset(changed | {"score", ATTRIBUTIONS} if changed else changed)


def _set(rows: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


def _floats(rows: pa.Table, name: str) -> npt.NDArray[np.float64]:
    column = rows[name].cast(pa.float64())
    return np.asarray(pc.fill_null(column, float("nan")).to_numpy(), dtype=np.float64)


def _numbers(values: npt.NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)


def _texts(rows: pa.Table, name: str) -> npt.NDArray[np.object_]:
    return np.array(rows[name].to_pylist(), dtype=object)


def _some(rows: pa.Table, share: float, moment: Moment) -> npt.NDArray[np.bool_]:
    return np.asarray(moment.rng.random(rows.num_rows) < share)


def null_burst(rows: pa.Table, moment: Moment) -> pa.Table:
    hit = pa.array(_some(rows, 0.05, moment))
    column = rows[moment.variant]
    return _set(rows, moment.variant, pc.if_else(hit, pa.scalar(None, column.type), column))


def full_null(rows: pa.Table, moment: Moment) -> pa.Table:
    name = moment.variant
    rows = _set(rows, name, pa.nulls(rows.num_rows, rows[name].type))
    return _set(rows, "gust_mph", pa.nulls(rows.num_rows, pa.float64())) if name == "wind_mph" else rows


def remap(rows: pa.Table, moment: Moment) -> pa.Table:
    """A fifth of the rows gets the category after its own."""
    found = _texts(rows, moment.variant)
    column = next(c for c in moment.scorer.encoder.categorical if c.name == moment.variant)
    after = dict(zip(column.values, column.values[1:] + column.values[:1], strict=True))
    hit = _some(rows, 0.2, moment)
    moved = [after.get(value, value) if yes else value for value, yes in zip(found, hit, strict=True)]
    return _set(rows, moment.variant, pa.array(moved, pa.string()))


def unseen(rows: pa.Table, moment: Moment) -> pa.Table:
    hit = pa.array(_some(rows, 0.05, moment))
    return _set(rows, moment.variant, pc.if_else(hit, pa.scalar("Q7"), rows[moment.variant]))


def units(rows: pa.Table, moment: Moment) -> pa.Table:
    return _set(rows, moment.variant, _numbers(_floats(rows, moment.variant) * 60))


_KEYS = {
    "wind_mph": "origin",
    "visibility_miles": "origin",
    "origin_recent_delay_min": "origin",
    "dest_recent_delay_min": "dest",
    "sched_deps_hour": "origin",
}


def frozen(rows: pa.Table, moment: Moment) -> pa.Table:
    """Every airport keeps its last value of the day before the start."""
    name = moment.variant
    key = _KEYS[name]
    before = moment.rows_of(moment.start - timedelta(days=1))
    last = dict(zip(before[key].to_pylist(), _floats(before, name), strict=True))
    values = [last.get(value, np.nan) for value in rows[key].to_pylist()]
    return _set(rows, name, _numbers(np.array(values)))


def redelivered(_: pa.Table, moment: Moment) -> pa.Table:
    """The batch of the day before the start, under the new date."""
    before = moment.rows_of(moment.start - timedelta(days=1))
    later = timedelta(days=moment.index + 1)
    moved = pa.array(before["sched_dep"].cast(pa.int64()).to_numpy() + later.days * 86_400_000_000)
    before = _set(before, "sched_dep", moved.cast(before["sched_dep"].type))
    weekday = pa.array(np.full(before.num_rows, moment.day.weekday()), pa.int8())
    return _set(before, "weekday", weekday)


def dropped(rows: pa.Table, moment: Moment) -> pa.Table:
    return rows.filter(pa.array(~_some(rows, 0.4, moment)))


def surged(rows: pa.Table, moment: Moment) -> pa.Table:
    """Half of the rows a second time, under other flight numbers."""
    again = rows.filter(pa.array(_some(rows, 0.5, moment)))
    other = pc.add(again["flight"], pa.scalar(20_000, again["flight"].type))
    return pa.concat_tables([rows, _set(again, "flight", other)])


def swapped(rows: pa.Table, moment: Moment) -> pa.Table:
    one, other = moment.variant.split(" + ")
    first, second = rows[one], rows[other]
    return _set(_set(rows, one, second), other, first)


def other_zone(rows: pa.Table, moment: Moment) -> pa.Table:
    """The clock of UTC in place of New York's."""
    noon = datetime.combine(moment.day, time(12), ZoneInfo("America/New_York"))
    hours = -round(noon.utcoffset() / timedelta(hours=1))
    minutes = (rows["sched_dep_minute"].to_numpy().astype(np.int64) + 60 * hours) % 1440
    return _set(rows, "sched_dep_minute", pa.array(minutes, pa.int16()))


def gradual(rows: pa.Table, moment: Moment, *, deviations: float = 1.0) -> pa.Table:
    """So many standard deviations more after two weeks, a fourteenth a day."""
    grown = deviations * moment.spread(moment.variant) * min(moment.index + 1, 14) / 14
    return _set(rows, moment.variant, _numbers(_floats(rows, moment.variant) + grown))


def shuffled_pair(rows: pa.Table, moment: Moment) -> pa.Table:
    """The carriers of 30 % of the rows change places: every column alone is as it was."""
    hit = np.flatnonzero(_some(rows, 0.3, moment))
    carriers = _texts(rows, "carrier")
    carriers[hit] = carriers[moment.rng.permutation(hit)]
    return _set(rows, "carrier", pa.array(carriers, pa.string()))


_RECENT = {
    "origin_recent_delay_min": ("origin",),
    "origin_recent_late_share": ("origin",),
    "origin_recent_deps": ("origin",),
    "origin_overdue_deps": ("origin",),
    "origin_overdue_min": ("origin",),
    "carrier_recent_deps": ("carrier", "origin"),
    "carrier_recent_delay_min": ("carrier", "origin"),
    "carrier_recent_late_share": ("carrier", "origin"),
    "dest_recent_deps": ("dest",),
    "dest_recent_delay_min": ("dest",),
}
_DEPARTURES = {name: name.endswith("_deps") for name in _RECENT if "overdue" not in name}
"""What is made of departures: whether it is a count."""


def stale(rows: pa.Table, moment: Moment) -> pa.Table:
    """What other flights did is read from a table of a week ago, at the same time of day."""
    old = moment.rows_of(moment.day - STALE)
    for name, keys in _RECENT.items():
        rows = _set(rows, name, _numbers(_as_of(rows, old, name, keys)))
    return rows


def _as_of(rows: pa.Table, old: pa.Table, name: str, keys: tuple[str, ...]) -> npt.NDArray[np.float64]:
    codes: dict[tuple[str, ...], int] = {}

    def key(table: pa.Table) -> npt.NDArray[np.int64]:
        parts = zip(*(table[k].to_pylist() for k in keys), strict=True)
        code = np.array([codes.setdefault(part, len(codes)) for part in parts], np.int64)
        return code * 10_000 + table["sched_dep_minute"].to_numpy()

    known = key(old)
    order = np.argsort(known, kind="stable")
    known, values = known[order], _floats(old, name)[order]
    at = np.searchsorted(known, key(rows), "right") - 1
    same = (at >= 0) & (known[np.maximum(at, 0)] // 10_000 == key(rows) // 10_000)
    return np.where(same, values[np.maximum(at, 0)], np.nan)


def feed_gone(rows: pa.Table, moment: Moment, *, hours: int = 6) -> pa.Table:
    """No departure is reported, by the clock of the rows: counts are 0, and what departures would tell is null."""
    first = int(moment.variant.removesuffix(":00")) * 60
    minute = rows["sched_dep_minute"].to_numpy()
    hit = pa.array((minute >= first) & (minute < first + 60 * hours))
    for name, counts in _DEPARTURES.items():
        column = rows[name]
        rows = _set(rows, name, pc.if_else(hit, pa.scalar(0 if counts else None, column.type), column))
    return rows


def flipped(
    labels: npt.NDArray[np.float64], moment: Moment, *, share: float = 0.3
) -> npt.NDArray[np.float64]:
    hit = moment.rng.random(len(labels)) < share
    return np.where(hit, 1 - labels, labels)  # NaN stays NaN


def refitted(_: Matrix, features: pa.Table, moment: Moment) -> Matrix:
    return refit(moment.scorer, features)


def refit(scorer: Scorer, features: pa.Table) -> Matrix:
    """The encoder is fitted on the batch that it encodes: its own means and deviations, its own codes."""
    trained = scorer.encoder
    own = FeatureEncoder.fit(features, scorer.spec.features)
    numeric = tuple(
        replace(now, indicator=then.indicator) for now, then in zip(own.numeric, trained.numeric, strict=True)
    )
    encoded = FeatureEncoder(numeric, own.categorical).encode(features)
    first = trained.numeric_width
    highest = np.array(trained.cardinalities, np.float32) - 1
    encoded[:, first:] = np.minimum(encoded[:, first:], highest)
    return encoded


def shifted_codes(encoded: Matrix, _: pa.Table, moment: Moment) -> Matrix:
    """Every category gets the code of the next one: a vocabulary that lost its first entry, say."""
    trained = moment.scorer.encoder
    moved = encoded.copy()
    codes = moved[:, trained.numeric_width :]
    codes[:] = codes % (np.array(trained.cardinalities, np.float32) - 1) + 1
    return moved


FAULTS = (
    Fault(
        "null burst, 5 %",
        "5 % of a column is null",
        HOLD,
        ("sched_block_min", "route_week_late_share", "visibility_miles", "carrier_recent_delay_min"),
        null_burst,
    ),
    Fault(
        "category remap, 20 %",
        "20 % of the rows get the category after their own",
        HOLD,
        ("carrier", "dest", "origin"),
        remap,
    ),
    Fault(
        "concept flip, 30 %",
        "30 % of the labels are flipped",
        ASK,
        ("labels",),
        labels=flipped,
        touches=lambda _: (),
        by_labels=True,
    ),
    Fault(
        "encoder skew",
        "the encoder is fitted again on each batch: other means, deviations and category codes than in training",
        ALERT,
        ("encoder",),
        encoded=refitted,
        touches=lambda _: ("score",),
        by_labels=True,
    ),
    Fault(
        "column all null",
        "a column is empty",
        HOLD,
        ("wind_mph", "route_week_late_share", "dest_recent_delay_min", "last_aircraft_seats"),
        full_null,
    ),
    Fault(
        "unit change",
        "minutes become seconds in one column",
        HOLD,
        ("sched_block_min", "dest_recent_delay_min", "origin_recent_delay_min", "route_week_delay_min"),
        units,
    ),
    Fault(
        "frozen column",
        "every airport keeps its last value of the day before",
        HOLD,
        ("wind_mph", "origin_recent_delay_min", "dest_recent_delay_min", "sched_deps_hour"),
        frozen,
    ),
    Fault(
        "previous batch again",
        "every day brings the batch of the day before the start, under the new date",
        HOLD,
        ("batch",),
        redelivered,
        touches=lambda _: ("*",),
    ),
    Fault(
        "rows missing, 40 %", "40 % of the rows do not come", HOLD, ("rows",), dropped, touches=lambda _: ()
    ),
    Fault(
        "rows twice, 50 %",
        "half of the rows come again under other flight numbers",
        HOLD,
        ("rows",),
        surged,
        touches=lambda _: (),
    ),
    Fault(
        "unseen category, 5 %",
        "5 % of a column has a code that training never saw",
        HOLD,
        ("carrier", "dest", "origin"),
        unseen,
    ),
    Fault(
        "swapped columns",
        "two columns are exchanged",
        HOLD,
        (
            "wind_mph + visibility_miles",
            "dest_lat + dest_lon",
            "origin_recent_delay_min + dest_recent_delay_min",
            "origin_recent_late_share + carrier_recent_late_share",
        ),
        swapped,
    ),
    Fault("time zone", "departure times are in UTC", HOLD, ("sched_dep_minute",), other_zone),
    Fault(
        "gradual shift",
        "a column grows by a fourteenth of its standard deviation a day, for two weeks",
        ALERT,
        ("sched_block_min", "wind_mph", "dest_recent_delay_min", "route_week_delay_min"),
        gradual,
    ),
    Fault(
        "stale features",
        "what other flights did is read from a week ago",
        HOLD,
        ("a week",),
        stale,
        touches=lambda _: tuple(_RECENT),
        by_labels=True,
    ),
    Fault(
        "pair shuffled, 30 %",
        "the carriers of 30 % of the rows change places: every column alone is as it was",
        HOLD,
        ("carrier",),
        shuffled_pair,
        touches=lambda _: ("carrier",),
    ),
)

MORE = (
    Fault(
        "encoder skew, codes alone",
        "every category gets the code of the next one",
        ALERT,
        ("encoder",),
        encoded=shifted_codes,
        touches=lambda _: ("score",),
        by_labels=True,
    ),
    Fault(
        "gradual shift, twice as steep",
        "a column grows by a seventh of its standard deviation a day, for two weeks",
        ALERT,
        ("sched_block_min", "wind_mph", "dest_recent_delay_min", "route_week_delay_min"),
        partial(gradual, deviations=2.0),
    ),
    Fault(
        "concept flip, all",
        "every label is flipped",
        ASK,
        ("labels",),
        labels=partial(flipped, share=1.0),
        touches=lambda _: (),
        by_labels=True,
    ),
    Fault(
        "departures missing, 6 hours",
        "no departure is reported for six hours: counts are 0, and what departures would tell is null",
        HOLD,
        ("6:00", "12:00", "15:00"),
        feed_gone,
        touches=lambda _: tuple(_DEPARTURES),
    ),
    Fault(
        "departures missing, all day",
        "no departure is reported for days",
        HOLD,
        ("0:00",),
        partial(feed_gone, hours=24),
        touches=lambda _: tuple(_DEPARTURES),
    ),
)
"""Beside the sixteen, for what they say about some of them; not counted."""


def starts_of(fault: Fault, monitored: tuple[date, date], count: int = 12) -> list[tuple[date, str]]:
    """(start day, variant) of each case: one in each of `count` equal parts of the days that leave room for the longest case."""
    days = (monitored[1] - monitored[0]).days + 1 - LABEL_DAYS
    rng = np.random.default_rng([2013, *fault.name.encode()])
    step = days // count
    found = [monitored[0] + timedelta(days=step * part + int(rng.integers(step))) for part in range(count)]
    return [(start, fault.variants[index % len(fault.variants)]) for index, start in enumerate(found)]
