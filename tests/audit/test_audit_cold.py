"""The archive's files say the same as the table's rows, but for what the archive does not keep."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from audit_support import publish_days
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.audit import by_prediction, cold, retain
from tasks.audit.archive import ArchivedDate, archived_date, data_key, record
from tasks.audit.cold import COLD_ATTRIBUTION_BITS, EXPLANATION, cold_rows, encode
from tasks.audit.rows import AUDIT_SCHEMA
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import DataError, NotFound
from tasks.core.ids import digest_bytes, prediction_id
from tasks.core.object_store import LocalStore, ObjectStore

DAY = date(2024, 3, 1)
START = datetime(2024, 3, 1, tzinfo=UTC)
WIDTH, NUMERIC, TEXTS = 9, 6, 3


def audit_rows(n: int, *, seed: int = 1, one_time: bool = False, explained: float = 0.8) -> pa.Table:
    """n rows of one feature set as the table has them, in order of id."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(n):
        moment = START + timedelta(milliseconds=0 if one_time else int(rng.integers(0, 86_400_000)))
        parts = rng.normal(0, 0.5, WIDTH).astype(np.float32)
        base, rest = -1.25, float(np.float32(rng.normal(0, 1e-3)))
        logit = base + float(parts.sum(dtype=np.float64)) + rest
        told = rng.random() < explained
        rows.append(
            dict.fromkeys(AUDIT_SCHEMA.names)
            | {
                "prediction_id": prediction_id("toy", f"c{number}", int(moment.timestamp() * 1000)),
                "event_time": moment,
                "pipeline": "toy",
                "model_version": 3,
                "bundle_digest": "d" * 64,
                "entity_id": f"c{number}",
                "run_id": "b" * 16,
                "shard_id": number % 3,
                "prediction": 1 / (1 + math.exp(-logit)),
                "base_value": base if told else None,
                "attributions": parts.tolist() if told else None,
                "attribution_bits": 11 if told else None,
                "residual": rest if told else None,
                "feature_set_version": "f" * 16,
                "feature_computation_version": "1+x",
                "source_row": number,
                "feature_values": [
                    None if rng.random() < 0.2 else float(value)
                    for value in rng.normal(size=NUMERIC).astype(np.float32)
                ],
                "feature_texts": [
                    None if rng.random() < 0.2 else f"t{rng.integers(5)}" for _ in range(TEXTS)
                ],
                "scored_at": START,
            }
        )
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["prediction_id"]), AUDIT_SCHEMA)


def archive_of(store: ObjectStore, data: bytes, rows: int, **more: Any) -> ArchivedDate:
    sha256 = digest_bytes(data)
    key = data_key(DAY, sha256)
    store.put(key, data)
    return ArchivedDate(
        DAY, 1, "archived", key, rows, len(data), sha256, (), "2024-04-01T00:00:00Z", **{"format": 2, **more}
    )


@pytest.fixture
def store(tmp_path: Any) -> ObjectStore:
    return LocalStore(tmp_path)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold, "COLD_GROUP_ROWS", 64)


def test_everything_comes_back_but_the_small_attributions(store: ObjectStore, small_groups: None) -> None:
    table = audit_rows(300)
    archived = archive_of(store, encode(table, top_k=4, values=True), 300)
    found = cold_rows(store, archived, "", "~")
    assert found.column_names == [*AUDIT_SCHEMA.names, EXPLANATION.name]
    reduced = {"attributions", "attribution_bits", "residual"}
    same = [name for name in AUDIT_SCHEMA.names if name not in reduced]
    assert found.select(same).equals(table.select(same))
    off = 2.0 ** -(COLD_ATTRIBUTION_BITS + 1)
    for row, was in zip(found.to_pylist(), table.to_pylist(), strict=True):
        if was["attributions"] is None:
            assert (row["attributions"], row["residual"], row["explanation"]) == (None, None, None)
            continue
        largest = sorted(range(WIDTH), key=lambda i: -abs(was["attributions"][i]))[:4]
        assert row["explanation"] == "top" and row["attribution_bits"] == COLD_ATTRIBUTION_BITS
        assert {i for i, value in enumerate(row["attributions"]) if value is not None} == set(largest)
        for i in largest:
            assert row["attributions"][i] == pytest.approx(was["attributions"][i], rel=off)
        logit = row["base_value"] + sum(value or 0 for value in row["attributions"]) + row["residual"]
        assert 1 / (1 + math.exp(-logit)) == pytest.approx(row["prediction"], abs=2e-5)


