"""Partitions are named by content, written once and checked when read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.core import PartitionFile, Snapshot
from tasks.core.errors import DataError, NotFound
from tasks.core.object_store import LocalStore
from tasks.core.partitions import (
    ROW_GROUP_ROWS,
    derive_snapshot,
    load_snapshot,
    read_partition,
    save_snapshot,
    table_schema,
    write_partition,
)

DAY = date(2024, 1, 2)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def make_table(rows: int = 100) -> pa.Table:
    rng = np.random.default_rng(1)
    return pa.table(
        {"n": np.arange(rows), "x": rng.random(rows), "city": rng.choice(["Basel", "Bern"], rows)}
    )


def make_snapshot(table: pa.Table, *parts: PartitionFile) -> Snapshot:
    schema = table_schema(table)
    return Snapshot(
        snapshot_id=Snapshot.identity("toy", "training", schema, parts),
        pipeline="toy",
        kind="training",
        schema=schema,
        partitions=parts,
        created_at_utc="2024-01-01T00:00:00.000Z",
    )


def test_what_was_written_is_read(store: LocalStore) -> None:
    table = make_table()
    part = write_partition(store, DAY, table)
    assert part.key == f"data/2024-01-02/{part.sha256[:16]}.parquet"
    assert (part.rows, part.row_group_rows, part.day) == (100, (100,), DAY)
    assert read_partition(store, part).equals(table)
    assert read_partition(store, part, columns=["x"]).column_names == ["x"]


def test_equal_rows_are_equal_bytes_whatever_their_layout(store: LocalStore) -> None:
    table = make_table(1000)
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7)]).replace_schema_metadata({"pandas": "{}"})
    encoded = chunked.set_column(2, "city", chunked.column("city").combine_chunks().dictionary_encode())
    padded = pa.concat_tables([make_table(3), table]).slice(3)
    parts = {write_partition(store, DAY, one) for one in (table, chunked, encoded, padded)}
    assert len(parts) == 1
    assert len(list(store.list("data"))) == 1


def test_a_second_write_leaves_the_first_file_alone(store: LocalStore) -> None:
    first = write_partition(store, DAY, make_table())
    before = (store.root / first.key).stat()
    assert write_partition(store, DAY, make_table()) == first
    assert (store.root / first.key).stat().st_ino == before.st_ino


def test_row_groups_are_bounded_and_can_be_read_alone(store: LocalStore) -> None:
    part = write_partition(store, DAY, make_table(ROW_GROUP_ROWS + 10))
    assert part.row_group_rows == (ROW_GROUP_ROWS, 10)
    assert read_partition(store, part, ["n"], [1]).column("n").to_pylist() == list(
        range(ROW_GROUP_ROWS, ROW_GROUP_ROWS + 10)
    )


def test_a_truncated_file_is_named_with_its_fix(store: LocalStore) -> None:
    part = write_partition(store, DAY, make_table())
    path = store.root / part.key
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is truncated") as caught:
        read_partition(store, part)
    assert caught.value.which == str(path)
    assert "take the snapshot again" in caught.value.fix


def test_one_flipped_bit_is_noticed_even_in_columns_not_asked_for(store: LocalStore) -> None:
    part = write_partition(store, DAY, make_table())
    path = store.root / part.key
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="is damaged"):
        read_partition(store, part, columns=["city"])


def test_a_file_that_is_not_parquet_is_named_even_when_its_digest_fits(store: LocalStore) -> None:
    part = write_partition(store, DAY, make_table())
    (store.root / part.key).write_bytes(b"PAR1 nothing PAR1")
    from tasks.core.ids import digest_bytes

    lying = replace(part, size_bytes=17, sha256=digest_bytes(b"PAR1 nothing PAR1"))
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_partition(store, lying)


def test_a_missing_file_and_a_missing_column_are_named(store: LocalStore) -> None:
    part = write_partition(store, DAY, make_table())
    with pytest.raises(DataError, match="has no column towns"):
        read_partition(store, part, columns=["towns"])
    store.delete(part.key)
    with pytest.raises(NotFound):
        read_partition(store, part)


def test_no_rows_are_no_partition(store: LocalStore) -> None:
    with pytest.raises(DataError, match="partition 2024-01-02: has no rows"):
        write_partition(store, DAY, make_table().slice(0, 0))


def test_a_snapshot_comes_back_and_the_first_of_equal_content_stays(store: LocalStore) -> None:
    table = make_table()
    snapshot = make_snapshot(table, write_partition(store, DAY, table))
    assert save_snapshot(store, snapshot) == snapshot
    later = replace(snapshot, created_at_utc="2025-01-01T00:00:00.000Z")
    assert save_snapshot(store, later) == snapshot
    assert load_snapshot(store, snapshot.snapshot_id) == snapshot


def test_an_unknown_or_damaged_snapshot_is_named(store: LocalStore) -> None:
    with pytest.raises(NotFound, match="0000: is not a snapshot"):
        load_snapshot(store, "0000")
    store.put("snapshots/0001.json", b"{")
    with pytest.raises(DataError, match="not a readable manifest"):
        load_snapshot(store, "0001")


def test_a_derived_snapshot_names_its_parent_and_no_change_is_the_parent(store: LocalStore) -> None:
    table = make_table()
    whole = write_partition(store, DAY, table)
    parent = save_snapshot(store, make_snapshot(table, whole))
    clean = write_partition(store, DAY, table.slice(0, 90))
    derived = derive_snapshot(store, parent, [clean], clock=lambda: datetime(2024, 2, 1, tzinfo=UTC))
    assert derived.parent_snapshot_id == parent.snapshot_id
    assert derived.rows == 90
    assert load_snapshot(store, derived.snapshot_id) == derived
    assert derive_snapshot(store, parent, [whole]) is parent
    with pytest.raises(DataError, match="no rows left"):
        derive_snapshot(store, parent, [])
