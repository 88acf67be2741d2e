"""Merging small files changes no row, keeps runs and days apart, and survives crashes, races and upkeep."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from children import assert_killed
from inference_support import (
    FIRST_DAY,
    POISON,
    plan_stub,
    run_stub,
    score_and_publish,
    scoring_snapshot,
    set_store_clock,
    table_rows,
    with_prices,
)
from test_inference_crashes import start_child

from tasks.core import ObjectStore, PipelineSpec, Settings, open_store
from tasks.core.crash_points import POINTS, observe
from tasks.core.delta import FileName, TableView, table_view
from tasks.core.errors import DigestMismatch, NotFound, TransientError
from tasks.core.holds import place_hold, release_hold
from tasks.core.object_store import store_now
from tasks.core.table_files import statistics
from tasks.inference import (
    optimize,
    optimizing,
    publish,
    published_days,
    published_records,
    read_predictions,
    replay,
    sweep_orphans,
    vacuum,
    verify,
)
from tasks.inference.records import (
    AUDIT,
    PREDICTIONS,
    read_merge_record,
    read_shard_records,
    shard_key,
)

OPTIMIZE_POINTS = [point for point in POINTS if "optimize" in point]
BOTH = (PREDICTIONS, AUDIT)


def late(rows: pa.Table) -> pa.Table:
    """The second half of each day falls into the next UTC date."""
    at = rows.schema.get_field_index("asked_at")
    moved = [moment.as_py() + timedelta(hours=12) for moment in rows.column("asked_at")]
    return rows.set_column(at, "asked_at", pa.array(moved, rows.schema.field("asked_at").type))


def tables(settings: Settings, spec: PipelineSpec) -> dict[str, list[dict[str, Any]]]:
    return {name: table_rows(settings, spec, name) for name in ("predictions", "audit")}


def view_of(settings: Settings, spec: PipelineSpec, folder: str = PREDICTIONS) -> TableView:
    view = table_view(open_store(settings, prefix=spec.prefix), folder)
    assert view is not None
    return view


def parquet_keys(store: ObjectStore) -> set[str]:
    keys = {info.key for info in store.list("tables") if info.key.endswith(".parquet")}
    return {key for key in keys if "_delta_log" not in key}


def months_later() -> datetime:
    return datetime.now(UTC) + timedelta(days=60)


def delete_let_go(settings: Settings, spec: PipelineSpec) -> None:
    """What `vacuum` does once the files are old enough."""
    store = open_store(settings, prefix=spec.prefix)
    for folder in BOTH:
        view = view_of(settings, spec, folder)
        for path in view.let_go - {file.path for file in view.files}:
            store.delete(f"{folder}/{path}")


def test_small_files_become_one_for_each_run_day_and_date_and_no_row_changes(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    spec = toy.model_copy(update={"inference": toy.inference.model_copy(update={"shard_rows": 20})})
    run_id = score_and_publish(store_settings, spec, scoring_snapshot(store_settings, toy, change=late))
    before = tables(store_settings, toy)
    small = len(view_of(store_settings, toy).files)
    done = optimize(store_settings, toy)
    assert (done.merged_files, done.rows, done.transactions) == (2 * small, 720, 2)
    assert done.bytes_after is not None and done.bytes_after < done.bytes_before
    assert tables(store_settings, toy) == before
    for folder in BOTH:
        names = [file.name for file in view_of(store_settings, toy, folder).files]
        assert all(name is not None and name.merged and name.run_id == run_id for name in names)
        days = [(name.day, name.event_date) for name in names if name]
        first = [FIRST_DAY + timedelta(days=i) for i in range(3)]
        assert days == sorted(
            [(d, d + timedelta(days=i)) for d in first for i in (0, 1)], key=lambda x: x[::-1]
        )
    assert done.written_files == 12
    found = verify(store_settings, toy, run_id)
    assert (found.problems, found.distinct_prediction_ids, found.files_checked) == ((), 360, 6)


def test_a_merged_file_is_as_if_it_had_been_written_at_once(settings: Settings, toy: PipelineSpec) -> None:
    run_id = score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    store = open_store(settings, prefix=toy.prefix)
    record = read_shard_records(store, run_id, [0])[0]
    one = {
        PREDICTIONS: pq.ParquetFile(io.BytesIO(store.get(f"{PREDICTIONS}/{record.files[0].path}"))),
        AUDIT: pq.ParquetFile(io.BytesIO(store.get(f"{AUDIT}/{record.audit_files[0].path}"))),
    }
    optimize(settings, toy)
    for folder in BOTH:
        (live,) = view_of(settings, toy, folder).files
        merged = pq.ParquetFile(io.BytesIO(store.get(f"{folder}/{live.path}")))
        assert merged.schema_arrow.equals(one[folder].schema_arrow, check_metadata=True)
        rows = merged.read()
        ids = rows.column("prediction_id").to_pylist()
        assert ids == sorted(ids) and len(set(ids)) == 120
        split: list[str] = []
        for column in range(merged.metadata.num_columns):
            mine = merged.metadata.row_group(0).column(column)
            theirs = one[folder].metadata.row_group(0).column(column)
            assert (mine.path_in_schema, mine.compression) == (theirs.path_in_schema, theirs.compression)
            if "BYTE_STREAM_SPLIT" in theirs.encodings:
                split.append(mine.path_in_schema)
                assert "BYTE_STREAM_SPLIT" in mine.encodings, mine.path_in_schema
        assert bool(split) == (folder == AUDIT), "the audit table's lists of floats are split"
        name = live.name
        assert name is not None
        kept = read_merge_record(store, run_id, name.attempt)
        assert kept is not None
        assert kept.merges[0].output.stats == statistics(rows)
        assert (live.first_id, live.last_id, live.rows) == (ids[0], ids[-1], 120)


def test_files_are_merged_up_to_the_target_size_and_large_ones_are_left_alone(
    settings: Settings, toy: PipelineSpec
) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    sizes = [file.size_bytes for file in view_of(settings, toy).files]
    audit_sizes = [file.size_bytes for file in view_of(settings, toy, AUDIT).files]
    assert optimize(settings, toy, target_bytes=2 * min(*sizes, *audit_sizes)).merged_files == 0
    assert [file.size_bytes for file in view_of(settings, toy).files] == sizes
    small = toy.model_copy(update={"inference": toy.inference.model_copy(update={"shard_rows": 10})})
    planned = plan_stub(
        settings, small, scoring_snapshot(settings, small, first_day=date(2024, 4, 1), days=1)
    )
    run_stub(settings, small, planned.run_id)
    publish(settings, small, planned.run_id)
    mine = [f.size_bytes for f in view_of(settings, toy).files if f.event_date == date(2024, 4, 1)]
    assert len(mine) == 12
    optimize(settings, toy, target_bytes=4 * max(mine))
    merged = [f for f in view_of(settings, toy).files if f.event_date == date(2024, 4, 1)]
    assert 3 <= len(merged) < 12
    assert all(a.last_id < b.first_id for a, b in zip(
        sorted(merged, key=lambda f: f.first_id), sorted(merged, key=lambda f: f.first_id)[1:], strict=False
    )), "neighbours share a file"  # fmt: skip


def test_merging_again_writes_nothing(store_settings: Settings, toy: PipelineSpec) -> None:
    score_and_publish(store_settings, toy, scoring_snapshot(store_settings, toy))
    optimize(store_settings, toy)
    store = open_store(store_settings, prefix=toy.prefix)
    before = {info.key for info in store.list()}
    again = optimize(store_settings, toy)
    assert (again.merged_files, again.written_files, again.transactions) == (0, 0, 0)
    assert {info.key for info in store.list()} == before


def test_a_dry_run_tells_and_changes_nothing(settings: Settings, toy: PipelineSpec) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    store = open_store(settings, prefix=toy.prefix)
    before = {info.key for info in store.list()}
    told = optimize(settings, toy, dry_run=True)
    assert {info.key for info in store.list()} == before
    done = optimize(settings, toy)
    assert (told.merged_files, told.written_files, told.rows, told.bytes_before, told.transactions) == (
        done.merged_files,
        done.written_files,
        done.rows,
        done.bytes_before,
        done.transactions,
    )


def test_the_transaction_says_that_no_data_changed(settings: Settings, toy: PipelineSpec) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    optimize(settings, toy)
    store = open_store(settings, prefix=toy.prefix)
    logged = store.get(f"{PREDICTIONS}/_delta_log/{view_of(settings, toy).version:020d}.json").decode()
    actions = [json.loads(line) for line in logged.splitlines()]
    changes = [
        (a.get("add") or a.get("remove"))["dataChange"] for a in actions if "add" in a or "remove" in a
    ]
    assert changes == [False] * (6 + 3)


def test_runs_stay_apart_so_a_later_run_supersedes_merged_files(
    settings: Settings, toy: PipelineSpec
) -> None:
    first = score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    optimize(settings, toy)
    second = score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=2), version=2)
    days = {FIRST_DAY + timedelta(days=i): run for i, run in enumerate((second, second, first))}
    assert published_days(settings, toy) == days
    assert len(table_rows(settings, toy)) == 360
    optimize(settings, toy)
    assert published_days(settings, toy) == days
    for run in (first, second):
        found = verify(settings, toy, run)
        assert found.ok, found.problems
    assert verify(settings, toy, first).superseded_by == (second,)


def test_an_earlier_run_comes_back_after_its_small_files_were_merged_and_vacuumed(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(store_settings, toy)
    first = score_and_publish(store_settings, toy, snapshot)
    before = table_rows(store_settings, toy)
    optimize(store_settings, toy)
    delete_let_go(store_settings, toy)  # the small files
    second = score_and_publish(store_settings, toy, snapshot, version=2)
    publish(store_settings, toy, first, replace_newer=True)
    assert table_rows(store_settings, toy) == before
    assert verify(store_settings, toy, first).ok
    assert verify(store_settings, toy, second).superseded_by == (first,)
    version = view_of(store_settings, toy).version
    publish(store_settings, toy, first, replace_newer=True)
    assert view_of(store_settings, toy).version == version, "it is there already"


def test_an_earlier_run_whose_files_are_all_gone_is_refused_by_name(
    settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(settings, toy)
    first = score_and_publish(settings, toy, snapshot)
    optimize(settings, toy)
    score_and_publish(settings, toy, snapshot, version=2)
    delete_let_go(settings, toy)
    before = table_rows(settings, toy)
    with pytest.raises(NotFound, match="gone or have another size") as caught:
        publish(settings, toy, first, replace_newer=True)
    assert "vacuum" in caught.value.fix and first in caught.value.which
    assert table_rows(settings, toy) == before


def test_dead_letters_of_a_merged_run_are_replayed_and_come_back_with_it(
    settings: Settings, toy: PipelineSpec
) -> None:
    spec = toy.model_copy(
        update={"inference": toy.inference.model_copy(update={"max_dead_letter_share": 0.1})}
    )
    snapshot = scoring_snapshot(settings, spec, change=with_prices({3: POISON}))
    run_id = score_and_publish(settings, spec, snapshot)
    optimize(settings, spec)
    delete_let_go(settings, spec)
    done = replay(
        settings, spec, run_id, local=True, audit_table=None, load_model="test_inference_replay:load_healed"
    )
    assert (done.rows_scored, done.dead_letters_left) == (3, 0)
    before = table_rows(settings, spec)
    optimize(settings, spec)
    assert table_rows(settings, spec) == before and len(before) == 360
    score_and_publish(settings, spec, scoring_snapshot(settings, spec), version=2)
    publish(settings, spec, run_id, replace_newer=True)
    assert table_rows(settings, spec) == before
    assert verify(settings, spec, run_id).ok


def test_readers_of_days_and_profiles_see_merged_runs_as_before(
    settings: Settings, toy: PipelineSpec
) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    day = [date(2024, 3, 2)]
    records = published_records(settings, toy, day)
    rows = read_predictions(settings, toy, day).sort_by("prediction_id")
    optimize(settings, toy)
    assert published_records(settings, toy, day) == records and len(records) == 2
    assert read_predictions(settings, toy, day).equals(rows)


def test_a_reader_of_the_version_before_goes_on(settings: Settings, toy: PipelineSpec) -> None:
    from deltalake import DeltaTable

    score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    reader = DeltaTable(open_store(settings, prefix=toy.prefix).url(PREDICTIONS))
    optimize(settings, toy)
    assert vacuum(settings, toy).files == 0
    assert reader.to_pyarrow_table().num_rows == 360


@pytest.mark.parametrize("point", OPTIMIZE_POINTS)
def test_a_merge_killed_at_any_point_changes_no_row_and_the_next_upkeep_finishes_it(
    settings: Settings, toy: PipelineSpec, point: str
) -> None:
    run_id = score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    before = tables(settings, toy)
    child = start_child(settings, "-", point, 2, script="optimize_child.py")
    assert_killed(child)
    assert tables(settings, toy) == before
    assert verify(settings, toy, run_id).ok
    store = open_store(settings, prefix=toy.prefix)
    optimize(settings, toy)
    swept = sweep_orphans(settings, toy, older_than=timedelta(hours=2), clock=months_later)
    assert (swept.data_files > 0) == (point not in ("after-optimize-commit",)), "what the dead one left"
    assert tables(settings, toy) == before
    found = verify(settings, toy, run_id)
    assert found.ok, found.problems
    accounted = {
        f"{folder}/{path}"
        for folder in BOTH
        for view in [view_of(settings, toy, folder)]
        for path in {file.path for file in view.files} | view.let_go
    }
    assert parquet_keys(store) == accounted, "no orphan is left, and nothing that a reader may need is gone"
    records = [info.key for info in store.list(f"runs/{run_id}/merges")]
    assert len(records) == 2, "records of what was never committed are gone too"


@pytest.mark.s3
def test_a_merge_killed_on_s3_is_finished_by_the_next(
    s3_url: str, settings: Settings, toy: PipelineSpec
) -> None:
    import dataclasses

    import s3_endpoint

    remote = dataclasses.replace(settings, store_url=s3_endpoint.fresh_store_url(), s3_endpoint=s3_url)
    run_id = score_and_publish(remote, toy, scoring_snapshot(remote, toy))
    before = tables(remote, toy)
    child = start_child(remote, "-", "before-optimize-commit", 2, script="optimize_child.py")
    assert_killed(child)
    optimize(remote, toy)
    assert sweep_orphans(remote, toy, older_than=timedelta(hours=2), clock=months_later).data_files == 3
    assert tables(remote, toy) == before
    assert verify(remote, toy, run_id).ok


def test_merges_at_once_leave_each_row_once_and_no_orphan(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    run_id = score_and_publish(store_settings, toy, scoring_snapshot(store_settings, toy))
    before = tables(store_settings, toy)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: optimize(store_settings, toy), range(3)))
    assert sum(one.merged_files for one in done) == 12
    assert tables(store_settings, toy) == before
    assert verify(store_settings, toy, run_id).ok
    assert (
        sweep_orphans(store_settings, toy, older_than=timedelta(hours=2), clock=months_later).data_files == 0
    )


def at_point(name: str, action: Any) -> None:
    """Do something once, when the protocol reaches that point."""
    done = []

    def look(reached: str) -> None:
        if reached == name and not done:
            done.append(reached)
            action()

    observe(look)


def test_a_run_published_while_its_predecessor_is_merged_supersedes_it(
    settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(settings, toy)
    first = score_and_publish(settings, toy, snapshot)
    second = plan_stub(settings, toy, snapshot, 2).run_id
    run_stub(settings, toy, second)
    points = iter(["skip the audit table's"])

    def overtake() -> None:
        publish(settings, toy, second)

    def look(reached: str) -> None:
        if reached == "before-optimize-commit" and next(points, None) is None:
            observe(None)
            overtake()

    observe(look)
    try:
        done = optimize(settings, toy)
    finally:
        observe(None)
    assert done.overtaken_files == 6
    assert {row["run_id"] for row in table_rows(settings, toy)} == {second}
    assert len(table_rows(settings, toy)) == 360
    for run in (first, second):
        assert verify(settings, toy, run).ok
    merged = [key for key in parquet_keys(open_store(settings, prefix=toy.prefix)) if "_c-" in key]
    assert all(key.startswith(AUDIT) for key in merged), "files that were merged in vain are deleted at once"


@pytest.mark.parametrize("hours", [0, 10])
def test_a_merge_that_a_sweep_condemned_does_not_commit(
    settings: Settings, toy: PipelineSpec, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merge's process is paused right before its commit, for so long that the sweep takes its files.

    Its clock is `hours` ahead of the store's, and stands still meanwhile, as that of a suspended machine.
    """
    set_store_clock(monkeypatch, -timedelta(hours=hours))
    run_id = score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    before = tables(settings, toy)
    swept = []

    def sweep() -> None:
        later = store_now(open_store(settings)) + timedelta(hours=3)
        swept.append(sweep_orphans(settings, toy, older_than=timedelta(hours=2), clock=lambda: later))

    at_point("before-optimize-commit", sweep)
    try:
        with pytest.raises(TransientError, match="condemned"):
            optimize(settings, toy)
    finally:
        observe(None)
    assert swept[0].data_files == 3
    assert tables(settings, toy) == before
    assert verify(settings, toy, run_id).ok