@pytest.mark.parametrize("one_time", [False, True])
def test_ids_and_bounds_find_their_rows_also_when_all_have_one_event_time(
    store: ObjectStore, small_groups: None, one_time: bool
) -> None:
    table = audit_rows(300, one_time=one_time)
    ids = table.column("prediction_id").to_pylist()
    archived = archive_of(store, encode(table, top_k=4, values=True), 300)
    for place in (0, 63, 64, 65, 128, 299):
        assert cold_rows(store, archived, ids[place], ids[place]).column("prediction_id").to_pylist() == [
            ids[place]
        ]
    for low, high in ((0, 299), (10, 70), (63, 64), (290, 299)):
        found = cold_rows(store, archived, ids[low], ids[high], columns=["entity_id", "prediction_id"])
        assert found.column_names == ["entity_id", "prediction_id"]
        assert found.column("prediction_id").to_pylist() == ids[low : high + 1]
    assert cold_rows(store, archived, "ffffffff", "~").num_rows == 0


def test_a_look_up_reads_the_row_groups_of_its_ids_alone(
    store: ObjectStore, small_groups: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = audit_rows(300, one_time=True)
    archived = archive_of(store, encode(table, top_k=4, values=True), 300)
    read: list[int] = []
    real = pq.ParquetFile.read_row_group

    def counted(self: Any, number: int, **more: Any) -> pa.Table:
        read.append(number)
        return real(self, number, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    identifier = table.column("prediction_id")[150].as_py()
    assert cold_rows(store, archived, identifier, identifier).num_rows == 1
    assert set(read) == {2}


def test_scorings_of_one_id_on_both_sides_of_a_group_are_all_found(
    store: ObjectStore, small_groups: None
) -> None:
    table = audit_rows(64)
    again = table.slice(63).set_column(table.schema.get_field_index("run_id"), "run_id", pa.array(["c" * 16]))
    archived = archive_of(store, encode(pa.concat_tables([table, again]), top_k=4, values=True), 65)
    identifier = table.column("prediction_id")[63].as_py()
    assert cold_rows(store, archived, identifier, identifier).column("run_id").to_pylist() == [
        "b" * 16,
        "c" * 16,
    ]


def test_ids_that_are_no_function_of_their_row_are_stored(store: ObjectStore) -> None:
    rows = audit_rows(40).to_pylist()
    rows[3] |= {"entity_id": None, "attributions": None, "feature_values": None, "feature_texts": None}
    rows[7] |= {"pipeline": "renamed"}
    table = pa.Table.from_pylist(rows, AUDIT_SCHEMA)
    data = encode(table, top_k=4, values=True)
    stored = pq.read_table(pa.BufferReader(data), columns=["prediction_id"]).column("prediction_id")
    assert [place for place, one in enumerate(stored.to_pylist()) if one is not None] == [3, 7]
    found = cold_rows(store, archive_of(store, data, 40), "", "~")
    assert found.column("prediction_id").to_pylist() == table.column("prediction_id").to_pylist()
    assert found.column("entity_id").to_pylist() == table.column("entity_id").to_pylist()
    assert found.column("feature_values")[3].as_py() is None


def test_encoding_what_was_read_changes_nothing_and_equal_rows_give_equal_bytes(store: ObjectStore) -> None:
    table = audit_rows(100)
    data = encode(table, top_k=4, values=True)
    assert encode(audit_rows(100), top_k=4, values=True) == data
    found = cold_rows(store, archive_of(store, data, 100), "", "~").drop_columns([EXPLANATION.name])
    assert encode(found, top_k=4, values=True) == data


def test_without_values_and_with_all_attributions(store: ObjectStore) -> None:
    table = audit_rows(50, explained=1)
    archived = archive_of(store, encode(table, top_k=WIDTH, values=False), 50)
    found = cold_rows(store, archived, "", "~")
    assert found.column("feature_values").null_count == found.column("feature_texts").null_count == 50
    assert found.column("explanation").null_count == 50
    assert pc.list_flatten(found.column("attributions")).null_count == 0


@hypothesis_settings(max_examples=25)
@given(
    parts=st.lists(
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3) | st.none(), min_size=1, max_size=6
    ),
    scores=st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6),
    top_k=st.integers(1, 4),
)
def test_what_was_taken_from_the_attributions_is_in_the_residual(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[list[float] | None],
    scores: list[float],
    top_k: int,
) -> None:
    rows = audit_rows(len(parts)).to_pylist()
    for row, told, score in zip(rows, parts, scores, strict=False):
        row |= {"attributions": told, "prediction": score}
        row |= {"base_value": 0.5 if told else None, "residual": 0.125 if told else None}
    store = LocalStore(tmp_path_factory.mktemp("store"))
    data = encode(pa.Table.from_pylist(rows, AUDIT_SCHEMA), top_k=top_k, values=True)
    for row, was in zip(
        cold_rows(store, archive_of(store, data, len(rows)), "", "~").to_pylist(), rows, strict=True
    ):
        if was["attributions"] is None:
            assert row["attributions"] is None
            continue
        left = [value for value in row["attributions"] if value is not None]
        assert len(left) <= top_k
        assert math.fsum(left) + row["residual"] == pytest.approx(
            math.fsum(was["attributions"]) + 0.125, abs=2e-4, rel=1e-6
        )


