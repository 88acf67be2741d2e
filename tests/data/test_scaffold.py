"""`penstock new`: what it writes from a file it has never seen works, and what it leaves out has a reason."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from tasks.core import Settings, load_pipeline, open_store
from tasks.core.errors import ConfigError, DataError
from tasks.core.partitions import read_partition
from tasks.core.spec import Window
from tasks.data import scaffold, take_snapshot
from tasks.model import FeatureCode
from tasks.validation.suite import read_suite

DAYS, PER_DAY = 20, 40


def orders() -> pa.Table:
    rng = np.random.default_rng(5)
    rows = DAYS * PER_DAY
    start = datetime(2025, 5, 1, tzinfo=UTC)
    price = rng.gamma(2.0, 20.0, rows)
    returned = (rng.random(rows) < 1 / (1 + np.exp(2 - price / 40))).astype(np.int8)
    return pa.table(
        {
            "order_id": [f"o{i:05d}" for i in range(rows)],
            "ordered_at": pa.array(
                [start + timedelta(minutes=36 * i) for i in range(rows)], pa.timestamp("us", tz="UTC")
            ),
            "price": pa.array(np.where(rng.random(rows) < 0.1, np.nan, price), from_pandas=True),
            "items": rng.integers(1, 5, rows),
            "country": rng.choice(["CH", "DE", "FR: south"], rows),
            "gift": rng.random(rows) < 0.2,
            "currency": ["CHF"] * rows,
            "comment": [f"please {i} ring" for i in range(rows)],
            "row_number": range(rows),
            "shipped_at": pa.array([start] * rows, pa.timestamp("us", tz="UTC")),
            "sent_back_at": pa.array([start if y else None for y in returned], pa.timestamp("us", tz="UTC")),
            "refund": price * returned,
            "reason": pa.array(
                [("broken" if r % 2 else "late") if y else None for r, y in enumerate(returned)]
            ),
            "returned": returned,
        }
    )


def new(settings: Settings, path: Path, **changes: object) -> Path:
    wishes: dict[str, object] = {"label": "returned", "time": "ordered_at", "keys": ["order_id"], **changes}
    return scaffold(settings, "orders", source=str(path), **wishes)  # type: ignore[arg-type]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "orders.parquet"
    pq.write_table(orders(), path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_what_is_written_loads_snapshots_and_computes_features(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"orders.{kind}"
    pq.write_table(orders(), path) if kind == "parquet" else csv.write_csv(orders(), path)
    folder = new(settings, path)
    assert sorted(file.name for file in folder.iterdir()) == ["features.py", "model.py", "pipeline.yaml"]
    spec = load_pipeline(settings, "orders")
    assert spec.features.numeric == ("price", "items")
    assert list(spec.features.categorical) == ["country", "gift"]
    assert spec.split.train == Window(first_day=date(2025, 5, 1), last_day=date(2025, 5, 14))
    assert spec.split.validation == Window(first_day=date(2025, 5, 15), last_day=date(2025, 5, 17))
    snapshot = take_snapshot(settings, spec, kind="training", window=spec.split.train)
    rows = read_partition(open_store(settings, prefix=spec.prefix), snapshot.partitions[0])
    features = FeatureCode.from_file(folder / "features.py").compute(rows, spec.features)
    assert tuple(features.column_names) == spec.features.names


def test_every_column_left_out_is_in_a_comment_with_its_reason(settings: Settings, parquet: Path) -> None:
    text = (new(settings, parquet) / "pipeline.yaml").read_text()
    for reason in (
        "currency is constant",
        "comment is a text that hardly repeats",
        "row_number is different in every row, like an id",
        "shipped_at is a time: derive numbers from it in features.py, such as an hour or an age\n",
        "sent_back_at is a time: derive numbers from it in features.py, such as an hour or an age; "
        "and whether it is null tells the label: if only the outcome sets it, list it in outcome_columns\n",
        "refund predicts the label almost alone",
        "reason predicts the label almost alone",
    ):
        assert f"  #   {reason}" in text


def test_what_only_says_when_is_no_feature(settings: Settings, tmp_path: Path) -> None:
    table = orders()
    day = [(date(2025, 5, 1) + timedelta(days=i // PER_DAY)) for i in range(table.num_rows)]
    table = table.append_column("load_date", pa.array([str(item) for item in day]))
    table = table.append_column("batch", pa.array([20250500 + item.day for item in day]))
    table = table.append_column("weekday", pa.array([f"{item:%a}" for item in day]))
    pq.write_table(table, tmp_path / "orders.parquet")
    text = (new(settings, tmp_path / "orders.parquet") / "pipeline.yaml").read_text()
    assert "  #   load_date is new in 100% of the rows after the training days, like a date\n" in text
    assert "  #   batch is one number a day that rises with the calendar, like a date\n" in text
    assert list(load_pipeline(settings, "orders").features.categorical) == ["country", "gift", "weekday"]


def test_a_text_of_numbers_is_named_and_codes_are_categories(settings: Settings, tmp_path: Path) -> None:
    table = orders()
    rows = range(table.num_rows)
    table = table.append_column("volts", pa.array(["nil" if i % 20 == 0 else f"{i % 97}.5" for i in rows]))
    table = table.append_column("postcode", pa.array([f"{8000 + i % 7}" for i in rows]))
    pq.write_table(table, tmp_path / "orders.parquet")
    text = (new(settings, tmp_path / "orders.parquet") / "pipeline.yaml").read_text()
    assert (
        "  #   volts is a text that holds numbers, but for 'nil': deliver it as a number, "
        "or make one of it in features.py\n"
    ) in text
    assert "postcode" in load_pipeline(settings, "orders").features.categorical


def test_the_suite_is_one_that_the_data_gate_accepts(settings: Settings, parquet: Path) -> None:
    new(settings, parquet)
    folder = settings.project / "great_expectations" / "expectations"
    suite = json.loads((folder / "orders.json").read_text())
    price = [entry for entry in suite["expectations"] if entry["kwargs"].get("column") == "price"]
    assert any(entry.get("meta") == {"row_level": True} for entry in price)
    read = read_suite(folder, "orders")
    assert read.problems == ()
    assert len(read.checks) == len(suite["expectations"])


def test_explanations_of_old_data_outlive_their_first_archiving(settings: Settings, parquet: Path) -> None:
    new(settings, parquet, clock=lambda: datetime(2030, 1, 1, tzinfo=UTC))
    oldest = date(2030, 1, 1) - date(2025, 5, 1)
    assert load_pipeline(settings, "orders").explanations.expire_days > oldest.days
    shutil.rmtree(settings.pipelines_dir / "orders")
    (settings.expectations_dir / "orders.json").unlink()
    new(settings, parquet, clock=lambda: datetime(2025, 6, 1, tzinfo=UTC))
    assert load_pipeline(settings, "orders").explanations.expire_days == 730


def test_nothing_is_overwritten(settings: Settings, parquet: Path) -> None:
    folder = new(settings, parquet)
    (folder / "features.py").write_text("# mine\n")
    with pytest.raises(ConfigError, match="exists already; nothing was written"):
        new(settings, parquet)
    assert (folder / "features.py").read_text() == "# mine\n"


def refused(settings: Settings, table: pa.Table, path: Path, **changes: object) -> str:
    pq.write_table(table, path)
    with pytest.raises(DataError) as caught:
        new(settings, path, **changes)
    assert not (settings.pipelines_dir / "orders").exists()
    return str(caught.value)


def test_a_label_that_is_not_binary_is_described(settings: Settings, tmp_path: Path) -> None:
    message = refused(settings, orders(), tmp_path / "a.parquet", label="country")
    assert "is not a binary label: it is string with 3 distinct values ('CH', 'DE', 'FR: south')" in message
    assert "one class" not in message
    only = orders().set_column(13, "returned", pa.array([1] * (DAYS * PER_DAY)))
    assert "is 1 in every labelled row" in refused(settings, only, tmp_path / "b.parquet")


def test_a_wrong_column_too_few_days_and_repeated_keys_are_named(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    message = refused(settings, orders(), path, label="retuned")
    assert "lacks column retuned (did you mean returned" in message
    assert "name columns of the source with --key, --time and --label; it has: order_id, " in message
    assert "spans 1 day; " in refused(settings, orders().slice(0, 30), path)
    twice = pa.concat_tables([orders(), orders().slice(0, 1)])
    assert "more than once" in refused(settings, twice, path)


def test_a_name_that_is_no_name_and_a_source_that_is_nothing_are_refused(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is not a pipeline name"):
        scaffold(settings, "My Orders", source=str(tmp_path), label="a", time="b", keys=["c"])
    with pytest.raises(ConfigError, match="holds neither Parquet nor CSV files"):
        scaffold(settings, "orders", source=str(tmp_path), label="a", time="b", keys=["c"])
    with pytest.raises(ConfigError, match=r"does not exist\n.*a relative path starts at"):
        scaffold(settings, "orders", source="no-such.csv", label="a", time="b", keys=["c"])
