"""Score, commit, publish, verify: the protocol on whole runs."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from itertools import permutations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from children import SERVED
from inference_support import (
    AUDIT,
    NOT_A_NUMBER,
    POISON,
    STUB,
    plan_stub,
    run_stub,
    score_and_publish,
    scoring_snapshot,
    table_rows,
    toy_rows,
    with_prices,
)

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.crash_points import observe
from tasks.core.errors import (
    CommitOutcomeUnknown,
    ConfigError,
    DataError,
    NotFound,
    PenstockError,
    StaleAttempt,
    StoreUnavailable,
    TransientError,
)
from tasks.core.object_store import LocalStore
from tasks.core.rows import prediction_ids
from tasks.core.sampling import one_of_each
from tasks.inference import (
    publish,
    published_days,
    published_records,
    read_predictions,
    status,
    sweep_orphans,
    vacuum,
    verify,
)
from tasks.inference.commit import take_token
from tasks.inference.records import read_shard_record, shard_key
from tasks.inference.shard import ShardWorker


def test_every_source_row_becomes_one_prediction(store_settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(store_settings, toy)
    run_id = score_and_publish(store_settings, toy, snapshot)
    rows = table_rows(store_settings, toy)
    from inference_support import FIRST_DAY, toy_rows

    source = [
        item
        for i in range(3)
        for item in prediction_ids(toy_rows(store_settings, FIRST_DAY + timedelta(days=i)), toy)
    ]
    assert [row["prediction_id"] for row in rows] == sorted(source)
    assert {row["run_id"] for row in rows} == {run_id}
    assert {row["customer"] for row in rows} == {row["entity_id"] for row in rows}
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert [row["prediction_id"] for row in table_rows(store_settings, toy, "audit")] == sorted(source)
    found = verify(store_settings, toy, run_id)
    assert found.ok, found.problems
    assert (found.distinct_prediction_ids, found.scored_rows, found.published) == (360, 360, True)


def test_how_many_rows_are_counted_as_one_follows_from_the_day_and_not_from_its_shards(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.core.sampling.LEAST_COUNTED", 25)
    monkeypatch.setattr("tasks.core.sampling._LEAST_COUNTED_AMONG", 5)
    small = {
        "drift": toy.drift.model_copy(update={"min_rows": 10}),
        "inference": toy.inference.model_copy(update={"shard_rows": 50}),
    }
    spec = toy.model_copy(update=small)
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec, days=1))
    run_stub(settings, spec, planned.run_id)
    store = open_store(settings, prefix=spec.prefix)
    records = [read_shard_record(store, planned.run_id, shard.shard) for shard in planned.shards]
    profiles = [record.profile for record in records if record and record.profile]
    assert [profile["rows"] for profile in profiles] == [shard.rows for shard in planned.shards]
    assert len(profiles) > 1 and planned.rows == 120
    assert {profile["one_of"] for profile in profiles} == {4}


@pytest.mark.parametrize("least_taken", [1, 1_000])
@pytest.mark.parametrize("batch_rows", [7, 1_000])
def test_rows_are_counted_by_their_place_in_the_shard_whatever_fails_and_however_batches_are_cut(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch, batch_rows: int, least_taken: int
) -> None:
    monkeypatch.setattr("tasks.inference.scoring._LEAST_TAKEN", least_taken)
    monkeypatch.setattr("tasks.core.sampling.LEAST_COUNTED", 25)
    monkeypatch.setattr("tasks.core.sampling._LEAST_COUNTED_AMONG", 5)
    fields = {"shard_rows": 120, "batch_rows": batch_rows, "max_dead_letter_share": 0.1}
    spec = toy.model_copy(
        update={
            "drift": toy.drift.model_copy(update={"min_rows": 10}),
            "inference": toy.inference.model_copy(update=fields),
        }
    )
    counted = one_of_each(120, 4)
    first, second, uncounted = int(counted[3]), int(counted[20]), int(counted[9]) + 1
    assert uncounted not in counted
    bad = {first: POISON, second: NOT_A_NUMBER, uncounted: NOT_A_NUMBER}
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec, days=1, change=with_prices(bad)))
    assert [shard.rows for shard in planned.shards] == [120]
    run_stub(settings, spec, planned.run_id)
    record = read_shard_record(open_store(settings, prefix=spec.prefix), planned.run_id, 0)
    assert record is not None and record.profile is not None
    scored = [row for row in range(120) if row not in bad]
    assert record.profile["rows"] == len(scored) == 117
    assert [scored[place] for place in record.profile["places"]] == [
        row for row in counted.tolist() if row not in bad
    ]


def test_files_are_sorted_by_prediction_id_and_split_by_utc_date(
    settings: Settings, toy: PipelineSpec
) -> None:
    def late(rows: pa.Table) -> pa.Table:  # the second half of a day falls into the next UTC date
        at = rows.schema.get_field_index("asked_at")
        shifted = [t.as_py() + timedelta(hours=12) for t in rows.column("asked_at")]
        return rows.set_column(at, "asked_at", pa.array(shifted, rows.schema.field("asked_at").type))

    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1, change=late))
    run_stub(settings, toy, planned.run_id)
    store = open_store(settings, prefix=toy.prefix)
    dates = set()
    for shard in planned.shards:
        record = read_shard_record(store, planned.run_id, shard.shard)
        assert record is not None
        for file in record.files:
            table = pq.read_table(io.BytesIO(store.get(f"tables/predictions/{file.path}")))
            ids = table.column("prediction_id").to_pylist()
            assert ids == sorted(ids)
            assert {t.as_py().date() for t in table.column("event_time")} == {file.event_date}
            assert file.stats["minValues"]["prediction_id"] == ids[0]
            dates.add(file.event_date)
    assert dates == {date(2024, 3, 1), date(2024, 3, 2)}


def test_scoring_and_publishing_again_adds_no_row_and_starts_nothing(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(store_settings, toy)
    run_id = score_and_publish(store_settings, toy, snapshot)
    before = table_rows(store_settings, toy)
    again = plan_stub(store_settings, toy, snapshot)
    report = run_stub(store_settings, toy, again.run_id, load_model="no.such.module:anything")
    assert (again.run_id, report.shards_committed, report.shards_skipped, report.token) == (
        run_id,
        0,
        6,
        None,
    )
    assert publish(store_settings, toy, run_id).already_published
    assert table_rows(store_settings, toy) == before


def test_a_publish_whose_marker_was_lost_finds_its_transaction(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    run_id = score_and_publish(store_settings, toy, scoring_snapshot(store_settings, toy))
    store = open_store(store_settings, prefix=toy.prefix)
    before = table_rows(store_settings, toy)
    store.delete(f"runs/{run_id}/published.json")
    published = publish(store_settings, toy, run_id)
    assert (published.rows, published.table_version) == (360, 1)
    assert table_rows(store_settings, toy) == before


def test_nothing_is_visible_before_publication(settings: Settings, toy: PipelineSpec) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    run_stub(settings, toy, planned.run_id)
    assert table_rows(settings, toy) == []
    assert published_days(settings, toy) == {}
    assert verify(settings, toy, planned.run_id).ok


def test_a_run_with_a_missing_shard_is_not_published(settings: Settings, toy: PipelineSpec) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    run_stub(settings, toy, planned.run_id)
    open_store(settings, prefix=toy.prefix).delete(shard_key(planned.run_id, 3))
    with pytest.raises(TransientError, match="1 of 6 shards are not committed"):
        publish(settings, toy, planned.run_id)
    assert table_rows(settings, toy) == []
    assert run_stub(settings, toy, planned.run_id).shards_committed == 1
    publish(settings, toy, planned.run_id)
    assert len(table_rows(settings, toy)) == 360


def test_a_new_model_version_replaces_the_rows_of_the_same_days_only(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    first = score_and_publish(store_settings, toy, scoring_snapshot(store_settings, toy, days=3))
    later = scoring_snapshot(store_settings, toy, first_day=date(2024, 3, 3), days=2)
    second = score_and_publish(store_settings, toy, later, version=2)
    rows = table_rows(store_settings, toy)
    assert len({row["prediction_id"] for row in rows}) == len(rows) == 480
    versions = {row["day"]: row["model_version"] for row in rows}
    assert versions == {
        date(2024, 3, 1): 1,
        date(2024, 3, 2): 1,
        date(2024, 3, 3): 2,
        date(2024, 3, 4): 2,
    }
    assert published_days(store_settings, toy) == {
        day: (first if version == 1 else second) for day, version in versions.items()
    }
    assert publish(store_settings, toy, second).superseded_runs == (first,)
    assert verify(store_settings, toy, first).ok
    assert verify(store_settings, toy, first).superseded_by == (second,)
    assert len(table_rows(store_settings, toy, "audit")) == 600, "what was published stays explainable"


def test_runs_of_the_same_days_published_at_once_never_overlap(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(store_settings, toy)
    runs = [plan_stub(store_settings, toy, snapshot, version).run_id for version in (1, 2, 3, 4)]
    for run_id in runs:
        run_stub(store_settings, toy, run_id)

    def attempt(run_id: str) -> str:
        try:
            publish(store_settings, toy, run_id)
        except StaleAttempt:
            return "stale"
        return "published"

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(attempt, runs))
    # Some of these plans often fall into the same millisecond.
    assert outcomes[-1] == "published"
    rows = table_rows(store_settings, toy)
    assert len(rows) == 360
    assert {row["run_id"] for row in rows} == {runs[-1]}


PLANNED = datetime(2024, 4, 1, tzinfo=UTC)


def same_moment(settings: Settings, spec: PipelineSpec, versions: Sequence[int]) -> list[str]:
    """Scored runs of the same days, planned in the same millisecond."""
    snapshot = scoring_snapshot(settings, spec, days=1)
    runs = [
        plan_stub(settings, spec, snapshot, version, clock=lambda: PLANNED).run_id for version in versions
    ]
    for run_id in runs:
        run_stub(settings, spec, run_id)
    return runs


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))), ids=str)
def test_of_runs_planned_in_the_same_millisecond_the_latest_model_stays_whoever_publishes_first(
    settings: Settings, toy: PipelineSpec, order: tuple[int, ...]
) -> None:
    runs = dict(zip((1, 2, 3), same_moment(settings, toy, (1, 2, 3)), strict=True))
    newest = 0
    for version in order:
        if version < newest:
            with pytest.raises(StaleAttempt, match=runs[newest]):
                publish(settings, toy, runs[version])
        else:
            publish(settings, toy, runs[version])
            newest = version
    assert {row["run_id"] for row in table_rows(settings, toy)} == {runs[3]}


@pytest.mark.parametrize("first", [0, 1])
def test_of_runs_of_one_model_planned_in_the_same_millisecond_the_same_one_stays_in_either_order(
    settings: Settings, toy: PipelineSpec, first: int
) -> None:
    def one_row_less(rows: pa.Table) -> pa.Table:
        return rows.slice(1)

    snapshots = [
        scoring_snapshot(settings, toy, days=1),
        scoring_snapshot(settings, toy, days=1, change=one_row_less),
    ]
    runs = [plan_stub(settings, toy, snapshot, clock=lambda: PLANNED).run_id for snapshot in snapshots]
    for run_id in runs:
        run_stub(settings, toy, run_id)
    publish(settings, toy, runs[first])
    if runs[first] == max(runs):
        with pytest.raises(StaleAttempt):
            publish(settings, toy, runs[1 - first])
    else:
        publish(settings, toy, runs[1 - first])
    assert {row["run_id"] for row in table_rows(settings, toy)} == {max(runs)}


@pytest.mark.parametrize("table", ["audit", "delta"])
@pytest.mark.parametrize("held", [0, 1])
def test_a_publisher_that_is_overtaken_right_before_its_commit_decides_anew(
    store_settings: Settings, toy: PipelineSpec, table: str, held: int
) -> None:
    """One of two publishers is held at the point where it has decided and sends its transaction."""
    runs = same_moment(store_settings, toy, (1, 2))
    inside: list[str] = []

    def overtake(point: str) -> None:
        if point == f"before-{table}-commit" and not inside:
            inside.append(point)
            publish(store_settings, toy, runs[1 - held])

    observe(overtake)
    try:
        if held == 0:
            with pytest.raises(StaleAttempt, match=runs[1]):
                publish(store_settings, toy, runs[0])
        else:
            publish(store_settings, toy, runs[1])
    finally:
        observe(None)
    assert inside
    assert {row["run_id"] for row in table_rows(store_settings, toy)} == {runs[1]}
    assert len(table_rows(store_settings, toy)) == 120
    assert verify(store_settings, toy, runs[1]).ok


def test_processes_that_publish_runs_of_the_same_millisecond_at_once_always_leave_the_same_one(
    settings: Settings, toy: PipelineSpec
) -> None:
    runs = same_moment(settings, toy, (1, 2, 3, 4))
    store = open_store(settings, prefix=toy.prefix)
    with ProcessPoolExecutor(4, mp_context=SERVED) as pool:
        for turn in range(10):
            for info in [
                *store.list("tables/predictions/_delta_log"),
                *store.list("tables/audit/_delta_log"),
            ]:
                store.delete(info.key)
            for run_id in runs:
                store.delete(f"runs/{run_id}/published.json")
            started = [pool.submit(publish_unless_stale, settings, toy, run_id) for run_id in runs]
            assert started[3].result(), f"the newest was published, turn {turn}"
            assert all(isinstance(one.result(), bool) for one in started)
            assert {row["run_id"] for row in table_rows(settings, toy)} == {runs[3]}, f"turn {turn}"


def publish_unless_stale(settings: Settings, spec: PipelineSpec, run_id: str) -> bool:
    try:
        publish(settings, spec, run_id)
    except StaleAttempt:
        return False
    return True


def test_a_run_planned_earlier_does_not_replace_a_newer_one_unless_told_to(
    settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(settings, toy)
    old = score_and_publish(settings, toy, snapshot, version=1)
    rows_of_old = table_rows(settings, toy)
    # A millisecond may hold both plans, and then the version decides which is newer.
    late = plan_stub(settings, toy, snapshot, 3, clock=lambda: datetime.now(UTC) - timedelta(seconds=1))
    new = score_and_publish(settings, toy, snapshot, version=2)
    run_stub(settings, toy, late.run_id)
    with pytest.raises(StaleAttempt, match=new):
        publish(settings, toy, late.run_id)
    assert publish(settings, toy, old).already_published
    assert {row["run_id"] for row in table_rows(settings, toy)} == {new}
    brought_back = publish(settings, toy, old, replace_newer=True)
    assert brought_back.superseded_runs == (new,)
    assert table_rows(settings, toy) == rows_of_old
    assert publish(settings, toy, old, replace_newer=True).rows == 360
    assert table_rows(settings, toy) == rows_of_old


def test_a_stale_attempt_cannot_commit_and_leaves_no_file(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    planned = plan_stub(store_settings, toy, scoring_snapshot(store_settings, toy, days=1))
    store = open_store(store_settings, prefix=toy.prefix)
    old = take_token(store, planned.run_id)
    worker = ShardWorker(store_settings, toy, planned, old, load_model=STUB, audit_table=AUDIT)
    newer: list[int] = []

    class TakesOver:
        """The model's load is slow: meanwhile another attempt takes over."""

        def __getattr__(self, name: str) -> object:
            if not newer:
                newer.append(take_token(store, planned.run_id))
            return getattr(stub, name)

    from inference_support import StubModel

    stub = StubModel(1)
    worker._models[planned.fingerprint.bundle_digest] = TakesOver()  # type: ignore[assignment]
    with pytest.raises(StaleAttempt, match="token 1, and token 2"):
        worker.run(0)
    assert read_shard_record(store, planned.run_id, 0) is None
    assert list(store.list("tables")) == []
    fresh = ShardWorker(store_settings, toy, planned, newer[0], load_model=STUB, audit_table=AUDIT)
    assert fresh.run(0).token == 2


