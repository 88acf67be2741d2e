"""The demo's source on the real data: times, outcomes, and that no input looks past the prediction time."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tasks.core import PipelineSpec, Settings, load_pipeline, open_store
from tasks.core.partitions import read_partition
from tasks.core.rows import local_days
from tasks.core.spec import Window
from tasks.data import labels, source_days, take_snapshot
from tasks.model.null_conditions import expected_nulls, null_conditions
from tasks.model.user_code import execute

PIPELINE = Path(__file__).parents[2] / "pipelines" / "flight_delay"
AFTERWARDS = ["outcome", "arr_delay_min", "late"]
NEW_YORK = ZoneInfo("America/New_York")


def execute_file(name: str) -> Any:
    return execute((PIPELINE / name).read_text(), str(PIPELINE / name))


@pytest.fixture(scope="module")
def source() -> Any:
    return execute_file("source.py")


@pytest.fixture(scope="module")
def tables(source: Any) -> Any:
    return source.read_tables()


@pytest.fixture(scope="module")
def year(source: Any, tables: Any) -> pa.Table:
    return source.build_rows(tables)


@pytest.fixture
def real(tmp_path: Path) -> tuple[Settings, PipelineSpec]:
    settings = Settings.at_home(tmp_path / "home", project=PIPELINE.parents[1])
    return settings, load_pipeline(settings, "flight_delay")


# -- what is there


def test_every_flight_is_a_row_and_the_label_is_a_late_arrival(tables: Any, year: pa.Table) -> None:
    assert year.num_rows == 336_776
    delay = tables.flights["arr_delay"].to_numpy()
    late = year["late"].to_numpy()
    assert np.array_equal(late == 1, delay > 15)
    assert np.array_equal(np.isnan(late), np.isnan(delay))


def test_cancelled_and_diverted_flights_are_rows_without_a_label(year: pa.Table) -> None:
    counts = {
        outcome: int(pc.sum(pc.equal(year["outcome"], outcome)).as_py())
        for outcome in ("arrived", "cancelled", "diverted")
    }
    assert counts == {"arrived": 327_346, "cancelled": 8_255, "diverted": 1_175}
    assert pc.equal(year["late"].is_valid(), pc.equal(year["outcome"], "arrived")) == pa.chunked_array(
        [[True] * year.num_rows]
    )


def test_a_missing_tail_number_means_cancelled_and_reaches_no_input(
    source: Any, tables: Any, year: pa.Table
) -> None:
    no_tail = tables.flights["tailnum"].is_null()
    assert set(year.filter(no_tail)["outcome"].to_pylist()) == {"cancelled"}
    one_day = tables._replace(flights=tables.flights.slice(0, 842))
    blanked = one_day.flights["tailnum"].to_pylist()
    blanked[800] = None
    index = one_day.flights.column_names.index("tailnum")
    changed = one_day._replace(flights=one_day.flights.set_column(index, "tailnum", pa.array(blanked)))
    assert inputs(source.build_rows(changed), 800) == inputs(source.build_rows(one_day), 800)


def test_scheduled_departures_are_moments_through_both_clock_changes(tables: Any, year: pa.Table) -> None:
    flights = tables.flights
    rng = np.random.default_rng(1)
    month, day = flights["month"].to_numpy(), flights["day"].to_numpy()
    changes = np.flatnonzero(((month == 3) & np.isin(day, [9, 10])) | ((month == 11) & np.isin(day, [2, 3])))
    for i in [*rng.choice(changes, 200), *rng.integers(0, len(month), 200)]:
        row = flights.slice(i, 1).to_pylist()[0]
        wall = datetime(
            row["year"],
            row["month"],
            row["day"],
            row["sched_dep_time"] // 100,
            row["sched_dep_time"] % 100,
            tzinfo=NEW_YORK,
        )
        assert year["sched_dep"][i].as_py() == wall.astimezone(UTC)
        assert year["sched_dep"][i].as_py().replace(minute=0) == row["time_hour"].astimezone(UTC)


def test_actual_times_follow_from_schedule_and_delay(tables: Any, source: Any) -> None:
    """Departure and arrival clocks of the data agree with our moments, in the zone of each airport."""
    flights = tables.flights
    zones = source._destination_zones(flights, tables.airports)
    departure = source._scheduled_departure(flights)
    arrival = source._scheduled_arrival(flights, departure, zones)
    for i in np.random.default_rng(2).integers(0, flights.num_rows, 500):
        row = flights.slice(i, 1).to_pylist()[0]
        for clock, moment, delay, zone in (
            (row["dep_time"], departure[i], row["dep_delay"], "America/New_York"),
            (row["arr_time"], arrival[i], row["arr_delay"], zones[i]),
        ):
            if delay is not None:
                local = datetime.fromtimestamp(int(moment + delay) * 60, ZoneInfo(zone))
                assert local.hour * 100 + local.minute == clock % 2400


def test_hours_of_the_weather_are_utc(tables: Any) -> None:
    weather = tables.weather
    july = weather.filter(pc.equal(weather["month"], 7))
    hour = pc.hour(july["time_hour"].cast(pa.timestamp("s", tz="UTC")))
    means = pa.table({"hour": hour, "temp": july["temp"]}).group_by("hour").aggregate([("temp", "mean")])
    coldest = means.sort_by("temp_mean")["hour"][0].as_py()
    assert coldest == 9  # the hour of sunrise: 09:40 UTC in New York in July


def test_every_null_of_a_feature_with_a_condition_is_where_the_condition_holds_and_none_is_missing(
    real: tuple[Settings, PipelineSpec], year: pa.Table
) -> None:
    spec = real[1]
    features = execute_file("features.py").features(year)
    conditions = null_conditions(spec)
    assert len(conditions) == 5
    expected = expected_nulls(conditions, features, year)
    for condition in conditions:
        ((column, values),) = condition.when
        nulls = features[condition.feature].null_count
        assert expected[condition.feature] == nulls > 0, condition
        assert pc.sum(pc.equal(year[column], values[0])).as_py() == nulls, condition


def test_an_impossible_wind_is_null(year: pa.Table) -> None:
    assert pc.max(year["wind_mph"]).as_py() < 60


# -- nothing looks ahead


def inputs(rows: pa.Table, i: int) -> dict[str, Any]:
    return rows.drop_columns(AFTERWARDS).slice(i, 1).to_pylist()[0]


def minutes(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy() // 60_000_000


def delays(scheduled: np.ndarray, known: np.ndarray, moment: int, rng: np.random.Generator) -> np.ndarray:
    """What could have happened instead: unchanged up to `moment`, anything later after it. NaN is never."""
    happened = scheduled + np.nan_to_num(known, nan=np.inf)
    later = np.maximum(moment + 1, scheduled - 30) + rng.integers(0, 900, len(known)) - scheduled
    anew = np.where(rng.random(len(known)) < 0.3, np.nan, later)
    return np.where(happened <= moment, known, anew)


def another_future(source: Any, tables: Any, moment: int, rng: np.random.Generator) -> Any:
    """`tables` with everything that became known after `moment` (minutes, UTC) replaced at random."""
    flights, weather = tables.flights, tables.weather
    departs = source._scheduled_departure(flights)
    arrives = source._scheduled_arrival(flights, departs, source._destination_zones(flights, tables.airports))
    dep = delays(departs, flights["dep_delay"].to_numpy().astype(float), moment, rng)
    arr = delays(arrives, flights["arr_delay"].to_numpy().astype(float), moment, rng)
    gone = departs + np.nan_to_num(dep, nan=np.inf) <= moment
    tails = np.array(flights["tailnum"].to_pylist(), object)
    tails = np.where(gone, tails, np.where(rng.random(len(tails)) < 0.3, None, rng.permutation(tails)))

    def whole(values: np.ndarray) -> pa.Array:
        return pa.array(np.nan_to_num(values), mask=np.isnan(values)).cast(pa.int64())

    for name, values in (
        ("dep_delay", whole(dep)),
        (
            "dep_time",
            whole(np.where(gone, flights["dep_time"].to_numpy(), np.where(np.isnan(dep), np.nan, 1200.0))),
        ),
        ("arr_delay", whole(arr)),
        ("tailnum", pa.array(tails.tolist(), pa.string())),
    ):
        flights = flights.set_column(flights.column_names.index(name), name, values)
    recorded = minutes(weather["time_hour"]) + 51  # when the last reading of the hour was taken
    for name in ("temp", "dewp", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"):
        known = weather[name].cast(pa.float64()).to_numpy()
        mixed = np.where(recorded <= moment, known, rng.permutation(known) + 1.0)
        weather = weather.set_column(
            weather.column_names.index(name), name, pa.array(np.nan_to_num(mixed), mask=np.isnan(mixed))
        )
    return tables._replace(flights=flights, weather=weather)


@pytest.fixture(scope="module")
def spring(tables: Any) -> Any:
    """The flights of 2 to 17 March: stormy days and the change of the clocks; all weather."""
    flights = tables.flights
    chosen = pc.and_(
        pc.equal(flights["month"], 3), pc.and_(pc.greater(flights["day"], 1), pc.less(flights["day"], 18))
    )
    return tables._replace(flights=flights.filter(chosen))


@pytest.fixture(scope="module")
def sample(spring: Any) -> list[int]:
    return np.random.default_rng(3).choice(spring.flights.num_rows, 25, replace=False).tolist()


def test_no_input_changes_when_everything_after_the_prediction_time_does(
    source: Any, spring: Any, sample: list[int]
) -> None:
    rows = source.build_rows(spring)
    for i in sample:
        moment = int(minutes(rows["sched_dep"])[i]) - 60
        other = source.build_rows(another_future(source, spring, moment, np.random.default_rng(i)))
        assert inputs(other, i) == inputs(rows, i)


def test_inputs_do_change_with_the_hour_before_the_prediction_time(
    source: Any, spring: Any, sample: list[int]
) -> None:
    rows = source.build_rows(spring)
    changed: set[str] = set()
    for i in sample[:8]:
        moment = int(minutes(rows["sched_dep"])[i]) - 60 - 120
        other = inputs(source.build_rows(another_future(source, spring, moment, np.random.default_rng(i))), i)
        changed |= {name for name, value in inputs(rows, i).items() if value != other[name]}
    assert {"origin_recent_delay_min", "carrier_recent_delay_min", "origin_overdue_min", "temp_f"} <= changed


def test_what_other_flights_did_agrees_with_counting_one_by_one(
    source: Any, spring: Any, sample: list[int]
) -> None:
    rows = source.build_rows(spring)
    flights = spring.flights
    departs = minutes(rows["sched_dep"])
    delay = flights["dep_delay"].to_numpy()
    left = departs + np.nan_to_num(delay, nan=1e9)
    origin, carrier, dest = (np.array(flights[name].to_pylist()) for name in ("origin", "carrier", "dest"))
    for i in sample:
        until = departs[i] - 60
        recent = (left <= until) & (left >= until - 180)
        found = inputs(rows, i)
        here = recent & (origin == origin[i])
        assert found["origin_recent_deps"] == here.sum()
        for name, group in (
            ("origin_recent_delay_min", here),
            ("carrier_recent_delay_min", here & (carrier == carrier[i])),
            ("dest_recent_delay_min", recent & (dest == dest[i])),
        ):
            assert found[name] == (pytest.approx(delay[group].mean()) if group.any() else None)
        overdue = (origin == origin[i]) & (departs + 15 <= until) & (departs + 180 > until) & (left > until)
        assert found["origin_overdue_deps"] == overdue.sum()
        assert found["origin_overdue_min"] == (until - departs[overdue]).sum()
        near = (origin == origin[i]) & (np.abs(departs - departs[i]) <= 30)
        assert found["sched_deps_hour"] == near.sum()


# -- as a pipeline


def test_features_are_the_declared_columns_and_need_no_outcome(
    real: tuple[Settings, PipelineSpec], year: pa.Table
) -> None:
    features = execute_file("features.py").features(year.drop_columns(AFTERWARDS))
    assert sorted(features.column_names) == sorted(real[1].features.names)
    assert features.num_rows == year.num_rows
    for name in real[1].features.numeric:
        values = features[name].drop_null().cast(pa.float64()).to_numpy()
        assert np.isfinite(values).all(), name
        assert features[name].null_count < 0.25 * year.num_rows, name


def test_days_are_those_of_new_york_and_load_cuts_them_exactly(
    source: Any, real: tuple[Settings, PipelineSpec]
) -> None:
    settings, spec = real
    days = source_days(settings, spec)
    assert (len(days), days[0], days[-1]) == (365, date(2013, 1, 1), date(2013, 12, 31))
    rows = source.load(date(2013, 3, 10), date(2013, 3, 10))
    assert set(local_days(rows, spec).to_pylist()) == {date(2013, 3, 10)}
    assert rows.num_rows == 908
    assert source.load(date(2014, 1, 1), date(2014, 1, 2)).num_rows == 0


def test_a_day_is_scored_whole_and_labelled_a_day_later(real: tuple[Settings, PipelineSpec]) -> None:
    settings, spec = real
    day = date(2013, 11, 3)
    snapshot = take_snapshot(settings, spec, kind="scoring", window=Window(first_day=day, last_day=day))
    rows = read_partition(open_store(settings, prefix=spec.prefix), snapshot.partitions[0])
    assert not set(AFTERWARDS) & set(rows.column_names)
    known = labels(settings, spec, days=[day], as_of=date(2013, 11, 4))
    assert known.num_rows == rows.num_rows
    assert known["label"].null_count > 0
