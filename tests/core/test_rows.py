"""Row identities of whole tables agree with the identities of single rows."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import PipelineSpec
from tasks.core.errors import DataError
from tasks.core.ids import entity_id, event_millis, is_prediction_id, prediction_event_time, prediction_id
from tasks.core.rows import entity_ids, local_days, naive_to_utc, prediction_ids, utc_to_naive

MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2090, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)


def make_spec(*keys: str, zone: str = "UTC", name: str = "toy") -> PipelineSpec:
    return PipelineSpec.model_validate(
        {
            "name": name,
            "description": "",
            "owner": "tests",
            "source": {"kind": "python", "uri": "source.py", "time_zone": zone},
            "entity_key": list(keys),
            "event_time": "at",
            "label": {"column": "y"},
            "features": {"numeric": ["x"]},
            "split": {"train_days": 2, "validation_days": 1},
            "validation": {"suite": "toy"},
        }
    )


def make_table(times: list[datetime], **columns: object) -> pa.Table:
    return pa.table({"at": pa.array(times, pa.timestamp("us", tz="UTC")), **columns})


@given(st.lists(st.tuples(st.text(), st.integers(-(2**62), 2**62), MOMENTS), max_size=20))
def test_ids_of_a_table_are_the_ids_of_its_rows(rows: list[tuple[str, int, datetime]]) -> None:
    spec = make_spec("text", "number")
    table = make_table(
        [row[2] for row in rows],
        text=pa.array([row[0] for row in rows], pa.string()),
        number=pa.array([row[1] for row in rows], pa.int64()),
    )
    entities = [entity_id(row[:2]) for row in rows]
    assert entity_ids(table, spec) == entities
    assert prediction_ids(table, spec) == [
        prediction_id("toy", entity, event_millis(row[2])) for entity, row in zip(entities, rows, strict=True)
    ]


def test_keys_of_every_type_read_as_python_prints_them() -> None:
    values = [1.5, True, date(2024, 1, 2)]
    table = make_table(
        [datetime(2024, 1, 1, tzinfo=UTC)],
        a=[values[0]],
        b=[values[1]],
        c=[values[2]],
        d=pa.array(["x|y"]).dictionary_encode(),
    )
    assert entity_ids(table, make_spec("a", "b", "c", "d")) == [entity_id([*values, "x|y"])]


def test_a_prediction_id_names_the_event_time_and_differs_between_pipelines() -> None:
    moment = datetime(2013, 7, 4, 12, 30, 0, 123_000, tzinfo=UTC)
    table = make_table([moment], k=["UA"])
    (identifier,) = prediction_ids(table, make_spec("k"))
    assert prediction_event_time(identifier) == moment
    assert prediction_ids(table, make_spec("k", name="other")) != [identifier]


@pytest.mark.parametrize(
    "text",
    [
        "018df9c3-4a00-4b6e-9d41-5f0c2a7e1b33",
        "018DF9C3-4A00-8B6E-9D41-5F0C2A7E1B33",
        "018df9c3-4a00-8b6e-9d41-5f0c2a7e1b33\n",
        "e677d21f-dc00-8b6e-9d41-5f0c2a7e1b33",
        "",
    ],
)
def test_what_is_not_a_prediction_id_has_no_time(text: str) -> None:
    assert not is_prediction_id(text)
    with pytest.raises(ValueError, match="is not a prediction id"):
        prediction_event_time(text)


def test_the_last_moment_that_a_calendar_knows_has_ids() -> None:
    assert prediction_event_time("e677d21f-dbff-8b6e-9d41-5f0c2a7e1b33").year == 9999


def test_a_null_key_and_a_missing_key_are_named() -> None:
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    with pytest.raises(DataError, match="column k: is null in 1 of 2 rows"):
        entity_ids(make_table([moment, moment], k=["a", None]), make_spec("k"))
    with pytest.raises(DataError, match="column gone: is missing"):
        prediction_ids(make_table([moment], k=["a"]), make_spec("gone"))


def test_an_event_time_without_a_zone_or_before_1970_is_refused() -> None:
    naive = pa.table({"at": pa.array([datetime(2024, 1, 1)], pa.timestamp("us")), "k": ["a"]})
    with pytest.raises(DataError, match="not a timestamp with a time zone"):
        prediction_ids(naive, make_spec("k"))
    with pytest.raises(DataError, match="no prediction id can carry"):
        prediction_ids(make_table([datetime(1969, 1, 1, tzinfo=UTC)], k=["a"]), make_spec("k"))


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"])
def test_local_days_are_those_of_the_zone_through_a_year_of_clock_changes(zone: str) -> None:
    start = datetime(2013, 1, 1, tzinfo=UTC)
    times = [start + timedelta(minutes=37 * i) for i in range(365 * 24 * 60 // 37)]
    days = local_days(make_table(times), make_spec("k", zone=zone)).to_pylist()
    assert days == [moment.astimezone(ZoneInfo(zone)).date() for moment in times]


def test_naive_times_become_utc_with_the_offset_of_their_day() -> None:
    walls = [
        datetime(2013, 3, 9, 12),
        datetime(2013, 3, 11, 12),
        None,
        datetime(2013, 11, 3, 1, 30),
        datetime(2013, 3, 10, 2, 30),
    ]
    moved = naive_to_utc(pa.chunked_array([pa.array(walls, pa.timestamp("s"))]), "America/New_York")
    assert moved.to_pylist() == [
        datetime(2013, 3, 9, 17, tzinfo=UTC),
        datetime(2013, 3, 11, 16, tzinfo=UTC),
        None,
        datetime(2013, 11, 3, 5, 30, tzinfo=UTC),  # shown twice: the first
        datetime(2013, 3, 10, 7, 30, tzinfo=UTC),  # skipped: the offset from before
    ]


def test_an_empty_table_has_no_ids() -> None:
    table = make_table([], k=pa.array([], pa.string()))
    assert prediction_ids(table, make_spec("k")) == []
    assert local_days(table, make_spec("k")).to_pylist() == []


def test_chunks_and_finer_time_units_do_not_change_ids() -> None:
    spec = make_spec("k")
    times = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=int(s)) for s in np.arange(10)]
    table = make_table(times, k=[f"c{i}" for i in range(10)])
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    nanos = chunked.set_column(0, "at", chunked.column("at").cast(pa.timestamp("ns", tz="America/New_York")))
    assert prediction_ids(table, spec) == prediction_ids(nanos, spec)


def test_wall_clocks_and_back_is_the_same_moment_outside_of_the_doubled_hour() -> None:
    start = datetime(2013, 1, 1, tzinfo=UTC)
    times = [start + timedelta(minutes=61 * i) for i in range(8000)]
    column = pa.chunked_array([pa.array([*times, None], pa.timestamp("us", tz="UTC"))])
    walls = utc_to_naive(column, "America/New_York")
    assert walls.to_pylist()[0] == datetime(2012, 12, 31, 19)
    back = naive_to_utc(walls, "America/New_York").to_pylist()
    wrong = [moment for moment, again in zip(times, back, strict=False) if moment != again]
    assert all(moment.date() == date(2013, 11, 3) for moment in wrong)
    assert back[-1] is None