def test_a_missing_and_a_damaged_file_are_errors_that_name_it(settings: Settings, toy: PipelineSpec) -> None:
    ids, _ = publish_days(settings, toy, days=1)
    retain(settings, toy, as_of=date(2024, 3, 4), warm_days=1)
    store = open_store(settings, prefix=toy.prefix)
    archived = archived_date(store, DAY)
    assert archived is not None
    data = store.get(archived.key)
    metadata = pq.read_metadata(pa.BufferReader(data))
    middle = metadata.row_group(0).column(4).data_page_offset + 30
    for damaged in (
        data[:200],
        data[:-4] + b"junk",
        data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
    ):
        store.put(archived.key, damaged)
        with pytest.raises(DataError, match=archived.key) as caught:
            by_prediction(settings, toy, ids[0])
        assert "restore it from a backup" in caught.value.fix
    store.delete(archived.key)
    with pytest.raises(NotFound, match="is gone") as missing:
        cold_rows(store, archived, "", "~")
    assert archived.key in missing.value.which and archived.sha256 in missing.value.fix
    with pytest.raises(DataError, match="is gone"):
        by_prediction(settings, toy, ids[0])


def test_a_file_of_a_later_release_is_refused_as_such(store: ObjectStore) -> None:
    later = archive_of(store, encode(audit_rows(5), top_k=4, values=True), 5, format=3)
    with pytest.raises(DataError, match="has format 3"):
        cold_rows(store, later, "", "~")


def test_an_archive_of_the_earlier_format_is_read_and_joins_the_next_generation(
    settings: Settings, toy: PipelineSpec
) -> None:
    ids, first = publish_days(settings, toy, days=1)
    store = open_store(settings, prefix=toy.prefix)
    retain(settings, toy, as_of=date(2024, 3, 4), warm_days=1)
    new = archived_date(store, DAY)
    assert new is not None
    rows = cold_rows(store, new, "", "~").select(AUDIT_SCHEMA.names[:-1])  # it had no `erasure_id`
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, row_group_size=50)
    data = sink.getvalue().to_pybytes()
    old = archive_of(store, data, rows.num_rows)
    raw = dataclasses.replace(old, generation=2).to_json()
    for name in ("format", "top_k", "values_kept", "explained_rows", "cause"):
        del raw[name]
    record(store, ArchivedDate.from_json(raw))
    found = by_prediction(settings, toy, ids[7])
    assert (found.prediction_id, found.tier, found.run_id) == (ids[7], "cold", first)
    publish_days(settings, toy, days=1, version=2)
    retain(settings, toy, as_of=date(2024, 3, 4), warm_days=1)
    newest = archived_date(store, DAY)
    assert newest is not None and (newest.generation, newest.format, newest.rows) == (3, 2, 240)
    assert by_prediction(settings, toy, ids[7], run_id=first).tier == "cold"