def test_tokens_are_distinct_and_without_gaps(store_settings: Settings, toy: PipelineSpec) -> None:
    store = open_store(store_settings, prefix=toy.prefix)
    with ThreadPoolExecutor(6) as pool:
        tokens = list(pool.map(lambda _: take_token(store, "0" * 16), range(6)))
    assert sorted(tokens) == [1, 2, 3, 4, 5, 6]


def test_of_two_attempts_at_one_shard_the_loser_deletes_its_files_and_adopts(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    planned = plan_stub(store_settings, toy, scoring_snapshot(store_settings, toy, days=1))
    store = open_store(store_settings, prefix=toy.prefix)
    token = take_token(store, planned.run_id)
    workers = [
        ShardWorker(store_settings, toy, planned, token, load_model=STUB, audit_table=AUDIT) for _ in range(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda worker: worker.run(0), workers))
    assert len({record.attempt for record in records}) == 1
    named = {f"tables/predictions/{file.path}" for file in records[0].files}
    named |= {f"tables/audit/{file.path}" for file in records[0].audit_files}
    assert {info.key for info in store.list("tables")} == named


class LosesAnswers(LocalStore):
    """Creates, and then says that it does not know: the answer was lost on its way."""

    lost = 0

    def put_exclusive(self, key: str, data: bytes) -> None:
        super().put_exclusive(key, data)
        if "/shard-" in key:
            type(self).lost += 1
            raise CommitOutcomeUnknown("the answer was lost", which=key)


def test_a_commit_whose_answer_was_lost_is_looked_up_and_counts(
    settings: Settings, toy: PipelineSpec
) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    store = LosesAnswers(open_store(settings, prefix=toy.prefix).root)  # type: ignore[attr-defined]
    token = take_token(store, planned.run_id)
    worker = ShardWorker(settings, toy, planned, token, load_model=STUB)
    worker.store = store
    record = worker.run_once(0)
    assert LosesAnswers.lost == 1
    assert read_shard_record(store, planned.run_id, 0) == record
    assert all(store.exists(f"tables/predictions/{file.path}") for file in record.files)


class FailsLookups(LocalStore):
    """Nobody can tell: neither the create nor the look-up is answered."""

    def put_exclusive(self, key: str, data: bytes) -> None:
        if "/shard-" in key:
            raise CommitOutcomeUnknown("the answer was lost", which=key)
        super().put_exclusive(key, data)

    def exists(self, key: str) -> bool:
        if "/shard-" in key:
            raise StoreUnavailable("does not answer", which=key)
        return super().exists(key)


def test_nothing_is_deleted_while_a_commit_is_in_doubt(settings: Settings, toy: PipelineSpec) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    store = FailsLookups(open_store(settings, prefix=toy.prefix).root)  # type: ignore[attr-defined]
    worker = ShardWorker(settings, toy, planned, take_token(store, planned.run_id), load_model=STUB)
    worker.store = store
    with pytest.raises(StoreUnavailable):
        worker.run_once(0)
    assert len(list(store.list("tables/predictions"))) == 1


def test_rows_that_cannot_be_scored_become_dead_letters_and_the_rest_commits(
    settings: Settings, toy: PipelineSpec
) -> None:
    spec = toy.model_copy(
        update={"inference": toy.inference.model_copy(update={"max_dead_letter_share": 0.05})}
    )
    snapshot = scoring_snapshot(settings, spec, change=with_prices({7: POISON, 70: POISON, 99: NOT_A_NUMBER}))
    planned = plan_stub(settings, spec, snapshot)
    report = run_stub(settings, spec, planned.run_id)
    assert (report.rows_scored, report.dead_letters) == (351, 9)
    publish(settings, spec, planned.run_id)
    assert len(table_rows(settings, spec)) == 351
    store = open_store(settings, prefix=spec.prefix)
    letters = [
        row
        for shard in planned.shards
        if (record := read_shard_record(store, planned.run_id, shard.shard)) and record.dead_letter_key
        for row in pq.read_table(io.BytesIO(store.get(record.dead_letter_key))).to_pylist()
    ]
    assert sorted({(row["penstock_source_row"], row["penstock_stage"]) for row in letters}) == [
        (7, "features"),
        (70, "features"),
        (99, "predict"),
    ]
    assert {row["penstock_error_class"] for row in letters} == {"ValueError", "NotAProbability"}
    wanted = {item for day in planned.days for item in prediction_ids(toy_rows(settings, day), spec)}
    assert len(wanted & {row["penstock_prediction_id"] for row in letters}) == 9
    assert {row["price"] for row in letters} == {POISON, NOT_A_NUMBER}, "the row itself is kept, for a replay"
    assert verify(settings, spec, planned.run_id).ok


def test_too_many_dead_letters_stop_the_run_before_publication(settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(settings, toy, change=with_prices(dict.fromkeys(range(5), POISON)))
    planned = plan_stub(settings, toy, snapshot)
    with pytest.raises(DataError, match=r"15 of 360 rows \(4.17%\)") as caught:
        run_stub(settings, toy, planned.run_id)
    assert "a price of -13 is unlucky" in str(caught.value)
    letters = re.search(r"read (\S+), then", caught.value.fix)
    assert letters and pq.read_metadata(letters[1]).num_rows > 0
    with pytest.raises(DataError, match="max_dead_letter_share"):
        publish(settings, toy, planned.run_id)
    assert table_rows(settings, toy) == []
    tolerant = toy.model_copy(
        update={"inference": toy.inference.model_copy(update={"max_dead_letter_share": 0.1})}
    )
    assert publish(settings, tolerant, planned.run_id).rows == 345


def test_a_row_without_its_key_is_a_dead_letter(settings: Settings, toy: PipelineSpec) -> None:
    def unnamed(rows: pa.Table) -> pa.Table:
        names = rows.column("customer").to_pylist()
        names[3] = None
        return rows.set_column(0, "customer", pa.array(names, pa.string()))

    spec = toy.model_copy(
        update={"inference": toy.inference.model_copy(update={"max_dead_letter_share": 0.05})}
    )
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec, days=1, change=unnamed))
    assert run_stub(settings, spec, planned.run_id).dead_letters == 1


