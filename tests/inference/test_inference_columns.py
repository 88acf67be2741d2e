"""Tables grow by columns: new ones are added, earlier rows read as null, and what would break readers is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from inference_support import (
    FIRST_DAY,
    plan_stub,
    run_stub,
    score_and_publish,
    scoring_snapshot,
    table_rows,
)

from tasks.core import ObjectStore, PipelineSpec, Settings, open_store
from tasks.core.crash_points import observe
from tasks.core.delta import table_view
from tasks.core.errors import DataError
from tasks.core.scored import ScoredRows
from tasks.inference import optimize, publish, read_predictions, verify
from tasks.inference.records import PREDICTIONS, shard_key

LATER = date(2024, 4, 1)
DOUBTFUL = "test_inference_columns:doubtful_audit_table"


def doubtful_audit_table(store: ObjectStore, scored: ScoredRows) -> pa.Table:
    """Audit rows of a later release, with one column more."""
    from tasks.audit import audit_table

    rows = audit_table(store, scored)
    return rows.append_column("doubt", pa.array([0.5] * rows.num_rows, pa.float32()))


def with_city(spec: PipelineSpec) -> PipelineSpec:
    """The same pipeline whose entity key gained a column."""
    return spec.model_copy(update={"entity_key": ("customer", "city")})


def release(monkeypatch: pytest.MonkeyPatch, change: Callable[[pa.Table], pa.Table]) -> None:
    """From now on prediction files are written as another release would write them."""
    from tasks.inference import shard
    from tasks.inference.tables import prediction_table

    monkeypatch.setattr(shard, "prediction_table", lambda *args: change(prediction_table(*args)))


def with_uncertainty(rows: pa.Table) -> pa.Table:
    return rows.append_column("uncertainty", pa.array([0.25] * rows.num_rows, pa.float32()))


def versions(settings: Settings, spec: PipelineSpec) -> list[int | None]:
    store = open_store(settings, prefix=spec.prefix)
    views = [table_view(store, f"tables/{name}") for name in ("predictions", "audit")]
    return [view.version if view else None for view in views]


def test_a_key_that_gained_a_column_widens_the_table_and_every_reader_sees_null_before(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    first = score_and_publish(store_settings, toy, scoring_snapshot(store_settings, toy, days=1))
    wider = with_city(toy)
    second = score_and_publish(
        store_settings, wider, scoring_snapshot(store_settings, toy, first_day=LATER, days=1)
    )
    rows = table_rows(store_settings, toy)
    assert {row["city"] is None for row in rows if row["run_id"] == first} == {True}
    assert all(row["city"] for row in rows if row["run_id"] == second)
    assert len(rows) == 240
    for run in (first, second):
        assert verify(store_settings, toy, run).ok
    both = read_predictions(store_settings, toy, [FIRST_DAY, LATER], ["prediction_id", "city"])
    assert (both.num_rows, both.column("city").null_count) == (240, 120)
    old = read_predictions(store_settings, toy, [FIRST_DAY], ["city", "score"])
    assert old.column_names == ["city", "score"] and old.column("city").null_count == 120


@pytest.mark.parametrize("reader", ["pandas", "duckdb", "polars", "pyspark"])
def test_readers_that_know_nothing_of_us_read_both(
    settings: Settings, toy: PipelineSpec, reader: str
) -> None:
    library = pytest.importorskip(reader, reason=f"needs {reader}: pip install {reader}")
    from deltalake import DeltaTable

    score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    score_and_publish(
        settings, with_city(toy), scoring_snapshot(settings, toy, first_day=LATER, days=1), version=1
    )
    optimize(settings, toy)
    url = open_store(settings, prefix=toy.prefix).url(PREDICTIONS)
    if reader == "pandas":
        counts = DeltaTable(url).to_pandas().groupby("day")["city"].count().tolist()
    elif reader == "duckdb":
        connection = library.connect()
        connection.register("predictions", DeltaTable(url).to_pyarrow_dataset())
        found = connection.sql("SELECT count(city) FROM predictions GROUP BY day ORDER BY day").fetchall()
        counts = [row[0] for row in found]
    elif (
        reader == "pyspark"
    ):  # its Delta reader is a Java library apart: the log says which files, Spark reads them
        spark = library.sql.SparkSession.builder.master("local[1]").getOrCreate()
        rows = spark.read.option("mergeSchema", True).parquet(*DeltaTable(url).file_uris())
        counts = [
            row["n"]
            for row in rows.groupBy("day").agg({"city": "count"}).toDF("day", "n").sort("day").collect()
        ]
        spark.stop()
    else:
        table = library.read_delta(url)
        counts = table.group_by("day").agg(library.col("city").count()).sort("day")["city"].to_list()
    assert counts == [0, 120]
    protocol = DeltaTable(url).protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)


def test_a_run_that_two_releases_scored_has_the_column_where_the_later_one_wrote_it(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1), 2)
    run_stub(settings, toy, planned.run_id)
    open_store(settings, prefix=toy.prefix).delete(shard_key(planned.run_id, 1))
    with monkeypatch.context() as patch:
        release(patch, with_uncertainty)
        run_stub(settings, toy, planned.run_id, audit_table=DOUBTFUL)
    publish(settings, toy, planned.run_id)
    before = {name: table_rows(settings, toy, name) for name in ("predictions", "audit")}
    assert {row["shard"]: row["uncertainty"] for row in before["predictions"]} == {0: None, 1: 0.25}
    mine = [row for row in before["audit"] if row["run_id"] == planned.run_id]
    assert {row["shard_id"]: row["doubt"] for row in mine} == {0: None, 1: 0.5}
    assert optimize(settings, toy).written_files == 3
    assert {name: table_rows(settings, toy, name) for name in before} == before
    assert verify(settings, toy, planned.run_id).ok


def test_archived_audit_rows_keep_a_column_that_this_release_does_not_know(
    settings: Settings, toy: PipelineSpec
) -> None:
    import pyarrow.parquet as pq

    from tasks.audit import retain
    from tasks.audit.archive import archived_dates

    score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1), 2)
    run_stub(settings, toy, planned.run_id, audit_table=DOUBTFUL)
    publish(settings, toy, planned.run_id)
    retain(settings, toy, as_of=LATER, warm_days=1)
    store = open_store(settings, prefix=toy.prefix)
    (archived,) = archived_dates(store).values()
    with store.open(archived.key) as file:
        doubt = pq.read_table(file).column("doubt")
    assert (len(doubt), doubt.null_count) == (240, 120)


def test_a_changed_type_is_refused_before_anything_is_published(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    before = versions(settings, toy)

    def numbered(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("customer")
        return rows.set_column(at, "customer", pa.array(range(rows.num_rows), pa.int64()))

    release(monkeypatch, numbered)
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1), 2)
    run_stub(settings, toy, planned.run_id)
    with pytest.raises(DataError, match="column customer is int64 in the new rows and string") as caught:
        publish(settings, toy, planned.run_id)
    assert "give customer the type string again" in caught.value.fix
    assert versions(settings, toy) == before, "not even the audit rows"


def test_a_column_that_readers_count_on_may_not_be_dropped(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(monkeypatch, lambda rows: rows.drop_columns(["model_version"]))
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    run_stub(settings, toy, planned.run_id)
    with pytest.raises(DataError, match="have no column model_version"):
        publish(settings, toy, planned.run_id)
    assert versions(settings, toy) == [None, None]


def test_a_type_that_two_releases_wrote_differently_in_one_run_is_refused(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    with monkeypatch.context() as patch:
        release(patch, with_uncertainty)
        run_stub(settings, toy, planned.run_id)
    open_store(settings, prefix=toy.prefix).delete(shard_key(planned.run_id, 1))
    with monkeypatch.context() as patch:
        release(patch, lambda rows: rows.append_column("uncertainty", pa.array(["low"] * rows.num_rows)))
        run_stub(settings, toy, planned.run_id)
    with pytest.raises(
        DataError, match=r"column uncertainty is string .* and float in other files of the run"
    ):
        publish(settings, toy, planned.run_id)
    assert versions(settings, toy) == [None, None]


def test_a_crash_between_the_new_column_and_the_rows_is_finished_by_the_next_call(
    settings: Settings, toy: PipelineSpec
) -> None:
    class Killed(BaseException):
        pass

    score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    wider = with_city(toy)
    planned = plan_stub(settings, wider, scoring_snapshot(settings, toy, first_day=LATER, days=1))
    run_stub(settings, wider, planned.run_id)

    def die(name: str) -> None:
        if name == "before-delta-commit":
            raise Killed

    observe(die)
    try:
        with pytest.raises(Killed):
            publish(settings, wider, planned.run_id)
    finally:
        observe(None)
    rows = table_rows(settings, toy)
    assert len(rows) == 120 and {row["city"] for row in rows} == {None}
    publish(settings, wider, planned.run_id)
    assert len(table_rows(settings, toy)) == 240
    assert verify(settings, wider, planned.run_id).ok


def test_publishers_that_widen_the_table_at_once_all_get_in(
    store_settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_and_publish(store_settings, toy, scoring_snapshot(store_settings, toy, days=1))
    wider = with_city(toy)
    runs: list[tuple[PipelineSpec, str]] = []
    for month, spec, uncertain in ((4, toy, True), (5, wider, False), (6, wider, True)):
        snapshot = scoring_snapshot(store_settings, toy, first_day=date(2024, month, 1), days=1)
        planned = plan_stub(store_settings, spec, snapshot)
        with monkeypatch.context() as patch:
            if uncertain:
                release(patch, with_uncertainty)
            run_stub(store_settings, spec, planned.run_id)
        runs.append((spec, planned.run_id))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda run: publish(store_settings, *run), [*runs, runs[0]]))
    rows = table_rows(store_settings, toy)
    assert len({row["prediction_id"] for row in rows}) == len(rows) == 480
    found: dict[str, set[Any]] = {}
    for row in rows:
        found.setdefault(row["run_id"], set()).add((row["city"] is not None, row["uncertainty"]))
    assert [found[run] for _, run in runs] == [{(False, 0.25)}, {(True, None)}, {(True, 0.25)}]
    for spec, run in runs:
        problems = verify(store_settings, spec, run).problems
        assert problems == ()
