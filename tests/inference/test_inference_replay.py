"""Dead letters come back once: replays add what can be scored now, and nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from children import assert_killed
from inference_support import (
    AUDIT,
    POISON,
    STUB,
    StubModel,
    plan_stub,
    run_stub,
    score_and_publish,
    scoring_snapshot,
    table_rows,
    with_prices,
)
from test_inference_crashes import start_child

from tasks.core import PipelineSpec, Settings, Snapshot, open_store
from tasks.core.errors import DataError, StaleAttempt, TransientError
from tasks.inference import Replayed, publish, published_days, published_records, replay, status, verify
from tasks.inference.records import Plan, read_plan, read_replays

HEALED = "test_inference_replay:load_healed"
BAD = {7: POISON, 70: POISON, 99: POISON}
REPLAY_POINTS = [
    "before-replay-record",
    "after-replay-record",
    "after-data-file",
    "after-record",
    "before-audit-commit",
    "after-audit-commit",
    "after-delta-commit",
    "after-published-marker",
]


def load_healed(settings: Settings, spec: PipelineSpec, planned: Plan) -> StubModel:
    """The stub after its cause of failure was repaired: a price of -13 is like any other."""

    class Healed(StubModel):
        def features(self, rows: pa.Table) -> pa.Table:
            at = rows.schema.get_field_index("price")
            prices = [1.0 if price == POISON else price for price in rows.column("price").to_pylist()]
            return super().features(rows.set_column(at, "price", pa.array(prices, pa.float64())))

    return Healed(planned.fingerprint.model_version)


@pytest.fixture
def spec(toy: PipelineSpec) -> PipelineSpec:
    return toy.model_copy(
        update={"inference": toy.inference.model_copy(update={"max_dead_letter_share": 0.1})}
    )


def with_dead_letters(settings: Settings, spec: PipelineSpec, version: int = 1) -> str:
    """A published run of 3 x 120 rows with 3 dead letters a day."""
    return score_and_publish(
        settings, spec, scoring_snapshot(settings, spec, change=with_prices(BAD)), version
    )


def again(settings: Settings, spec: PipelineSpec, run_id: str, **more: Any) -> Replayed:
    return replay(
        settings, spec, run_id, **{"local": True, "audit_table": AUDIT, "load_model": HEALED, **more}
    )


def ids(settings: Settings, spec: PipelineSpec, table: str = "predictions") -> list[str]:
    return [row["prediction_id"] for row in table_rows(settings, spec, table)]


def test_a_replay_adds_the_rows_that_failed_and_leaves_the_others_as_they_are(
    store_settings: Settings, spec: PipelineSpec
) -> None:
    run_id = with_dead_letters(store_settings, spec)
    before = table_rows(store_settings, spec)
    done = again(store_settings, spec, run_id)
    assert (done.replay, done.dead_letters, done.rows_scored, done.dead_letters_left) == (1, 9, 9, 0)
    rows = table_rows(store_settings, spec)
    assert [row for row in rows if row["run_id"] == run_id] == before
    assert len({row["prediction_id"] for row in rows}) == len(rows) == 360
    assert {row["run_id"] for row in rows} == {run_id, done.replay_run_id}
    assert ids(store_settings, spec, "audit") == ids(store_settings, spec)
    for run in (run_id, done.replay_run_id or ""):
        found = verify(store_settings, spec, run)
        assert found.ok, found.problems
        assert found.superseded_by == ()
    fingerprint = read_plan(
        open_store(store_settings, prefix=spec.prefix), done.replay_run_id or ""
    ).fingerprint
    assert (fingerprint.replay_of, fingerprint.replay, fingerprint.bundle_digest) == (run_id, 1, "d" * 64)
    assert status(store_settings, spec, run_id).rows_replayed == 9
    assert set(published_days(store_settings, spec).values()) == {run_id}
    assert len(published_records(store_settings, spec, [date(2024, 3, 2)])) == 3


def test_a_second_replay_adds_nothing(settings: Settings, spec: PipelineSpec) -> None:
    run_id = with_dead_letters(settings, spec)
    again(settings, spec, run_id)
    rows = table_rows(settings, spec)
    keys = {info.key for info in open_store(settings, prefix=spec.prefix).list()}
    second = again(settings, spec, run_id, load_model="no.such.module:anything")
    assert (second.replay_run_id, second.rows_scored, second.dead_letters_left) == (None, 0, 0)
    assert table_rows(settings, spec) == rows
    assert {info.key for info in open_store(settings, prefix=spec.prefix).list()} == keys


def test_rows_that_fail_again_stay_dead_letters_until_their_cause_is_gone(
    settings: Settings, spec: PipelineSpec
) -> None:
    run_id = with_dead_letters(settings, spec)
    before = table_rows(settings, spec)
    for generation in (1, 2):
        vain = again(settings, spec, run_id, load_model=STUB)
        assert (vain.replay, vain.rows_scored, vain.dead_letters_left) == (generation, 0, 9)
        assert verify(settings, spec, vain.replay_run_id or "").ok
        assert table_rows(settings, spec) == before
    assert again(settings, spec, run_id).rows_scored == 9
    assert len(set(ids(settings, spec))) == len(ids(settings, spec)) == 360


def test_a_corrected_delivery_replays_the_rows_that_it_has(settings: Settings, spec: PipelineSpec) -> None:
    run_id = with_dead_letters(settings, spec)
    corrected = scoring_snapshot(settings, spec, change=with_prices({7: 5.0, 70: POISON, 1: 77.0}))
    done = again(settings, spec, run_id, corrected=corrected, load_model=STUB)
    assert (done.rows_scored, done.dead_letters_left, done.unmatched) == (6, 3, 0)
    rows = table_rows(settings, spec)
    assert len({row["prediction_id"] for row in rows}) == len(rows) == 357
    assert len([row for row in rows if row["run_id"] == run_id]) == 351, "a good row is not scored again"

    def without(table: pa.Table) -> pa.Table:
        return table.slice(0, 60)

    shorter = scoring_snapshot(settings, spec, change=lambda rows: without(with_prices({7: 5.0})(rows)))
    vain = again(settings, spec, run_id, corrected=shorter)
    assert (vain.replay_run_id, vain.unmatched, vain.dead_letters_left) == (None, 3, 3)


def test_a_delivery_that_repeats_a_row_is_refused(settings: Settings, spec: PipelineSpec) -> None:
    run_id = with_dead_letters(settings, spec)
    twice = scoring_snapshot(settings, spec, change=lambda rows: pa.concat_tables([rows, rows.slice(7, 1)]))
    with pytest.raises(DataError, match="more than once"):
        again(settings, spec, run_id, corrected=twice)
    assert read_replays(open_store(settings, prefix=spec.prefix), run_id) == []


def test_a_row_without_its_key_and_a_repeated_row_are_never_replayed(
    settings: Settings, spec: PipelineSpec
) -> None:
    def spoiled(rows: pa.Table) -> pa.Table:
        rows = with_prices({7: POISON, 50: POISON})(rows)
        names = rows.column("customer").to_pylist()
        names[3] = None
        rows = rows.set_column(0, "customer", pa.array(names, pa.string()))
        return pa.concat_tables([rows, rows.slice(50, 1)])

    run_id = score_and_publish(settings, spec, scoring_snapshot(settings, spec, days=1, change=spoiled))
    done = again(settings, spec, run_id)
    assert (done.dead_letters, done.rows_scored, done.unmatched, done.repeated) == (4, 1, 1, 2)
    assert len(set(ids(settings, spec))) == len(ids(settings, spec)) == 118


@pytest.mark.parametrize("point", REPLAY_POINTS)
def test_a_replay_killed_at_any_point_is_finished_by_the_next_and_adds_each_row_once(
    settings: Settings, spec: PipelineSpec, tmp_path: Path, point: str
) -> None:
    raise_limit(settings)
    run_id = with_dead_letters(settings, spec)
    child = start_child(settings, run_id, point, 1, script="replay_child.py")
    assert_killed(child)
    visible = 360 if point in ("after-delta-commit", "after-published-marker") else 351
    assert len(table_rows(settings, spec)) == visible, "a reader sees all of a replay or none"
    again(settings, spec, run_id)
    assert len(set(ids(settings, spec))) == len(ids(settings, spec)) == 360
    assert ids(settings, spec, "audit") == ids(settings, spec)
    assert len(read_replays(open_store(settings, prefix=spec.prefix), run_id)) == 1
    assert verify(settings, spec, run_id).ok


def raise_limit(settings: Settings) -> None:
    path = settings.pipelines_dir / "toy" / "pipeline.yaml"
    text = path.read_text()
    path.write_text(text.replace("batch_rows: 64}", "batch_rows: 64, max_dead_letter_share: 0.1}"))


def test_replays_at_the_same_time_add_each_row_once(store_settings: Settings, spec: PipelineSpec) -> None:
    run_id = with_dead_letters(store_settings, spec)

    def attempt(_: int) -> bool:
        try:
            again(store_settings, spec, run_id)
        except StaleAttempt:  # another one took the follow-up run over
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert any(pool.map(attempt, range(4)))
    again(store_settings, spec, run_id)
    found = ids(store_settings, spec)
    assert len(set(found)) == len(found) == 360
    assert len(read_replays(open_store(store_settings, prefix=spec.prefix), run_id)) == 1


def test_a_superseded_run_is_not_repaired_and_its_successor_removes_replayed_rows(
    settings: Settings, spec: PipelineSpec
) -> None:
    run_id = with_dead_letters(settings, spec)
    successor = plan_stub(settings, spec, scoring_snapshot(settings, spec), 2)
    again(settings, spec, run_id)
    run_stub(settings, spec, successor.run_id)
    publish(settings, spec, successor.run_id)
    rows = table_rows(settings, spec)
    assert ({row["run_id"] for row in rows}, len(rows)) == ({successor.run_id}, 360)
    with pytest.raises(StaleAttempt, match=f"superseded by run {successor.run_id}"):
        again(settings, spec, run_id)
    publish(settings, spec, run_id, replace_newer=True)
    rows = table_rows(settings, spec)
    assert len({row["prediction_id"] for row in rows}) == len(rows) == 360
    assert successor.run_id not in {row["run_id"] for row in rows}, "replayed rows come back with their run"
    assert verify(settings, spec, run_id).ok


def test_a_replay_that_comes_too_late_is_refused_at_its_publication(
    settings: Settings, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = with_dead_letters(settings, spec)
    successor = plan_stub(settings, spec, scoring_snapshot(settings, spec), 2)
    run_stub(settings, spec, successor.run_id)
    overtaken = overtake(lambda: publish(settings, spec, successor.run_id))
    with pytest.raises(StaleAttempt, match="superseded"):
        again(settings, spec, run_id, audit_table="test_inference_replay:overtaken_audit")
    assert overtaken
    rows = table_rows(settings, spec)
    assert ({row["run_id"] for row in rows}, len(rows)) == ({successor.run_id}, 360)


_OVERTAKE: list[Callable[[], Any]] = []


def overtake(action: Callable[[], Any]) -> list[Callable[[], Any]]:
    _OVERTAKE[:] = [action]
    return [action]


def overtaken_audit(*arguments: Any) -> pa.Table:
    """The audit table's rows; the first call lets a successor publish in between."""
    from tasks.audit import audit_table

    while _OVERTAKE:
        _OVERTAKE.pop()()
    return audit_table(*arguments)


def test_only_a_published_run_is_replayed_and_never_a_replay(settings: Settings, spec: PipelineSpec) -> None:
    snapshot: Snapshot = scoring_snapshot(settings, spec, change=with_prices(BAD))
    planned = plan_stub(settings, spec, snapshot)
    run_stub(settings, spec, planned.run_id)
    with pytest.raises(TransientError, match="not published yet"):
        again(settings, spec, planned.run_id)
    publish(settings, spec, planned.run_id)
    follow_up = again(settings, spec, planned.run_id).replay_run_id or ""
    with pytest.raises(DataError, match=f"replay 1 of run {planned.run_id}"):
        again(settings, spec, follow_up)
