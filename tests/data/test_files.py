"""CSV and Parquet sources: files, folders, hive folders, time zones and text times."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3_endpoint
from deliveries import FIRST, ROWS, make_day, window
from pyarrow import csv

from tasks.core import PipelineSpec, Settings, load_pipeline, open_store
from tasks.core.errors import ConfigError, DataError
from tasks.core.partitions import read_partition
from tasks.data import scaffold, source_days, take_snapshot
from tasks.data.sources import open_source

Make = Callable[..., PipelineSpec]


def rows_of(settings: Settings, spec: PipelineSpec, first: int = 0, last: int | None = None) -> pa.Table:
    snapshot = take_snapshot(settings, spec, kind="training", window=window(first, last))
    store = open_store(settings, prefix=spec.prefix)
    return pa.concat_tables([read_partition(store, part) for part in snapshot.partitions])


def test_csv_and_parquet_of_the_same_rows_are_the_same_rows(
    settings: Settings, make_pipeline: Make, delivered: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "csv"
    folder.mkdir()
    for offset in range(2):
        csv.write_csv(make_day(offset), folder / f"{offset}.csv")
    from_csv = rows_of(settings, make_pipeline(folder, "csv"), 0, 1)
    assert from_csv.equals(rows_of(settings, make_pipeline(delivered), 0, 1))


def test_a_hive_folder_gives_its_column(settings: Settings, make_pipeline: Make, tmp_path: Path) -> None:
    for offset, region in ((0, "north"), (1, "south")):
        folder = tmp_path / "hive" / f"region={region}"
        folder.mkdir(parents=True)
        pq.write_table(make_day(offset), folder / "rows.parquet")
    rows = rows_of(settings, make_pipeline(tmp_path / "hive"), 0, 1)
    assert rows["region"].to_pylist() == ["north"] * ROWS + ["south"] * ROWS


def test_a_hive_folder_may_mix_numbers_and_names(
    settings: Settings, make_pipeline: Make, tmp_path: Path
) -> None:
    for offset, region in ((0, "1"), (1, "north")):
        folder = tmp_path / "hive" / f"region={region}"
        folder.mkdir(parents=True)
        pq.write_table(make_day(offset), folder / "rows.parquet")
    rows = rows_of(settings, make_pipeline(tmp_path / "hive"), 0, 1)
    assert rows["region"].to_pylist() == ["1"] * ROWS + ["north"] * ROWS


@pytest.mark.parametrize("floats_first", [False, True])
def test_whole_numbers_and_floats_of_one_column_are_floats(
    settings: Settings, make_pipeline: Make, tmp_path: Path, floats_first: bool
) -> None:
    for offset in range(2):
        day = make_day(offset)
        kind = pa.float64() if (offset == 0) == floats_first else pa.int64()
        values = pa.array([None if kind == pa.float64() and i == 0 else i for i in range(ROWS)], kind)
        place = day.column_names.index("price")
        pq.write_table(day.set_column(place, "price", values), tmp_path / f"{offset}.parquet")
    rows = rows_of(settings, make_pipeline(tmp_path), 0, 1)
    assert rows["price"].type == pa.float64()
    assert rows["price"].null_count == 1
    assert rows["price"].to_pylist()[-1] == ROWS - 1


def test_a_category_is_a_text_where_another_file_has_texts(
    settings: Settings, make_pipeline: Make, tmp_path: Path
) -> None:
    for offset in range(2):
        day = make_day(offset)
        place = day.column_names.index("city")
        city = day["city"].dictionary_encode() if offset == 0 else day["city"]
        pq.write_table(day.set_column(place, "city", city), tmp_path / f"{offset}.parquet")
    rows = rows_of(settings, make_pipeline(tmp_path), 0, 1)
    assert rows["city"].to_pylist() == [*make_day(0)["city"].to_pylist(), *make_day(1)["city"].to_pylist()]


def test_the_source_of_the_book_loads(settings: Settings, make_pipeline: Make) -> None:
    page = Path(__file__).parents[2] / "docs" / "pipeline.md"
    found = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert found
    spec = make_pipeline(Path("source.py"), "python")
    folder = settings.pipelines_dir / spec.name
    (folder / "source.py").write_text(found[1])
    readings = (
        "sensor,at,value\na,2024-03-01T09:00:00,170\na,2024-03-02T09:00:00,181\na,2024-03-03T09:00:00,9\n"
    )
    (folder / "readings.csv").write_text(readings)
    assert source_days(settings, spec) == [date(2024, 3, day) for day in (1, 2, 3)]
    rows = open_source(settings, spec).load(date(2024, 3, 2), date(2024, 3, 3))
    assert rows["high"].to_pylist() == [True, False]


def test_a_code_that_is_a_number_in_one_csv_file_stays_a_text(
    settings: Settings, make_pipeline: Make, tmp_path: Path
) -> None:
    header = "shop,visit,at,price,city,paid,bought\n"
    (tmp_path / "0.csv").write_text(f"{header}a,1,2024-03-01T09:00:00Z,1.0,012,0,0\n")
    (tmp_path / "1.csv").write_text(f"{header}a,2,2024-03-02T09:00:00Z,1.0,B12,0,1\n")
    rows = rows_of(settings, make_pipeline(tmp_path, "csv"), 0, 1)
    assert rows["city"].to_pylist() == ["012", "B12"]


def test_a_file_whose_column_has_another_type_is_named(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    day = make_day(2)
    texts = pa.array([str(value) for value in day["price"].to_pylist()])
    place = day.column_names.index("price")
    pq.write_table(day.set_column(place, "price", texts), delivered / "day-2.parquet")
    with pytest.raises(DataError) as caught:
        rows_of(settings, make_pipeline(delivered), 0, 2)
    assert caught.value.which == str(delivered / "day-2.parquet")
    assert caught.value.what == f"has price as string, and {delivered / 'day-0.parquet'} as double"


def test_times_without_an_offset_are_clock_times_of_the_zone(
    settings: Settings, make_pipeline: Make, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "shop,visit,at,price,city,paid,bought\n"
        "a,1,2024-03-01 09:00:00,1.0,Bern,0,0\n"
        "a,2,2024-03-01 23:30:00,NA,Bern,0,1\n"
    )
    spec = make_pipeline(path, "csv", zone="America/New_York")
    rows = rows_of(settings, spec)
    assert rows["at"].to_pylist() == [
        datetime(2024, 3, 1, 14, tzinfo=UTC),
        datetime(2024, 3, 2, 4, 30, tzinfo=UTC),
    ]
    assert rows["price"].to_pylist() == [1.0, None]
    assert source_days(settings, spec) == [date(2024, 3, 1)]


@pytest.mark.parametrize(
    "text", ["2024-03-01T09:00:00+01:00", " 2024-03-01T08:00:00Z", "2024-03-01 09:00:00.000+0100"]
)
def test_text_times_with_an_offset_are_moments(
    settings: Settings, make_pipeline: Make, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "rows.parquet"
    one = make_day(0).slice(1, 2)
    pq.write_table(one.set_column(2, "at", pa.array([text, "2024-03-01T12:00:00Z"])), path)
    assert rows_of(settings, make_pipeline(path))["at"].to_pylist()[0] == datetime(2024, 3, 1, 8, tzinfo=UTC)


def test_text_times_that_mix_forms_are_refused(
    settings: Settings, make_pipeline: Make, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(
        make_day(0)
        .slice(1, 2)
        .set_column(2, "at", pa.array(["2024-03-01T09:00:00", "2024-03-01T12:00:00Z"])),
        path,
    )
    with pytest.raises(DataError, match="mixes times with and without an offset"):
        rows_of(settings, make_pipeline(path))


def test_a_ragged_csv_is_named(settings: Settings, make_pipeline: Make, tmp_path: Path) -> None:
    folder = tmp_path / "csv"
    folder.mkdir()
    csv.write_csv(make_day(0), folder / "good.csv")
    (folder / "ragged.csv").write_text("shop,visit,at,price,city,paid,bought\na,1\n")
    with pytest.raises(DataError, match=r"ragged\.csv: is not readable as CSV"):
        rows_of(settings, make_pipeline(folder, "csv"))


def test_nothing_at_the_uri_and_files_of_another_kind_are_told_apart(
    settings: Settings, make_pipeline: Make, delivered: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="holds no parquet file"):
        source_days(settings, make_pipeline(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="4 files of other kinds"):
        source_days(settings, make_pipeline(delivered, "csv"))


def test_an_unknown_time_zone_is_named(settings: Settings, make_pipeline: Make, delivered: Path) -> None:
    with pytest.raises(ConfigError, match="'Europe/Berm' is not a time zone"):
        source_days(settings, make_pipeline(delivered, zone="Europe/Berm"))


def test_a_path_is_relative_to_the_pipeline_folder_and_side_files_are_ignored(
    settings: Settings, make_pipeline: Make
) -> None:
    folder = settings.pipelines_dir / "shop" / "rows"
    folder.mkdir(parents=True)
    pq.write_table(make_day(0), folder / "day.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".day.parquet.crc").write_bytes(b"x")
    assert source_days(settings, make_pipeline("rows")) == [FIRST]


def test_a_csv_that_packs_its_rows_is_read(settings: Settings, make_pipeline: Make, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    with pa.CompressedOutputStream(str(path), "gzip") as stream:
        csv.write_csv(make_day(0), stream)
    assert rows_of(settings, make_pipeline(path, "csv")).num_rows == ROWS


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_an_s3_prefix_is_read_through_the_endpoint_of_the_settings(
    settings: Settings, make_pipeline: Make, s3_url: str, tmp_path: Path, kind: str
) -> None:
    on_s3 = dataclasses.replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=s3_url)
    store = open_store(on_s3, prefix="incoming")
    for offset in range(2):
        path = tmp_path / f"{offset}.{kind}"
        pq.write_table(make_day(offset), path) if kind == "parquet" else csv.write_csv(make_day(offset), path)
        store.put_file(f"day={offset}/{path.name}", path)
    spec = make_pipeline(store.url(), kind)
    assert source_days(on_s3, spec) == [date(2024, 3, 1), date(2024, 3, 2)]
    rows = rows_of(on_s3, spec, 0, 1)
    assert rows.num_rows == 2 * ROWS
    assert rows["day"].to_pylist() == [0] * ROWS + [1] * ROWS

    data = store.get(f"day=1/1.{kind}")
    if kind == "parquet":
        store.put("day=1/1.parquet", data[:-50])
        with pytest.raises(DataError, match=rf"{store.url()}/day=1/1\.parquet: is not a whole Parquet file"):
            rows_of(on_s3, spec, 0, 1)
    with pytest.raises(ConfigError, match=f"holds no {kind} file"):
        source_days(on_s3, make_pipeline(f"{store.url()}/nowhere", kind))


@pytest.mark.s3
def test_a_pipeline_is_written_from_an_s3_prefix(settings: Settings, s3_url: str, tmp_path: Path) -> None:
    on_s3 = dataclasses.replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=s3_url)
    store = open_store(on_s3, prefix="incoming")
    for offset in range(6):
        path = tmp_path / f"{offset}.parquet"
        pq.write_table(make_day(offset), path)
        store.put_file(path.name, path)
    scaffold(on_s3, "visits", source=store.url(), label="bought", time="at", keys=["shop", "visit"])
    spec = load_pipeline(on_s3, "visits")
    assert spec.source.uri == store.url()
    assert take_snapshot(on_s3, spec, kind="training", window=window(0, 3)).rows == 4 * ROWS
