"""What the network sees of a flight: numbers of comparable size and four categories.

Each feature is a function of one row alone. Everything that needs other rows, the weather or the past is a
column of source.py already. A null stays null: the encoder handles it.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Raise this when the meaning of a feature changes. A digest of this file is part of the version as well.
FEATURE_VERSION = "1"

CRUISE_MILES_PER_MIN = 8.0  # 480 mph
WEEKDAYS = pa.array(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])

AS_THEY_ARE = (
    "sched_block_min",
    "sched_deps_hour",
    "dest_lat",
    "dest_lon",
    "wind_mph",
    "visibility_miles",
    "origin_recent_deps",
    "origin_recent_late_share",
    "carrier_recent_late_share",
    "route_week_late_share",
    "origin_overdue_deps",
    "last_aircraft_seats",
    "last_aircraft_age_years",
)
DELAYS = (
    "origin_recent_delay_min",
    "carrier_recent_delay_min",
    "dest_recent_delay_min",
    "route_week_delay_min",
)


def features(rows: pa.Table) -> pa.Table:
    """The columns that pipeline.yaml lists under `features`, one row for each row of `rows`, in its order."""
    day_share = pc.divide(pc.cast(rows["sched_dep_minute"], pa.float64()), 1440.0)
    return pa.table(
        {
            # 23:59 and 00:01 are neighbours
            "time_sin": pc.sin(pc.multiply(day_share, 2 * np.pi)),
            "time_cos": pc.cos(pc.multiply(day_share, 2 * np.pi)),
            # minutes the timetable allows beyond the flight itself: taxi, queues, winds, padding
            "block_slack_min": pc.subtract(
                pc.cast(rows["sched_block_min"], pa.float64()),
                pc.divide(pc.cast(rows["distance_miles"], pa.float64()), CRUISE_MILES_PER_MIN),
            ),
            # no gust reported means that there was none: the mean wind then
            "gust_mph": pc.coalesce(rows["gust_mph"], rows["wind_mph"]),
            # a trace of rain matters, and ten times more does not matter ten times more
            "precip": pc.sqrt(rows["precip_in"]),
            "origin_overdue": pc.sqrt(pc.cast(rows["origin_overdue_min"], pa.float64())),
            **{name.removesuffix("_min"): _signed_root(rows[name]) for name in DELAYS},
            **{name: pc.cast(rows[name], pa.float64()) for name in AS_THEY_ARE},
            "carrier": rows["carrier"],
            "origin": rows["origin"],
            "dest": rows["dest"],
            "weekday": WEEKDAYS.take(pc.cast(rows["weekday"], pa.int64()).combine_chunks()),
        }
    )


def _signed_root(minutes: pa.ChunkedArray) -> pa.ChunkedArray:
    """Square root that keeps the sign: tames the long tail of delays; early departures stay negative."""
    return pc.multiply(pc.sign(minutes), pc.sqrt(pc.abs(minutes)))
