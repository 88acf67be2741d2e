"""What the network sees of a flight: as in pipelines/flight_delay/features.py, without timetable, weather and aircraft."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FEATURE_VERSION = "1"
WEEKDAYS = pa.array(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])
AS_THEY_ARE = (
    "distance_miles",
    "dest_lat",
    "dest_lon",
    "origin_recent_deps",
    "origin_recent_late_share",
    "inbound_recent_late_share",
    "dest_recent_arrivals",
    "route_week_late_share",
)
DELAYS = (
    "origin_recent_delay_min",
    "inbound_recent_delay_min",
    "dest_recent_delay_min",
    "route_week_delay_min",
)


def features(rows: pa.Table) -> pa.Table:
    """The columns that pipeline.yaml lists under `features`, one row for each row of `rows`, in its order."""
    day_share = pc.divide(pc.cast(rows["dep_minute"], pa.float64()), 1440.0)
    return pa.table(
        {
            "time_sin": pc.sin(pc.multiply(day_share, 2 * np.pi)),
            "time_cos": pc.cos(pc.multiply(day_share, 2 * np.pi)),
            **{name.removesuffix("_min"): _signed_root(rows[name]) for name in DELAYS},
            **{name: pc.cast(rows[name], pa.float64()) for name in AS_THEY_ARE},
            "origin": rows["origin"],
            "dest": rows["dest"],
            "weekday": WEEKDAYS.take(pc.cast(rows["weekday"], pa.int64()).combine_chunks()),
        }
    )


def _signed_root(minutes: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.multiply(pc.sign(minutes), pc.sqrt(pc.abs(minutes)))
