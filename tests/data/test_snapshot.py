"""Snapshots: what is kept, what is refused, and that repeating changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deliveries import FIRST, ROWS, make_day, window

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import DataError, PipelineCodeError
from tasks.core.partitions import load_snapshot, read_partition
from tasks.core.spec import Window
from tasks.data import source_days, take_snapshot

Make = Callable[..., PipelineSpec]


def test_a_training_snapshot_keeps_label_outcome_and_rows_without_outcome(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    spec = make_pipeline(delivered)
    snapshot = take_snapshot(settings, spec, kind="training", window=window(0, 2))
    assert [part.day.isoformat() for part in snapshot.partitions] == [
        "2024-03-01",
        "2024-03-02",
        "2024-03-03",
    ]
    rows = read_partition(open_store(settings, prefix=spec.prefix), snapshot.partitions[0])
    assert rows.num_rows == ROWS
    assert rows["bought"].null_count == 1
    assert rows.schema.field("bought").type == pa.int8()
    assert "paid" in rows.column_names


def test_a_scoring_snapshot_has_neither_label_nor_outcome(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    snapshot = take_snapshot(settings, make_pipeline(delivered), kind="scoring", window=window(3))
    assert [name for name, _ in snapshot.schema] == ["shop", "visit", "at", "price", "city"]


def test_a_scoring_snapshot_needs_no_label_column(
    settings: Settings, make_pipeline: Make, tmp_path: Path
) -> None:
    path = tmp_path / "today.parquet"
    pq.write_table(make_day(0).drop_columns(["bought", "paid"]), path)
    assert take_snapshot(settings, make_pipeline(path), kind="scoring", window=window(0)).rows == ROWS


def test_taking_it_again_writes_nothing(settings: Settings, make_pipeline: Make, delivered: Path) -> None:
    spec = make_pipeline(delivered)
    first = take_snapshot(settings, spec, kind="training", window=window(0, 2))
    store = open_store(settings, prefix=spec.prefix)
    before = [(info.key, info.modified_at_utc) for info in store.list()]
    assert take_snapshot(settings, spec, kind="training", window=window(0, 2)) == first
    assert [(info.key, info.modified_at_utc) for info in store.list()] == before
    assert load_snapshot(store, first.snapshot_id) == first


def test_row_order_in_the_source_does_not_change_the_snapshot(
    settings: Settings, make_pipeline: Make, tmp_path: Path
) -> None:
    ids = set()
    for seed in range(2):
        path = tmp_path / f"{seed}.parquet"
        pq.write_table(make_day(0).take(np.random.default_rng(seed).permutation(ROWS)), path)
        ids.add(take_snapshot(settings, make_pipeline(path), kind="training", window=window(0)).snapshot_id)
    assert len(ids) == 1


def test_changed_content_is_another_snapshot_and_the_old_one_stays(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    spec = make_pipeline(delivered)
    old = take_snapshot(settings, spec, kind="training", window=window(0, 1))
    changed = make_day(1).set_column(3, "price", pc.add(make_day(1)["price"], 1.0))
    pq.write_table(changed, delivered / "day-1.parquet")
    new = take_snapshot(settings, spec, kind="training", window=window(0, 1))
    assert new.snapshot_id != old.snapshot_id
    assert new.partitions[0] == old.partitions[0]
    store = open_store(settings, prefix=spec.prefix)
    assert read_partition(store, old.partitions[1])["price"].equals(make_day(1)["price"])


def test_days_are_cut_at_local_midnight(settings: Settings, make_pipeline: Make, delivered: Path) -> None:
    spec = make_pipeline(delivered, zone="America/New_York")
    assert source_days(settings, spec)[0] == date(2024, 2, 29)
    snapshot = take_snapshot(settings, spec, kind="training", window=window(0))
    rows = read_partition(open_store(settings, prefix=spec.prefix), snapshot.partitions[0])
    assert pc.min(rows["at"]).as_py().hour == 5
    assert rows.num_rows == ROWS


def test_the_toy_pipeline_has_every_day_and_scores_days_nobody_trained_on(
    settings: Settings, toy: PipelineSpec
) -> None:
    assert source_days(settings, toy)[:2] == [date(2024, 1, 1), date(2024, 1, 2)]
    later = Window(first_day=date(2024, 3, 1), last_day=date(2024, 3, 2))
    snapshot = take_snapshot(settings, toy, kind="scoring", window=later)
    assert snapshot.rows == 240
    assert {"bought", "paid"}.isdisjoint(name for name, _ in snapshot.schema)


# -- what is refused


def replace_column(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def refused(
    settings: Settings, spec: PipelineSpec, kind: str = "training", days: Window | None = None
) -> str:
    with pytest.raises(DataError) as caught:
        take_snapshot(settings, spec, kind=kind, window=days or window(0))  # type: ignore[arg-type]
    assert caught.value.fix and caught.value.which
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("bought", pa.array([0, 2] * 15), "column bought: holds 2, not only 0, 1 and null"),
        ("bought", pa.array([1] * ROWS), "column bought: is 1 in every labelled row"),
        ("bought", pa.array([None] * ROWS, pa.int8()), "column bought: is null in every row"),
        ("bought", pa.array(["yes", "no"] * 15), "column bought: is string, not 0 / 1"),
        ("shop", pa.array([None] + ["s"] * 29), "column shop: is null in 1 of 30 rows"),
        ("at", pa.array(range(ROWS)), "column at: is int64, not a timestamp"),
        (
            "at",
            pa.array(["2024-03-01T10:00:00Z"] * 29 + ["noon"]),
            "holds text that is not a time, for example 'noon'",
        ),
    ],
)
def test_a_column_that_cannot_be_used_is_named(
    settings: Settings, make_pipeline: Make, tmp_path: Path, name: str, values: pa.Array, message: str
) -> None:
    path = tmp_path / "day.parquet"
    pq.write_table(replace_column(make_day(0), name, values), path)
    assert message in refused(settings, make_pipeline(path))


def test_a_boolean_label_is_a_label(settings: Settings, make_pipeline: Make, tmp_path: Path) -> None:
    path = tmp_path / "day.parquet"
    pq.write_table(replace_column(make_day(0), "bought", make_day(0)["bought"].cast(pa.bool_())), path)
    snapshot = take_snapshot(settings, make_pipeline(path), kind="training", window=window(0))
    rows = read_partition(open_store(settings, prefix="default/shop"), snapshot.partitions[0])
    assert rows["bought"].equals(make_day(0)["bought"])


def test_a_null_time_is_refused_and_not_filtered_away(
    settings: Settings, make_pipeline: Make, tmp_path: Path
) -> None:
    times = make_day(0)["at"].to_pylist()
    path = tmp_path / "day.parquet"
    pq.write_table(
        replace_column(make_day(0), "at", pa.array([None, *times[1:]], pa.timestamp("us", tz="UTC"))), path
    )
    assert "column at: is null in 1 of 30 rows" in refused(settings, make_pipeline(path))


def test_a_missing_column_comes_with_its_likely_name(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    spec = make_pipeline(delivered, label={"column": "bougt"})
    message = refused(settings, spec)
    assert "lacks column bougt (did you mean bought?)" in message
    assert "shop, visit, at, price, city, paid, bought" in message


def test_a_repeated_row_is_shown(settings: Settings, make_pipeline: Make, tmp_path: Path) -> None:
    path = tmp_path / "day.parquet"
    pq.write_table(pa.concat_tables([make_day(0), make_day(0).slice(4, 1)]), path)
    message = refused(settings, make_pipeline(path))
    assert "holds 1 key more than once, for example shop=s4, visit=4" in message


def test_days_that_nobody_delivered_are_an_empty_window(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    message = refused(settings, make_pipeline(delivered), "scoring", window(50))
    assert "has no rows for 2024-04-20..2024-04-20" in message


def test_an_empty_file_is_named(settings: Settings, make_pipeline: Make, delivered: Path) -> None:
    pq.write_table(make_day(9).slice(0, 0), delivered / "day-9.parquet")
    assert "day-9.parquet: has no rows" in refused(settings, make_pipeline(delivered))
    (delivered / "day-9.parquet").write_bytes(b"")
    assert "day-9.parquet: is empty (0 bytes)" in refused(settings, make_pipeline(delivered))


def test_a_truncated_file_is_named_and_earlier_results_stay(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    spec = make_pipeline(delivered)
    earlier = take_snapshot(settings, spec, kind="training", window=window(0, 1))
    victim = delivered / "day-2.parquet"
    victim.write_bytes(victim.read_bytes()[:-100])
    message = refused(settings, spec, "training", window(0, 2))
    assert f"{victim}: is not a whole Parquet file, it may be truncated" in message
    assert load_snapshot(open_store(settings, prefix=spec.prefix), earlier.snapshot_id) == earlier


def test_a_file_with_damage_inside_is_named(settings: Settings, make_pipeline: Make, delivered: Path) -> None:
    victim = delivered / "day-2.parquet"
    data = bytearray(victim.read_bytes())
    data[4:400] = b"\xff" * 396
    victim.write_bytes(bytes(data))
    assert f"{victim}: " in refused(settings, make_pipeline(delivered), "training", window(0, 2))


def test_files_with_other_columns_are_named(settings: Settings, make_pipeline: Make, delivered: Path) -> None:
    pq.write_table(
        make_day(2).rename_columns(["shop", "visit", "at", "cost", "city", "paid", "bought"]),
        delivered / "day-2.parquet",
    )
    message = refused(settings, make_pipeline(delivered))
    assert "day-2.parquet: has other columns than" in message
    assert "lacks price; adds cost" in message


def test_the_same_file_twice_is_refused_by_both_names(
    settings: Settings, make_pipeline: Make, delivered: Path
) -> None:
    (delivered / "day-8.parquet").write_bytes((delivered / "day-1.parquet").read_bytes())
    message = refused(settings, make_pipeline(delivered))
    assert "day-8.parquet: holds the same bytes as" in message
    assert "day-1.parquet: it was delivered twice" in message


@pytest.mark.parametrize("kind", ["training", "scoring"])
def test_yesterdays_rows_under_todays_date_are_refused_by_both_days(
    settings: Settings, make_pipeline: Make, delivered: Path, kind: str
) -> None:
    again = replace_column(make_day(1), "at", make_day(2)["at"])
    pq.write_table(again, delivered / "day-2.parquet")
    spec = make_pipeline(delivered)
    days = window(2) if kind == "scoring" else window(0, 2)  # scoring looks back a day by itself
    assert "holds the same rows for 2024-03-02 and 2024-03-03" in refused(settings, spec, kind, days)


# -- source.py


def python_pipeline(settings: Settings, make: Make, code: str) -> PipelineSpec:
    spec = make("source.py", kind="python", split={
        "train": {"first_day": FIRST, "last_day": FIRST}, "validation": {"first_day": "2024-03-02", "last_day": "2024-03-02"},
    })  # fmt: skip
    (settings.pipelines_dir / "shop" / "source.py").write_text(code)
    return spec


def test_an_exception_in_source_py_names_file_line_and_cause(settings: Settings, make_pipeline: Make) -> None:
    spec = python_pipeline(settings, make_pipeline, "def load(first_day, last_day):\n    return 1 / 0\n")
    with pytest.raises(
        PipelineCodeError, match=r"source\.py:2: load\(2024-03-01, 2024-03-01\) raised ZeroDivisionError"
    ):
        take_snapshot(settings, spec, kind="training", window=window(0))


def test_a_syntax_error_in_source_py_names_its_line(settings: Settings, make_pipeline: Make) -> None:
    spec = python_pipeline(settings, make_pipeline, "x = 1\ndef load(:\n")
    with pytest.raises(PipelineCodeError, match=r"source\.py:2"):
        take_snapshot(settings, spec, kind="training", window=window(0))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n", "has no function load"),
        ("def load(first_day, last_day):\n    return [1]\n", "returned builtins.list, not a pyarrow.Table"),
    ],
)
def test_a_source_py_that_breaks_its_contract_is_told_so(
    settings: Settings, make_pipeline: Make, code: str, message: str
) -> None:
    with pytest.raises(PipelineCodeError, match=message):
        take_snapshot(
            settings, python_pipeline(settings, make_pipeline, code), kind="training", window=window(0)
        )


def test_a_changed_source_py_is_run_anew(settings: Settings, make_pipeline: Make) -> None:
    code = "from datetime import date\ndef days():\n    return [date(2024, 3, {})]\n"
    for day in (1, 2):
        spec = python_pipeline(settings, make_pipeline, code.format(day))
        assert source_days(settings, spec) == [date(2024, 3, day)]
