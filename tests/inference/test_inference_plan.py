"""Plans: the same work is the same run, cut the same way."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference_support import DIGEST, plan_stub, run_stub, scoring_snapshot

from tasks.core import PartitionFile, PipelineSpec, Settings, open_store
from tasks.core.errors import ConfigError, DataError, FingerprintMismatch, NotFound
from tasks.inference import plan
from tasks.inference.planning import cut_shards


def partition(day: date, *groups: int) -> PartitionFile:
    return PartitionFile(day, f"data/{day}", sum(groups), 1, "x", groups)


def test_equal_work_is_the_same_run_and_the_first_plan_stays(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(store_settings, toy)
    first = plan_stub(store_settings, toy, snapshot)
    larger = toy.model_copy(update={"inference": toy.inference.model_copy(update={"shard_rows": 1000})})
    assert plan_stub(store_settings, larger, snapshot) == first
    assert first.rows == 360
    assert [shard.day.day for shard in first.shards] == [1, 1, 2, 2, 3, 3]


def test_planners_at_the_same_time_agree_on_one_plan(settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(settings, toy)
    with ThreadPoolExecutor(8) as pool:
        plans = list(pool.map(lambda _: plan_stub(settings, toy, snapshot), range(8)))
    assert len({json.dumps(item.to_json()) for item in plans}) == 1


@pytest.mark.parametrize(
    "change", [{"model_version": 2}, {"bundle_digest": "e" * 64}, {"feature_version": "2+other"}]
)
def test_another_model_bundle_or_feature_version_is_another_run(
    settings: Settings, toy: PipelineSpec, change: dict[str, object]
) -> None:
    snapshot = scoring_snapshot(settings, toy)
    pinned = {"model_version": 1, "bundle_digest": DIGEST, "feature_version": "1+stub"}
    first = plan(settings, toy, snapshot, **pinned)
    assert plan(settings, toy, snapshot, **{**pinned, **change}).run_id != first.run_id


def test_a_retry_with_another_model_is_refused_and_both_fingerprints_are_named(
    settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(settings, toy)
    first = plan_stub(settings, toy, snapshot)
    with pytest.raises(FingerprintMismatch) as caught:
        plan_stub(settings, toy, snapshot, 2, expected_run_id=first.run_id)
    second = plan_stub(settings, toy, snapshot, 2)
    text = str(caught.value)
    assert first.run_id in text
    assert second.run_id in text
    assert "model_version: 1 != 2" in text
    assert "start a new run" in text


def test_a_run_whose_pipeline_was_edited_is_refused(settings: Settings, toy: PipelineSpec) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    edited = toy.model_copy(update={"entity_key": ("customer", "city")})
    with pytest.raises(FingerprintMismatch, match="scoring_config"):
        run_stub(settings, edited, planned.run_id)


def test_a_change_of_declared_features_does_not_disturb_a_planned_run(
    settings: Settings, toy: PipelineSpec
) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    edited = toy.model_copy(update={"features": toy.features.model_copy(update={"numeric": ("price",)})})
    assert run_stub(settings, edited, planned.run_id).rows_scored == 360


def test_labels_never_enter_a_plan(settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(settings, toy)
    training = type(snapshot)(**{**snapshot.__dict__, "kind": "training"})
    with pytest.raises(DataError, match="training snapshot"):
        plan_stub(settings, toy, training)


def test_an_unplanned_run_is_not_found(settings: Settings, toy: PipelineSpec) -> None:
    with pytest.raises(NotFound, match="not a planned run"):
        run_stub(settings, toy, "0123456789abcdef")


def test_a_truncated_plan_is_a_typed_error(settings: Settings, toy: PipelineSpec) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    store = open_store(settings, prefix=toy.prefix)
    key = f"runs/{planned.run_id}/plan.json"
    store.put(key, store.get(key)[:50])
    with pytest.raises(DataError, match="not a readable plan"):
        run_stub(settings, toy, planned.run_id)


@given(
    days=st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=8), min_size=1, max_size=5),
    shard_rows=st.integers(1, 500),
)
def test_shards_cover_every_row_once_inside_one_day(days: list[list[int]], shard_rows: int) -> None:
    partitions = tuple(partition(date(2024, 1, 1 + i), *groups) for i, groups in enumerate(days))
    shards = cut_shards(partitions, shard_rows, 1 << 30)
    assert [shard.shard for shard in shards] == list(range(len(shards)))
    for index, item in enumerate(partitions):
        own = [shard for shard in shards if shard.partition == index]
        assert {shard.day for shard in own} == {item.day}
        assert own[0].row_start == 0
        assert own[-1].row_stop == item.rows
        assert all(a.row_stop == b.row_start for a, b in pairwise(own))
        for shard in own:
            assert 0 < shard.rows <= shard_rows
            first = sum(item.row_group_rows[: shard.row_groups[0]])
            last = sum(item.row_group_rows[: shard.row_groups[-1] + 1])
            assert first + shard.skip_rows == shard.row_start
            assert shard.row_stop <= last
            assert 0 <= shard.skip_rows < item.row_group_rows[shard.row_groups[0]]


def test_cuts_fall_between_row_groups_where_they_can() -> None:
    shards = cut_shards((partition(date(2024, 1, 1), 60, 60, 60, 60),), 130, 1 << 30)
    assert [(shard.row_start, shard.row_stop, shard.row_groups) for shard in shards] == [
        (0, 120, (0, 1)),
        (120, 240, (2, 3)),
    ]


def test_wide_rows_make_shards_of_fewer_rows() -> None:
    wide = dataclasses.replace(partition(date(2024, 1, 1), 60, 60, 60, 60), size_bytes=240 * 1000)
    assert [shard.rows for shard in cut_shards((wide,), 1000, 130_000)] == [120, 120]
    assert [shard.rows for shard in cut_shards((wide,), 1000, 30_000)] == [30] * 8
    assert [shard.rows for shard in cut_shards((wide,), 1000, 1)] == [1] * 240, "a row is never cut"
    with pytest.raises(ConfigError, match=r"inference\.shard_bytes"):
        cut_shards((wide,), 1000, 0)
