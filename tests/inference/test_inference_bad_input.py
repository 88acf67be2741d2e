"""Bad rows, bad files and bad models: dead letters or a typed error as documented, never a partial run."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundle_support import upload_random_bundle
from inference_support import (
    AUDIT,
    StubModel,
    plan_stub,
    run_stub,
    score_and_publish,
    scoring_snapshot,
    table_rows,
    toy_rows,
    with_prices,
)

from tasks.core import PartitionFile, PipelineSpec, Settings, Snapshot, open_store
from tasks.core.errors import DataError, PenstockError, PipelineCodeError
from tasks.core.ids import digest_bytes
from tasks.core.partitions import save_snapshot, table_schema
from tasks.inference import plan, publish, run_plan, verify
from tasks.inference.records import committed_shards, read_shard_record
from tasks.model import Profile, fetch_bundle

DAY = date(2024, 3, 1)
Change = Callable[[pa.Table], pa.Table]


def replaced(name: str, values: Any) -> Change:
    """The same rows with another column in the place of `name`; `values` is given the column."""

    def change(rows: pa.Table) -> pa.Table:
        return rows.set_column(rows.schema.get_field_index(name), name, values(rows.column(name)))

    return change


def with_value(name: str, value: Any, *, at: int = 7) -> Change:
    """`value` in one row of a column, whose type stays."""

    def values(column: pa.ChunkedArray) -> pa.Array:
        found = column.to_pylist()
        found[at] = value
        return pa.array(found, column.type)

    return replaced(name, values)


def tolerant(spec: PipelineSpec) -> PipelineSpec:
    return spec.model_copy(
        update={"inference": spec.inference.model_copy(update={"max_dead_letter_share": 0.05})}
    )


def dead_letters(settings: Settings, spec: PipelineSpec, run_id: str, shards: int) -> list[dict[str, Any]]:
    store = open_store(settings, prefix=spec.prefix)
    return [
        row
        for shard in range(shards)
        if (record := read_shard_record(store, run_id, shard)) and record.dead_letter_key
        for row in pq.read_table(io.BytesIO(store.get(record.dead_letter_key))).to_pylist()
    ]


def hand_made_snapshot(settings: Settings, spec: PipelineSpec, files: dict[date, bytes]) -> Snapshot:
    """A snapshot of Parquet files as they are, whatever wrote them."""
    store = open_store(settings, prefix=spec.prefix)
    partitions = []
    for day, data in files.items():
        key = f"data/{day}/{digest_bytes(data)[:16]}.parquet"
        store.put(key, data)
        metadata = pq.read_metadata(pa.BufferReader(data))
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        partitions.append(PartitionFile(day, key, metadata.num_rows, len(data), digest_bytes(data), groups))
    schema = table_schema(pq.read_table(io.BytesIO(next(iter(files.values())))))
    identity = Snapshot.identity(spec.name, "scoring", schema, tuple(partitions))
    made = Snapshot(identity, spec.name, "scoring", schema, tuple(partitions), "2024-04-01T00:00:00.000Z")
    return save_snapshot(store, made)


def parquet(rows: pa.Table, **more: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, **more)
    data: bytes = sink.getvalue().to_pybytes()
    return data


@pytest.fixture
def real(settings: Settings, toy: PipelineSpec, tmp_path: Path) -> Callable[..., str]:
    """Plan and score a snapshot with a real bundle; returns the run id."""
    digest, version = upload_random_bundle(settings, toy, tmp_path / "bundle")

    def score(snapshot: Snapshot, spec: PipelineSpec = toy) -> str:
        run_id = plan(
            settings, spec, snapshot, model_version=1, bundle_digest=digest, feature_version=version
        ).run_id
        run_plan(settings, spec, run_id, local=True, audit_table=AUDIT)
        return run_id

    return score


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e308, None])
def test_a_number_that_is_none_is_scored_as_a_missing_value(
    settings: Settings, toy: PipelineSpec, real: Callable[..., str], value: float | None
) -> None:
    run_id = real(scoring_snapshot(settings, toy, days=1, change=with_value("price", value)))
    publish(settings, toy, run_id)
    rows = table_rows(settings, toy)
    assert len(rows) == 120
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert verify(settings, toy, run_id).ok


@pytest.mark.parametrize("value", ["Atlantis", "", "Bern ", "🏔", None])
def test_a_category_that_training_never_saw_is_scored_like_every_unseen_one(
    settings: Settings, toy: PipelineSpec, real: Callable[..., str], value: str | None
) -> None:
    run_id = real(scoring_snapshot(settings, toy, days=1, change=with_value("city", value)))
    publish(settings, toy, run_id)
    unseen = {row["entity_id"]: row["score"] for row in table_rows(settings, toy)}
    again = real(scoring_snapshot(settings, toy, days=1, change=with_value("city", "another unseen one")))
    publish(settings, toy, again)
    assert {row["entity_id"]: row["score"] for row in table_rows(settings, toy)} == unseen


def test_a_feature_column_without_any_value_is_scored(
    settings: Settings, toy: PipelineSpec, real: Callable[..., str]
) -> None:
    change = replaced("visits", lambda column: pa.nulls(len(column), column.type))
    run_id = real(scoring_snapshot(settings, toy, days=1, change=change))
    publish(settings, toy, run_id)
    assert len(table_rows(settings, toy)) == 120


@pytest.mark.parametrize("name", ["customer", "asked_at"])
def test_a_row_without_key_or_time_is_a_dead_letter_and_the_rest_is_published(
    settings: Settings, toy: PipelineSpec, real: Callable[..., str], name: str
) -> None:
    spec = tolerant(toy)
    run_id = real(scoring_snapshot(settings, spec, days=1, change=with_value(name, None)), spec)
    publish(settings, spec, run_id)
    assert len(table_rows(settings, spec)) == 119
    letters = dead_letters(settings, spec, run_id, 2)
    assert [(row["penstock_source_row"], row["penstock_stage"]) for row in letters] == [(7, "identity")]
    assert letters[0]["penstock_prediction_id"] is None
    assert f"{name}" in letters[0]["penstock_reason"] or "null" in letters[0]["penstock_reason"]
    assert verify(settings, spec, run_id).ok


def test_expected_nulls_are_counted_of_the_rows_that_were_scored(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    """A dead letter in front of them moves no row against its condition."""
    conditions = {"price": {"stock": ("none",)}}
    drift = toy.drift.model_copy(update={"null_when": conditions})
    spec = tolerant(toy.model_copy(update={"drift": drift}))
    digest, version = upload_random_bundle(settings, spec, tmp_path / "bundle")

    def change(rows: pa.Table) -> pa.Table:
        stock = pa.array(["none" if index in (7, 20, 21, 90) else "some" for index in range(rows.num_rows)])
        price = pa.array([None if index in (20, 21, 22, 90) else 1.0 for index in range(rows.num_rows)])
        rows = with_value("customer", None)(rows).append_column("stock", stock)
        return rows.set_column(rows.schema.get_field_index("price"), "price", price)

    snapshot = scoring_snapshot(settings, spec, days=1, change=change)
    planned = plan(settings, spec, snapshot, model_version=1, bundle_digest=digest, feature_version=version)
    run_plan(settings, spec, planned.run_id, local=True, audit_table=AUDIT)
    store = open_store(settings, prefix=spec.prefix)
    grid = fetch_bundle(store, digest, settings.cache_dir).profile_spec
    records = [read_shard_record(store, planned.run_id, shard) for shard in range(2)]
    whole = Profile.merged(
        grid, [Profile.from_json(grid, item.profile) for item in records if item and item.profile]
    )
    assert (whole.rows, whole.numeric["price"].nulls, whole.expected_nulls["price"]) == (119, 4, 3)


def test_days_whose_columns_differ_in_order_are_scored_alike(
    settings: Settings, toy: PipelineSpec, real: Callable[..., str]
) -> None:
    rows = {day: toy_rows(settings, day) for day in (DAY, date(2024, 3, 2))}
    plain = real(hand_made_snapshot(settings, toy, {day: parquet(table) for day, table in rows.items()}))
    publish(settings, toy, plain)
    wanted = {row["prediction_id"]: row["score"] for row in table_rows(settings, toy)}
    turned = {
        DAY: parquet(rows[DAY]),
        date(2024, 3, 2): parquet(rows[date(2024, 3, 2)].select(rows[DAY].column_names[::-1])),
    }
    other = real(hand_made_snapshot(settings, toy, turned))
    publish(settings, toy, other)
    assert {row["prediction_id"]: row["score"] for row in table_rows(settings, toy)} == wanted


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param(lambda rows: rows.drop_columns(["price"]), "price", id="feature missing"),
        pytest.param(lambda rows: rows.drop_columns(["customer"]), "customer", id="key missing"),
        pytest.param(
            replaced("price", lambda column: pa.array(["dear"] * len(column))), "price", id="feature of text"
        ),
        pytest.param(
            replaced("asked_at", lambda column: pa.array(["noon"] * len(column))),
            "asked_at",
            id="time of text",
        ),
        pytest.param(
            replaced("asked_at", lambda column: column.cast(pa.timestamp("us"))),
            "asked_at",
            id="time without zone",
        ),
    ],
)
def test_a_day_whose_schema_differs_ends_typed_and_earlier_runs_stay(
    settings: Settings, toy: PipelineSpec, real: Callable[..., str], change: Change, names: str
) -> None:
    good = {day: toy_rows(settings, day) for day in (DAY, date(2024, 3, 2))}
    first = real(scoring_snapshot(settings, toy, days=1))
    publish(settings, toy, first)
    before = table_rows(settings, toy)
    bad = hand_made_snapshot(
        settings, toy, {DAY: parquet(good[DAY]), date(2024, 3, 2): parquet(change(good[date(2024, 3, 2)]))}
    )
    with pytest.raises((DataError, PipelineCodeError)) as caught:
        real(bad)
    assert names in str(caught.value)
    assert caught.value.fix
    assert table_rows(settings, toy) == before
    repaired = real(hand_made_snapshot(settings, toy, {day: parquet(rows) for day, rows in good.items()}))
    publish(settings, toy, repaired)
    assert len(table_rows(settings, toy)) == 240
    assert verify(settings, toy, repaired).ok


def test_a_key_of_another_type_than_the_tables_is_refused_before_publication(
    settings: Settings, toy: PipelineSpec
) -> None:
    first = score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    before = table_rows(settings, toy)
    numbers = replaced("customer", lambda column: pa.array(range(len(column)), pa.int64()))
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1, change=numbers), 2)
    run_stub(settings, toy, planned.run_id)
    with pytest.raises(DataError, match="customer") as caught:
        publish(settings, toy, planned.run_id)
    assert "give customer the type string again" in caught.value.fix
    assert table_rows(settings, toy) == before
    assert verify(settings, toy, first).ok


def test_one_giant_row_group_is_cut_inside_and_every_row_scored_once(
    settings: Settings, toy: PipelineSpec
) -> None:
    rows = pa.concat_tables([toy_rows(settings, DAY)] * 50)
    rows = replaced("customer", lambda column: pa.array([f"c{index}" for index in range(len(column))]))(rows)
    snapshot = hand_made_snapshot(settings, toy, {DAY: parquet(rows, row_group_size=10_000)})
    assert snapshot.partitions[0].row_group_rows == (6000,)
    planned = plan_stub(settings, toy, snapshot)
    assert len(planned.shards) == 60
    assert {shard.row_groups for shard in planned.shards} == {(0,)}
    run_stub(settings, toy, planned.run_id)
    publish(settings, toy, planned.run_id)
    found = [row["entity_id"] for row in table_rows(settings, toy)]
    assert sorted(found) == sorted(rows.column("customer").to_pylist())
    assert verify(settings, toy, planned.run_id).ok


def test_a_snapshot_without_rows_cannot_be_planned(settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(settings, toy, days=1)
    empty = parquet(toy_rows(settings, DAY).slice(0, 0))
    for bad in (
        hand_made_snapshot(settings, toy, {DAY: empty}),
        dataclasses.replace(snapshot, partitions=()),
    ):
        with pytest.raises(DataError, match="no rows to score"):
            plan_stub(settings, toy, bad)
    assert list(open_store(settings, prefix=toy.prefix).list("runs")) == []


def test_an_empty_row_group_between_full_ones_is_no_shard_and_no_fault(
    settings: Settings, toy: PipelineSpec
) -> None:
    rows = toy_rows(settings, DAY)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema) as writer:
        for part in (rows.slice(0, 60), rows.slice(0, 0), rows.slice(60)):
            writer.write_table(part)
    data = sink.getvalue().to_pybytes()
    planned = plan_stub(settings, toy, hand_made_snapshot(settings, toy, {DAY: data}))
    run_stub(settings, toy, planned.run_id)
    publish(settings, toy, planned.run_id)
    assert len(table_rows(settings, toy)) == 120


def test_a_partition_that_was_never_parquet_ends_typed(settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(settings, toy, days=1)
    data = b"customer,asked_at\nc1,noon\n" * 50
    part = dataclasses.replace(
        snapshot.partitions[0], key="data/text.parquet", size_bytes=len(data), sha256=digest_bytes(data)
    )
    store = open_store(settings, prefix=toy.prefix)
    store.put(part.key, data)
    planned = plan_stub(
        settings, toy, dataclasses.replace(snapshot, snapshot_id="f" * 16, partitions=(part,))
    )
    with pytest.raises(DataError, match="not readable as Parquet") as caught:
        run_stub(settings, toy, planned.run_id)
    assert part.key in str(caught.value)
    assert committed_shards(store, planned.run_id) == set()


class Wrong(StubModel):
    """A model that answers what no model should; `answer` of the class says what."""

    answer: Callable[[np.ndarray[Any, Any]], Any] = staticmethod(lambda scores: scores)

    def predict(self, encoded: np.ndarray[Any, Any]) -> Any:
        return type(self).answer(super().predict(encoded))


def load_wrong(settings: Settings, spec: PipelineSpec, planned: object) -> Wrong:
    return Wrong(1)


def refused(scores: np.ndarray[Any, Any]) -> Any:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


WRONG = "test_inference_bad_input:load_wrong"


def refused_before_publication(
    settings: Settings, toy: PipelineSpec, answer: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> PenstockError:
    """The error of a run whose model answers so; nothing was published and the earlier run is as it was."""
    first = score_and_publish(settings, toy, scoring_snapshot(settings, toy), version=1)
    before = table_rows(settings, toy)
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy), 2)
    monkeypatch.setattr(Wrong, "answer", staticmethod(answer))
    with pytest.raises(PenstockError) as caught:
        run_stub(settings, toy, planned.run_id, load_model=WRONG)
    with pytest.raises(PenstockError):
        publish(settings, toy, planned.run_id)
    assert table_rows(settings, toy) == before
    assert verify(settings, toy, first).ok
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    "answer",
    [
        lambda scores: scores.reshape(-1, 1),
        lambda scores: scores[:-1],
        lambda scores: np.concatenate([scores, scores]),
        lambda scores: scores[0],
    ],
    ids=["a column", "a row less", "twice as many", "one number"],
)
def test_a_model_of_a_wrong_shape_is_an_error_of_the_code(
    settings: Settings,
    toy: PipelineSpec,
    answer: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = refused_before_publication(settings, toy, answer, monkeypatch)
    assert type(error) is PipelineCodeError
    assert "scores of shape" in str(error)
    run_id = plan_stub(settings, toy, scoring_snapshot(settings, toy), 2).run_id
    monkeypatch.setattr(Wrong, "answer", staticmethod(lambda scores: scores))
    run_stub(settings, toy, run_id, load_model=WRONG)
    publish(settings, toy, run_id)
    assert {row["run_id"] for row in table_rows(settings, toy)} == {run_id}
    assert len(table_rows(settings, toy)) == 360


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (lambda scores: np.full_like(scores, np.nan), "NotAProbability"),
        (lambda scores: np.full_like(scores, np.inf), "NotAProbability"),
        (lambda scores: scores + 2, "NotAProbability"),
        (lambda scores: -scores - 1, "NotAProbability"),
        (refused, "cannot be multiplied"),
    ],
    ids=["NaN", "infinity", "above one", "below zero", "raises"],
)
def test_a_model_that_answers_no_probability_for_any_row_fails_before_publication(
    settings: Settings,
    toy: PipelineSpec,
    answer: Callable[[Any], Any],
    names: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = refused_before_publication(settings, toy, answer, monkeypatch)
    assert type(error) is DataError
    assert "360 of 360 rows (100.00%) could not be scored" in str(error)
    assert names in str(error)
    assert "max_dead_letter_share" in str(error)


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_scores_of_another_float_type_are_stored_as_float32(
    settings: Settings, toy: PipelineSpec, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "answer", staticmethod(lambda scores: scores.astype(kind)))
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    run_stub(settings, toy, planned.run_id, load_model=WRONG)
    publish(settings, toy, planned.run_id)
    rows = table_rows(settings, toy)
    assert len(rows) == 120
    assert all(0 <= row["score"] <= 1 for row in rows)


@pytest.mark.parametrize(
    "answer",
    [lambda scores: scores.astype(str), lambda scores: scores.tolist(), lambda scores: None],
    ids=["text", "a list", "nothing"],
)
def test_an_answer_that_is_no_array_of_numbers_ends_typed(
    settings: Settings,
    toy: PipelineSpec,
    answer: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = refused_before_publication(settings, toy, answer, monkeypatch)
    assert type(error) is PipelineCodeError


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_in_a_column_that_only_passes_through_changes_nothing(
    settings: Settings, toy: PipelineSpec, value: float
) -> None:
    planned = plan_stub(
        settings, toy, scoring_snapshot(settings, toy, days=1, change=with_prices({3: value}))
    )
    run_stub(settings, toy, planned.run_id)
    publish(settings, toy, planned.run_id)
    letters = dead_letters(settings, toy, planned.run_id, 2)
    assert len(table_rows(settings, toy)) + len(letters) == 120
    assert verify(settings, toy, planned.run_id).ok