def test_a_repeated_key_is_refused_and_named(settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(
        settings, toy, days=1, change=lambda rows: pa.concat_tables([rows, rows.slice(0, 1)])
    )
    one_shard = toy.model_copy(update={"inference": toy.inference.model_copy(update={"shard_rows": 1000})})
    planned = plan_stub(settings, one_shard, snapshot)
    with pytest.raises(DataError, match="repeat"):
        run_stub(settings, one_shard, planned.run_id)
    assert list(open_store(settings, prefix=toy.prefix).list("tables")) == []


def test_a_truncated_partition_stops_the_run_and_keeps_earlier_results(
    settings: Settings, toy: PipelineSpec
) -> None:
    first = score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=1))
    before = table_rows(settings, toy)
    snapshot = scoring_snapshot(settings, toy, first_day=date(2024, 3, 5), days=1)
    store = open_store(settings, prefix=toy.prefix)
    key = snapshot.partitions[0].key
    store.put(key, store.get(key)[:-100])
    planned = plan_stub(settings, toy, snapshot)
    with pytest.raises(DataError, match="truncated") as caught:
        run_stub(settings, toy, planned.run_id)
    assert key in str(caught.value)
    assert table_rows(settings, toy) == before
    assert verify(settings, toy, first).ok


def test_a_file_that_is_gone_is_noticed_before_it_is_published(settings: Settings, toy: PipelineSpec) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    run_stub(settings, toy, planned.run_id)
    store = open_store(settings, prefix=toy.prefix)
    lost = next(iter(store.list("tables/predictions"))).key
    store.delete(lost)
    with pytest.raises(NotFound, match="gone or have another size"):
        publish(settings, toy, planned.run_id)
    found = verify(settings, toy, planned.run_id)
    assert not found.ok
    assert any("is gone" in problem for problem in found.problems)