def test_a_merge_that_took_too_long_does_not_commit(settings: Settings, toy: PipelineSpec) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    moments = iter([datetime.now(UTC) + timedelta(hours=i) for i in range(9)])
    before = parquet_keys(open_store(settings, prefix=toy.prefix))
    with pytest.raises(TransientError, match="shard_timeout_s"):
        optimize(settings, toy, clock=lambda: next(moments))
    assert parquet_keys(open_store(settings, prefix=toy.prefix)) == before, "it deletes what it wrote"


def test_a_damaged_file_is_named_and_the_other_days_are_merged(settings: Settings, toy: PipelineSpec) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    store = open_store(settings, prefix=toy.prefix)
    bad = f"{PREDICTIONS}/{view_of(settings, toy).files[0].path}"
    data = bytearray(store.get(bad))
    data[len(data) // 2] ^= 1
    store.put(bad, bytes(data))
    with pytest.raises(DigestMismatch, match="left alone") as caught:
        optimize(settings, toy)
    assert bad in caught.value.which
    names = [file.name for file in view_of(settings, toy).files]
    assert [name.merged for name in names if name] == [False, False, True, True]


def test_verify_sees_a_damaged_merged_file_and_one_that_no_record_accounts_for(
    settings: Settings, toy: PipelineSpec
) -> None:
    run_id = score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    optimize(settings, toy)
    store = open_store(settings, prefix=toy.prefix)
    key = f"{PREDICTIONS}/{view_of(settings, toy).files[1].path}"
    sound = store.get(key)
    data = bytearray(sound)
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    assert any("damaged" in problem for problem in verify(settings, toy, run_id).problems)
    store.put(key, sound)
    assert verify(settings, toy, run_id).ok
    for info in list(store.list(f"runs/{run_id}/merges")):
        store.delete(info.key)
    delete_let_go(settings, toy)
    problems = verify(settings, toy, run_id).problems
    assert any("no record accounts for" in problem for problem in problems)
    assert any("is gone" in problem for problem in problems)


def test_verify_sees_a_merge_that_lost_a_row(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a faulty merge would leave it: file, record and table agree with each other."""
    run_id = score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    write = optimizing.write_table_file
    monkeypatch.setattr(
        optimizing,
        "write_table_file",
        lambda store, folder, name, table, **more: write(store, folder, name, table.slice(1), **more),
    )
    optimize(settings, toy)
    assert len(table_rows(settings, toy)) == 119
    assert verify(settings, toy, run_id).problems == (
        "shard records list 120 rows, the files merged from theirs 119",
        "shard records list 120 audit rows, the files merged from theirs 119",
    )


def test_a_shard_that_was_scored_again_is_not_taken_for_what_was_merged(
    settings: Settings, toy: PipelineSpec
) -> None:
    """The documented repair: a record is deleted, its shard is scored again, the run published with its new file."""
    snapshot = scoring_snapshot(settings, toy)
    first = plan_stub(settings, toy, snapshot).run_id
    run_stub(settings, toy, first, audit_table=None)
    publish(settings, toy, first)
    optimize(settings, toy)
    score_and_publish(settings, toy, snapshot, version=2)
    store = open_store(settings, prefix=toy.prefix)
    store.delete(f"runs/{first}/shard-00000.json")
    run_stub(settings, toy, first, audit_table=None)
    publish(settings, toy, first, replace_newer=True)
    rows = table_rows(settings, toy)
    assert len({row["prediction_id"] for row in rows}) == len(rows) == 360
    found = verify(settings, toy, first)
    assert found.ok, found.problems


def test_vacuum_deletes_merged_inputs_once_they_are_old(settings: Settings, toy: PipelineSpec) -> None:
    run_id = score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    before = tables(settings, toy)
    optimize(settings, toy)
    age_tombstones(settings, toy, days=8)
    told = vacuum(settings, toy, dry_run=True)
    assert (told.files, told.held_files) == (12, 0) and told.size_bytes > 0
    assert vacuum(settings, toy).files == 12
    assert vacuum(settings, toy).files == 0
    assert tables(settings, toy) == before
    assert verify(settings, toy, run_id).ok
    assert len(parquet_keys(open_store(settings, prefix=toy.prefix))) == 6


def age_tombstones(settings: Settings, spec: PipelineSpec, *, days: int) -> None:
    """Make the tables' logs say that files were let go so long ago."""
    store = open_store(settings, prefix=spec.prefix)
    for info in list(store.list("tables")):
        if "_delta_log" not in info.key or not info.key.endswith(".json"):
            continue
        actions = [json.loads(line) for line in store.get(info.key).decode().splitlines()]
        for action in actions:
            if "remove" in action:
                action["remove"]["deletionTimestamp"] -= days * 86_400_000
        store.put(info.key, "\n".join(json.dumps(action) for action in actions).encode())


def forget_tombstones(settings: Settings, spec: PipelineSpec) -> None:
    """A checkpoint a week later: the logs hold no word of what was let go before."""
    from deltalake import DeltaTable

    age_tombstones(settings, spec, days=8)
    store = open_store(settings, prefix=spec.prefix)
    for folder in BOTH:
        DeltaTable(store.url(folder)).create_checkpoint()
        assert view_of(settings, spec, folder).let_go == frozenset()


def test_vacuum_finds_what_the_log_has_forgotten(settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(settings, toy)
    first = score_and_publish(settings, toy, snapshot)
    optimize(settings, toy)
    second = score_and_publish(settings, toy, snapshot, version=2)
    waiting = plan_stub(settings, toy, snapshot, 3).run_id
    run_stub(settings, toy, waiting)
    store = open_store(settings, prefix=toy.prefix)
    store.delete(shard_key(second, 0))
    run_stub(settings, toy, second)  # a repair under way: its new files wait for the next publication
    repaired = {f"{PREDICTIONS}/{file.path}" for file in read_shard_records(store, second, [0])[0].files}
    forget_tombstones(settings, toy)
    assert vacuum(settings, toy).files == 0, "nothing is old enough by its age"
    before = tables(settings, toy)
    keys = parquet_keys(store)
    gone = vacuum(settings, toy, clock=months_later)
    assert gone.files == 6 + 6, "the first run's small files, of both tables"
    assert {name for key in keys - parquet_keys(store) if (name := key.split("/")[3].split("_")[0])} == {
        first
    }
    assert repaired <= parquet_keys(store)
    assert tables(settings, toy) == before
    publish(settings, toy, waiting)
    assert verify(settings, toy, waiting).ok


def test_held_files_outlive_the_log_s_memory_and_go_after_the_release(
    settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(settings, toy)
    score_and_publish(settings, toy, snapshot)
    optimize(settings, toy)
    score_and_publish(settings, toy, snapshot, version=2)
    store = open_store(settings, prefix=toy.prefix)
    held = place_hold(
        store, first_day=FIRST_DAY, last_day=date(2024, 3, 3), reason="complaint 12", actor="ada"
    )
    before = parquet_keys(store)
    forget_tombstones(settings, toy)

    def upkeep() -> None:
        sweep_orphans(settings, toy, older_than=timedelta(hours=2), clock=months_later)
        vacuum(settings, toy, clock=months_later)

    upkeep()
    assert parquet_keys(store) == before
    release_hold(store, held.hold_id, reason="settled", actor="bob")
    upkeep()
    live = {f"{folder}/{file.path}" for folder in BOTH for file in view_of(settings, toy, folder).files}
    assert parquet_keys(store) == live


def test_held_days_are_neither_merged_nor_vacuumed_until_they_are_released(
    settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(settings, toy)
    score_and_publish(settings, toy, snapshot)
    score_and_publish(settings, toy, snapshot, version=2)
    age_tombstones(settings, toy, days=8)
    store = open_store(settings, prefix=toy.prefix)
    held = place_hold(
        store, first_day=date(2024, 3, 2), last_day=date(2024, 3, 2), reason="complaint 12", actor="ada"
    )
    mine = {key for key in parquet_keys(store) if "event_date=2024-03-02" in key}
    gone = vacuum(settings, toy)
    assert (gone.files, gone.held_files) == (4, 2)
    done = optimize(settings, toy)
    assert (done.held_files, done.written_files) == (2 + 4, 2 + 4)
    assert {key for key in parquet_keys(store) if "event_date=2024-03-02" in key} == mine
    release_hold(store, held.hold_id, reason="settled", actor="bob")
    assert vacuum(settings, toy).files == 2
    assert optimize(settings, toy).written_files == 3


def test_a_hold_placed_while_files_are_merged_is_respected(settings: Settings, toy: PipelineSpec) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    store = open_store(settings, prefix=toy.prefix)
    day = date(2024, 3, 2)
    at_point(
        "after-optimize-record",
        lambda: place_hold(store, first_day=day, last_day=day, reason="complaint 12", actor="ada"),
    )
    try:
        optimize(settings, toy)
    finally:
        observe(None)
    for folder in BOTH:
        files = view_of(settings, toy, folder).files
        assert [f.name.merged for f in files if f.name and f.event_date == day] == [False, False]
        assert [f.name.merged for f in files if f.name and f.event_date != day] == [True, True]
    assert len([key for key in parquet_keys(store) if "_c-" in key]) == 4


def test_names_of_merged_files_say_run_day_and_that_they_are_merged() -> None:
    path = "event_date=2024-03-01/0123456789abcdef_2024-02-29_00007_c-00ff.parquet"
    name = FileName.parse(path)
    assert name is not None and name.merged and str(name) == path
    assert not FileName(name.event_date, name.run_id, name.day, 7, "a0001-00ff").merged
