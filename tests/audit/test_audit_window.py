"""A window as one Arrow table: the rows that the pages give, and no more read than is asked for."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audit_support import add_file, open_store, publish_days, write_batch
from rich.console import Console

from tasks.audit import AuditFilter, InvalidQuery, by_window, retain, window, window_table
from tasks.audit.files import ONE_VALUE
from tasks.audit.rows import AUDIT_SCHEMA
from tasks.cli import output
from tasks.cli.app import app
from tasks.core import PipelineSpec, Settings
from tasks.core.crash_points import observe
from tasks.core.delta import FileName
from tasks.core.table_files import write_table_file

START = datetime(2024, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


def test_a_table_holds_what_the_pages_hold(store_settings: Settings, toy: PipelineSpec) -> None:
    ids, _ = publish_days(store_settings, toy, days=3)
    retain(store_settings, toy, as_of=date(2024, 3, 3), warm_days=1)
    table = window_table(store_settings, toy, START, START + 3 * DAY)
    assert table.column_names == [*AUDIT_SCHEMA.names, "tier"]
    assert table.column("prediction_id").to_pylist() == ids
    assert set(table.column("tier").to_pylist()) == {"cold", "warm"}
    for name in ONE_VALUE:
        assert table.schema.field(name).type == pa.dictionary(pa.int32(), pa.string())
    records = by_window(store_settings, toy, START, START + 3 * DAY, limit=500).records
    for name in ("entity_id", "prediction", "run_id", "source_key", "source_row", "event_time"):
        assert table.column(name).to_pylist() == [getattr(record, name) for record in records]


def test_of_each_prediction_comes_the_newest_scoring_that_passes(
    settings: Settings, toy: PipelineSpec
) -> None:
    ids = write_batch(settings, toy, 3_000, step=timedelta(milliseconds=1))
    write_batch(settings, toy, 1_000, step=timedelta(milliseconds=1), run_id="cd" * 8, version=2)
    table = window_table(settings, toy, START, START + DAY, columns=["model_version", "prediction_id"])
    assert table.column_names == ["model_version", "prediction_id"]
    assert table.column("prediction_id").to_pylist() == ids
    assert table.column("model_version").to_pylist() == [2] * 1_000 + [1] * 2_000
    alone = window_table(settings, toy, START, START + DAY, columns=["model_version"])
    assert alone.column("model_version").to_pylist() == [2] * 1_000 + [1] * 2_000
    first = window_table(
        settings, toy, START, START + DAY, columns=["prediction_id"], filter=AuditFilter(model_version=1)
    )
    assert first.column("prediction_id").to_pylist() == ids


def test_the_command_prints_a_window_as_a_table_whose_ids_can_be_copied(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = write_batch(settings, toy, 3, step=timedelta(hours=1))
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    command = ["audit", "window", "toy", "--start", "2024-03-01", "--end", "2024-03-02"]
    app(command, standalone_mode=False)
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title == "toy: predictions"
    assert header.split() == ["prediction", "id", "event", "time", "score", "version", "entity"]
    times = ("2024-03-01 12:00:00", "2024-03-01 13:00:00", "2024-03-01 14:00:00")
    scores = ("0", "0.001", "0.002")
    assert [" ".join(line.split()) for line in lines] == [
        f"{ids[i]} {times[i]} {scores[i]} 1 customer {i}" for i in range(3)
    ]

    monkeypatch.setattr(output, "console", Console(width=60, force_terminal=True, highlight=False))
    app([*command, "--limit", "2"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(one in shown for one in ids[:2]) and ids[2] not in shown
    assert "There are more: add --cursor " in shown
    cursor = shown.split("--cursor ")[1].strip()
    app([*command, "--cursor", cursor], standalone_mode=False)
    assert ids[2] in capsys.readouterr().out


@pytest.mark.parametrize("micros", [0, 500, 1_500, 2_000])
def test_bounds_are_exact_to_the_microsecond(settings: Settings, toy: PipelineSpec, micros: int) -> None:
    ids = write_batch(settings, toy, 5_000, step=timedelta(microseconds=250))
    start = datetime(2024, 3, 1, 12, tzinfo=UTC) + timedelta(microseconds=micros)
    table = window_table(settings, toy, start, start + timedelta(milliseconds=1), columns=["event_time"])
    assert sorted(table.column("event_time").to_pylist()) == [
        start + timedelta(microseconds=250 * i) for i in range(4)
    ]
    page = by_window(settings, toy, start, start + timedelta(milliseconds=1))
    assert len(page.records) == 4
    assert {record.prediction_id for record in page.records} <= set(ids)


def test_filters_are_those_of_the_pages(settings: Settings, toy: PipelineSpec) -> None:
    write_batch(settings, toy, 5_000, step=timedelta(seconds=1))
    for wanted in (
        AuditFilter(min_prediction=0.25, max_prediction=0.251),
        AuditFilter(entity_id="customer 4000"),
        AuditFilter(model_version=1, max_prediction=0.01),
        AuditFilter(model_version=7),
    ):
        page = by_window(settings, toy, START, START + DAY, filter=wanted, limit=1_000)
        table = window_table(settings, toy, START, START + DAY, columns=["prediction_id"], filter=wanted)
        assert table.column("prediction_id").to_pylist() == [record.prediction_id for record in page.records]


def test_ids_are_read_only_where_one_may_repeat(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    real = pq.ParquetFile.read_row_groups

    def spy(self: pq.ParquetFile, groups: list[int], columns: list[str], **more: object) -> pa.Table:
        asked.append(list(columns))
        return real(self, groups, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", spy)

    def rows() -> int:
        table = window_table(settings, toy, START, START + DAY, columns=["prediction"])
        assert table.column_names == ["prediction"]
        return int(table.num_rows)

    ids = write_batch(settings, toy, 3_000)
    assert rows() == 3_000
    assert asked == [["prediction"]]
    store = open_store(settings, prefix=toy.prefix)
    (key,) = (info.key for info in store.list("tables/audit") if info.key.endswith(".parquet"))
    twice = pa.concat_tables([pq.read_table(store.open(key), partitioning=None)] * 2)
    twice = twice.sort_by("prediction_id")
    name = FileName(date(2024, 3, 1), "ef" * 8, date(2024, 3, 1), 0, "twice")
    add_file(store, write_table_file(store, "tables/audit", name, twice, group_rows=2_048))
    assert rows() == len(ids)
    assert "prediction_id" in asked[-1]


def test_a_row_in_two_tiers_comes_once(settings: Settings, toy: PipelineSpec) -> None:
    ids, _ = publish_days(settings, toy, days=2)

    def die(name: str) -> None:
        if name == "after-archive-record":
            raise Killed

    window_table(settings, toy, START, START + 2 * DAY)
    observe(die)
    try:
        with pytest.raises(Killed):
            retain(settings, toy, as_of=date(2024, 3, 4), warm_days=1)
    finally:
        observe(None)
    for columns in (["prediction_id", "tier"], ["tier", "prediction_id", "prediction"]):
        table = window_table(settings, toy, START, START + 2 * DAY, columns=columns)
        assert table.column("prediction_id").to_pylist() == ids
        assert set(table.column("tier").to_pylist()) == {"warm"}
    assert window_table(settings, toy, START, START + 2 * DAY, columns=["prediction"]).num_rows == 240


def test_an_empty_window_is_an_empty_table(settings: Settings, toy: PipelineSpec) -> None:
    table = window_table(settings, toy, START, START + DAY)
    assert (table.num_rows, table.column_names) == (0, [*AUDIT_SCHEMA.names, "tier"])


def test_wrong_columns_and_too_many_rows_are_invalid_queries(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_batch(settings, toy, 100)
    with pytest.raises(InvalidQuery, match="nonsense"):
        window_table(settings, toy, START, START + DAY, columns=["prediction", "nonsense"])
    with pytest.raises(InvalidQuery):
        window_table(settings, toy, START, START + DAY, columns=[])
    with pytest.raises(InvalidQuery):
        window_table(settings, toy, START + DAY, START)
    monkeypatch.setattr(window, "MAX_TABLE_ROWS", 99)
    with pytest.raises(InvalidQuery, match="at most 99"):
        window_table(settings, toy, START, START + DAY)
    for info in open_store(settings, prefix=toy.prefix).list("tables/audit"):
        if info.key.endswith(".parquet"):  # it was refused before a row was read
            open_store(settings, prefix=toy.prefix).delete(info.key)
    with pytest.raises(InvalidQuery, match="at most 99"):
        window_table(settings, toy, START, START + DAY)