def test_verify_sees_a_damaged_file(store_settings: Settings, toy: PipelineSpec) -> None:
    run_id = score_and_publish(store_settings, toy, scoring_snapshot(store_settings, toy, days=1))
    store = open_store(store_settings, prefix=toy.prefix)
    key = next(info.key for info in store.list("tables/predictions") if info.key.endswith(".parquet"))
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    found = verify(store_settings, toy, run_id)
    assert [problem for problem in found.problems if "damaged" in problem]


def test_an_edited_model_that_returns_a_wrong_shape_is_an_error_not_a_pile_of_dead_letters(
    settings: Settings, toy: PipelineSpec
) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    with pytest.raises(PenstockError, match="scores of shape") as caught:
        run_stub(settings, toy, planned.run_id, load_model="test_inference_run:load_wide")
    assert type(caught.value).__name__ == "PipelineCodeError"


def load_wide(settings: Settings, spec: PipelineSpec, planned: object) -> object:
    from inference_support import StubModel

    class Wide(StubModel):
        def predict(self, encoded):  # type: ignore[no-untyped-def]
            return super().predict(encoded).reshape(-1, 1)

    return Wide(1)


def test_a_shard_that_took_too_long_may_not_commit(settings: Settings, toy: PipelineSpec) -> None:
    hasty = toy.model_copy(
        update={"inference": toy.inference.model_copy(update={"shard_timeout_s": 1e-9, "shard_attempts": 1})}
    )
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    with pytest.raises(TransientError, match="shard_timeout_s"):
        run_stub(settings, hasty, planned.run_id)
    assert list(open_store(settings, prefix=toy.prefix).list("tables")) == []


