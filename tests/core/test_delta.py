"""Delta commits as compare-and-swap: what is decided from one view is committed on that view or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.core import ObjectStore, Settings, open_store
from tasks.core.delta import Change, FileName, TableFile, TableView, commit_change, table_view
from tasks.core.ids import prediction_id

TABLE = "tables/things"
SCHEMA = pa.schema([("prediction_id", pa.string()), ("event_date", pa.date32())])
DAY = date(2024, 3, 1)
IDENTIFIER = prediction_id("toy", "c1", 1_709_251_200_123)


@pytest.fixture
def store(store_settings: Settings) -> ObjectStore:
    return open_store(store_settings, prefix="default/toy")


def write(store: ObjectStore, run: int) -> TableFile:
    name = FileName(DAY, f"{run:016x}", DAY, 0, "a0001-00")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prediction_id": [IDENTIFIER]}), sink)
    data = sink.getvalue().to_pybytes()
    store.put(f"{TABLE}/{name}", data)
    bounds = {"prediction_id": IDENTIFIER}
    return TableFile(
        str(name), DAY, 1, len(data), "x", {"numRecords": 1, "minValues": bounds, "maxValues": bounds}
    )


def only_one_at_a_time(store: ObjectStore, run: int, file: TableFile) -> None:
    """Replace whatever is there by `file`, once."""

    def decide(view: TableView) -> Change | None:
        if view.transaction_version(f"app:{run}") is not None:
            return None
        return Change(add=(file,), remove=view.files, transaction=(f"app:{run}", 1), note={"run": str(run)})

    commit_change(store, TABLE, schema=lambda: SCHEMA, decide=decide)


def test_replacements_at_once_leave_exactly_one(store: ObjectStore) -> None:
    files = [write(store, run) for run in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda run: only_one_at_a_time(store, run, files[run]), range(6)))
    view = table_view(store, TABLE)
    assert view is not None
    assert len(view.files) == 1
    assert view.version == 6
    assert [view.transaction_version(f"app:{run}") for run in range(6)] == [1] * 6


def test_a_table_that_does_not_exist_has_no_view(store: ObjectStore) -> None:
    assert table_view(store, TABLE) is None


def test_transactions_and_bounds_survive_a_checkpoint(settings: Settings) -> None:
    store = open_store(settings, prefix="default/toy")
    file = write(store, 0)
    only_one_at_a_time(store, 0, file)
    for run in range(1, 120):
        only_one_at_a_time(store, run, write(store, run))
    assert any("checkpoint" in info.key for info in store.list(f"{TABLE}/_delta_log"))
    view = table_view(store, TABLE)
    assert view is not None
    assert view.transaction_version("app:0") == 1
    assert [(live.first_id, live.last_id, live.rows) for live in view.files] == [(IDENTIFIER, IDENTIFIER, 1)]
    only_one_at_a_time(store, 0, file)
    assert table_view(store, TABLE).version == view.version  # type: ignore[union-attr]
    note = view.commit_note("run", "119")
    assert note is not None
    assert note["version"] == view.version


def test_names_that_penstock_did_not_give_are_not_read(store: ObjectStore) -> None:
    name = FileName(DAY, "0" * 16, DAY, 123456, "a0001-ab")
    assert FileName.parse(str(name)) == name
    assert FileName.parse("event_date=2024-03-01/part-00000-c000.snappy.parquet") is None
    assert FileName.parse("_delta_log/00000000000000000000.json") is None
