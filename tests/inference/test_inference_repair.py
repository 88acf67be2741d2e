"""The documented repair of a published run: delete a shard's record, score it again, publish with `replace_newer`."""

from __future__ import annotations

from collections import Counter
from datetime import date

import pytest
from inference_support import (
    FIRST_DAY,
    POISON,
    plan_stub,
    run_stub,
    score_and_publish,
    scoring_snapshot,
    table_rows,
    with_prices,
)
from test_inference_replay import HEALED, again

from tasks.audit import retain
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.crash_points import observe
from tasks.core.delta import table_view
from tasks.inference import optimize, publish, verify
from tasks.inference.records import AUDIT, PREDICTIONS, read_replays, read_shard_record, shard_key


def score_again(settings: Settings, spec: PipelineSpec, run_id: str, shard: int, **more: str) -> None:
    store = open_store(settings, prefix=spec.prefix)
    old = read_shard_record(store, run_id, shard)
    store.delete(shard_key(run_id, shard))
    run_stub(settings, spec, run_id, **more)
    new = read_shard_record(store, run_id, shard)
    assert old is not None
    assert new is not None
    assert old.attempt != new.attempt


def versions(settings: Settings, spec: PipelineSpec) -> list[int]:
    store = open_store(settings, prefix=spec.prefix)
    views = [table_view(store, folder) for folder in (PREDICTIONS, AUDIT)]
    return [view.version for view in views if view is not None]


def assert_whole(settings: Settings, spec: PipelineSpec, run_id: str, rows: int = 360) -> None:
    """Both tables hold each row of the run once, in the files that its records name, and the run verifies."""
    for table in ("predictions", "audit"):
        ids = [row["prediction_id"] for row in table_rows(settings, spec, table) if row["run_id"] == run_id]
        assert len(set(ids)) == len(ids) == rows, table
    found = verify(settings, spec, run_id)
    assert found.ok, found.problems
    assert not found.superseded_by


@pytest.mark.parametrize("merged", [False, True], ids=["", "merged"])
def test_a_repaired_run_holds_its_new_files_in_both_tables_and_verifies(
    store_settings: Settings, toy: PipelineSpec, merged: bool
) -> None:
    run_id = score_and_publish(store_settings, toy, scoring_snapshot(store_settings, toy))
    before = {name: table_rows(store_settings, toy, name) for name in ("predictions", "audit")}
    if merged:
        optimize(store_settings, toy)
    score_again(store_settings, toy, run_id, 0)
    assert not verify(store_settings, toy, run_id).ok, "until it is published"
    publish(store_settings, toy, run_id, replace_newer=True)
    assert_whole(store_settings, toy, run_id)
    assert {name: table_rows(store_settings, toy, name) for name in before} == before
    at = versions(store_settings, toy)
    publish(store_settings, toy, run_id, replace_newer=True)
    assert versions(store_settings, toy) == at, "once more changes nothing"


def test_a_repair_of_a_superseded_run_leaves_its_successors_audit_rows(
    settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(settings, toy)
    first = score_and_publish(settings, toy, snapshot)
    second = score_and_publish(settings, toy, snapshot, version=2)
    score_again(settings, toy, first, 3)
    publish(settings, toy, first, replace_newer=True)
    assert_whole(settings, toy, first)
    assert verify(settings, toy, second).ok
    assert Counter(row["run_id"] for row in table_rows(settings, toy, "audit")) == {first: 360, second: 360}


@pytest.mark.parametrize("point", ["before-audit-commit", "after-audit-commit", "after-delta-commit"])
def test_a_repair_that_stopped_between_its_transactions_is_finished_by_the_same_call(
    settings: Settings, toy: PipelineSpec, point: str
) -> None:
    run_id = score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    score_again(settings, toy, run_id, 5)

    def stop(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    observe(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            publish(settings, toy, run_id, replace_newer=True)
    finally:
        observe(None)
    publish(settings, toy, run_id, replace_newer=True)
    assert_whole(settings, toy, run_id)


def test_a_repair_repeats_no_audit_row_of_a_date_in_the_archive(
    settings: Settings, toy: PipelineSpec
) -> None:
    run_id = score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    retain(settings, toy, as_of=date(2024, 3, 4), warm_days=1, expire_days=1000)
    left = table_rows(settings, toy, "audit")
    assert 0 < len(left) < 360
    for shard in (0, 5):
        score_again(settings, toy, run_id, shard)
    publish(settings, toy, run_id, replace_newer=True)
    assert table_rows(settings, toy, "audit") == left
    assert len(table_rows(settings, toy)) == 360
    found = verify(settings, toy, run_id)
    assert found.ok, found.problems


def test_a_shard_of_a_replay_is_repaired_in_the_same_way(settings: Settings, toy: PipelineSpec) -> None:
    spec = toy.model_copy(
        update={"inference": toy.inference.model_copy(update={"max_dead_letter_share": 0.1})}
    )
    bad = with_prices({7: POISON, 70: POISON, 99: POISON})
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec, first_day=FIRST_DAY, change=bad))
    run_stub(settings, spec, planned.run_id)
    publish(settings, spec, planned.run_id)
    again(settings, spec, planned.run_id)
    replayed = read_replays(open_store(settings, prefix=spec.prefix), planned.run_id)[0].run_id
    score_again(settings, spec, replayed, 0, load_model=HEALED)
    assert not verify(settings, spec, replayed).ok
    publish(settings, spec, replayed, replace_newer=True)
    assert_whole(settings, spec, replayed, rows=9)
    assert_whole(settings, spec, planned.run_id, rows=351)