def test_status_counts_shards_rows_and_cost(settings: Settings, toy: PipelineSpec) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    before = status(settings, toy, planned.run_id)
    assert (before.shards_done, before.rows_done, before.rows, before.attempts) == (0, 0, 360, 0)
    run_stub(settings, toy, planned.run_id)
    done = status(settings, toy, planned.run_id)
    assert (done.shards_done, done.rows_done, done.attempts, done.published) == (6, 360, 1, False)
    assert done.cpu_seconds > 0
    assert sum(done.nodes.values()) == 6


def test_published_records_carry_the_profiles_of_a_day(settings: Settings, toy: PipelineSpec) -> None:
    score_and_publish(settings, toy, scoring_snapshot(settings, toy))
    records = published_records(settings, toy, [date(2024, 3, 2)])
    assert sum(record.profile["rows"] for record in records if record.profile) == 120
    assert {record.day for record in records} == {date(2024, 3, 2)}
    table = read_predictions(settings, toy, [date(2024, 3, 2)], columns=["prediction_id", "score"])
    assert table.num_rows == 120
    with pytest.raises(NotFound, match="no predictions"):
        read_predictions(settings, toy, [date(2020, 1, 1)])


def test_the_sweep_removes_old_orphans_and_nothing_else(store_settings: Settings, toy: PipelineSpec) -> None:
    run_id = score_and_publish(store_settings, toy, scoring_snapshot(store_settings, toy))
    unpublished = plan_stub(store_settings, toy, scoring_snapshot(store_settings, toy), 2)
    run_stub(store_settings, toy, unpublished.run_id)
    store = open_store(store_settings, prefix=toy.prefix)
    orphans = [
        f"tables/predictions/event_date=2024-03-01/{run_id}_2024-03-01_00000_a0001-dead.parquet",
        f"tables/audit/event_date=2024-03-01/{'f' * 16}_2024-03-01_00000_a0001-dead.parquet",
        f"runs/{run_id}/dead-letters/shard-00001-a0001-dead.parquet",
    ]
    for key in orphans:
        store.put(key, b"left behind")
    keep = {info.key for info in store.list()} - set(orphans)

    with pytest.raises(ConfigError, match="may still commit"):
        sweep_orphans(store_settings, toy, older_than=timedelta(minutes=1))
    young = sweep_orphans(store_settings, toy, older_than=timedelta(hours=2))
    assert (young.data_files, young.dead_letter_files, young.kept_young) == (0, 0, 3)
    swept = sweep_orphans(
        store_settings,
        toy,
        older_than=timedelta(hours=2),
        clock=lambda: datetime.now(UTC) + timedelta(hours=3),
    )
    assert (swept.data_files, swept.dead_letter_files) == (2, 1)
    assert {info.key for info in store.list()} == keep
    publish(store_settings, toy, unpublished.run_id)
    assert verify(store_settings, toy, unpublished.run_id).ok


def test_vacuum_leaves_what_readers_and_unpublished_runs_need(settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(settings, toy)
    first = score_and_publish(settings, toy, snapshot)
    score_and_publish(settings, toy, snapshot, version=2)
    waiting = plan_stub(settings, toy, snapshot, 3)
    run_stub(settings, toy, waiting.run_id)
    assert vacuum(settings, toy).files == 0, "superseded files are young"
    publish(settings, toy, first, replace_newer=True)
    publish(settings, toy, waiting.run_id)
    assert len(table_rows(settings, toy)) == 360
    with pytest.raises(ConfigError):
        vacuum(settings, toy, retention=timedelta(hours=1))
