"""What must hold for any model of this pipeline, however it was trained; the gate runs this with the candidate.

The fixtures come from Penstock (docs/evaluation.md). Rows are real flights of the validation days.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest


def changed(rows: pa.Table, column: str, values: pa.ChunkedArray) -> pa.Table:
    at = rows.column_names.index(column)
    return rows.set_column(at, rows.schema.field(column), values.cast(rows.schema.field(column).type))


def more(rows: pa.Table, column: str, amount: float) -> pa.Table:
    return changed(rows, column, pc.add(rows[column].cast(pa.float64()), amount))


@pytest.mark.parametrize(
    ("column", "amount"),
    [
        ("carrier_recent_delay_min", 30.0),  # its carrier's flights left half an hour later
        ("origin_overdue_deps", 6.0),  # six more flights should have left and have not
        ("visibility_miles", -3.0),  # fog comes up
    ],
)
def test_worse_conditions_do_not_lower_the_mean_risk(predict, golden_rows, column, amount):
    assert predict(more(golden_rows, column, amount)).mean() >= predict(golden_rows).mean()


def test_heavy_rain_does_not_lower_the_mean_risk(predict, golden_rows):
    rows = golden_rows.num_rows
    rain = changed(golden_rows, "precip_in", pa.chunked_array([pa.array(np.full(rows, 0.3))]))
    dry = changed(golden_rows, "precip_in", pa.chunked_array([pa.array(np.zeros(rows))]))
    assert predict(rain).mean() >= predict(dry).mean()


def test_the_flight_number_does_not_matter(predict, golden_rows):
    others = pa.chunked_array([pa.array(np.arange(golden_rows.num_rows) + 1)])
    assert np.array_equal(predict(changed(golden_rows, "flight", others)), predict(golden_rows))


def test_minutes_before_and_after_midnight_are_neighbours(feature_code, spec, golden_rows):
    two = golden_rows.slice(0, 2)
    late = changed(two, "sched_dep_minute", pa.chunked_array([pa.array([1439, 0])]))
    found = feature_code.compute(late, spec.features)
    for name in ("time_sin", "time_cos"):
        first, second = found[name].to_pylist()
        assert abs(first - second) < 0.01
