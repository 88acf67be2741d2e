"""The hot log: appends from many threads, retries, sealing, and what a row becomes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hot_support import MODEL, MOMENT, everywhere, online_row, warm_rows

from tasks.audit import by_prediction
from tasks.audit.hot import Appended, HotLimits, HotLog, OnlineModel, fold, hot_rows, hot_status
from tasks.audit.hot.group_commit import HotLogBusy, HotLogClosed, Waiting
from tasks.audit.hot.log import HotLogInUse
from tasks.audit.rows import AUDIT_SCHEMA, audit_table, rounded
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.crash_points import observe
from tasks.core.errors import CommitOutcomeUnknown, DataError
from tasks.core.prediction_ids import PredictionIds
from tasks.core.scored import ScoredRows


def test_a_row_is_there_for_readers_when_its_append_returns(settings: Settings, toy: PipelineSpec) -> None:
    with HotLog(settings, toy, node="a") as log:
        rows = [online_row(number) for number in range(10)]
        assert (log.append(rows[:9]).added, log.append(rows[9:]).added) == (9, 1)
        found = hot_rows(settings, toy, "", "~")
        assert found.schema == AUDIT_SCHEMA
        assert found.column("prediction_id").to_pylist() == sorted(row.prediction_id for row in rows)
        one = hot_rows(settings, toy, rows[4].prediction_id, rows[4].prediction_id).to_pylist()
        assert [row["source_key"] for row in one] == ["request-4"]
        third = rows[3].prediction_id[:13]  # bounds may be less than whole ids, as the reader's are
        prefix = hot_rows(settings, toy, third, f"{third}~").to_pylist()
        assert [row["source_key"] for row in prefix] == ["request-3"]


def test_the_same_row_becomes_the_same_audit_row_online_and_in_batch(
    settings: Settings, toy: PipelineSpec
) -> None:
    rows = sorted((online_row(number) for number in range(40)), key=lambda row: row.prediction_id)
    explained = np.array([row.attributions is not None for row in rows])
    micros = np.array([int(row.event_time.timestamp() * 1_000_000) for row in rows])
    entities = pa.array([row.entity_id for row in rows])
    kinds = (pa.float64(), pa.float64(), pa.string(), pa.string())
    scored = ScoredRows(
        pipeline="toy",
        run_id="0" * 16,
        shard=0,
        day=MOMENT.date(),
        model_version=3,
        bundle_digest="d" * 64,
        feature_version="1-abc",
        source_snapshot="s",
        source_key="k",
        scored_at=MOMENT,
        prediction_ids=PredictionIds.of(entities, micros, toy),
        event_times=pa.array(micros).cast(pa.timestamp("us", tz="UTC")),
        entity_ids=entities,
        source_rows=np.arange(40),
        scores=np.array([row.prediction for row in rows], np.float32),
        output_names=(),
        outputs=np.zeros((40, 0), np.float32),
        features=pa.table(
            {
                name: pa.array([row.features[name] for row in rows], kind)
                for name, kind in zip(MODEL.names, kinds, strict=True)
            }
        ),
        explained=explained,
        attributions=np.array([row.attributions for row in rows if row.attributions], np.float32),
        base_value=-3.0,
        residual=np.array([0.001 if one else np.nan for one in explained], np.float32),
        explainer="stub",
        explainer_version="1",
        background_id="zero",
    )
    batch = audit_table(open_store(settings, prefix=toy.prefix), scored).cast(AUDIT_SCHEMA)
    with HotLog(settings, toy) as log:
        log.append(rows)
        online = hot_rows(settings, toy, "", "~")
    own = ["run_id", "source_snapshot", "source_key", "source_row", "scored_at"]
    assert online.drop_columns(own).equals(batch.drop_columns(own))
    assert online.column("source_key").to_pylist() == [row.request_id for row in rows]
    assert set(online.column("source_snapshot").to_pylist() + online.column("source_row").to_pylist()) == {
        None
    }
    assert online.column("scored_at").to_pylist() == [row.scored_at for row in rows]


def test_a_folded_prediction_is_explained_like_any_other(store_settings: Settings, toy: PipelineSpec) -> None:
    with HotLog(store_settings, toy, node="a") as log:
        log.append([online_row(number) for number in range(20)])
        folded = log.fold(seal=True)
    assert (folded.segments, folded.rows, folded.files, folded.open_segments) == (1, 20, 1, 0)
    found = by_prediction(store_settings, toy, online_row(7).prediction_id)
    assert (found.source_snapshot, found.source_key, found.source_row) == (None, "request-7", None)
    assert (found.entity_id, found.model_version, found.tier) == ("c7", 3, "warm")
    assert found.features == {
        "price": pytest.approx(7.1),
        "visits": 2.0,
        "city": "Zürich",
        "device": "phone",
    }
    kept, residual = rounded(np.array([[0.7, -0.2, 0.3, 1 / 3]], np.float32), np.array([0.001], np.float32))
    assert list(found.attributions.values()) == kept[0].tolist()
    assert found.residual == residual[0]
    assert by_prediction(store_settings, toy, online_row(9).prediction_id).attributions is None
    lacking = by_prediction(store_settings, toy, online_row(5).prediction_id).features
    assert (lacking["price"], lacking["city"]) == (None, None)
    assert hot_rows(store_settings, toy, "", "~").num_rows == 0
    assert fold(store_settings, toy) == replace(folded, segments=0, rows=0, files=0)


def test_appends_of_many_threads_share_commits_and_none_is_lost(
    settings: Settings, toy: PipelineSpec
) -> None:
    commits = []
    with HotLog(settings, toy, limits=HotLimits(seal_rows=300)) as log:
        observe(lambda point: commits.append(point) if point == "after-append-commit" else None)
        start = threading.Barrier(16)
        refused: list[BaseException] = []

        def serve(first: int) -> None:
            start.wait()
            try:
                for number in range(first, first + 50):
                    assert log.append([online_row(number)]).added == 1
            except BaseException as error:
                refused.append(error)

        threads = [threading.Thread(target=serve, args=(1000 * n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        observe(None)
        assert not refused
        assert len(commits) < 800
        assert len(hot_status(settings, toy).segments) == 800 // 300 + 1
        log.fold(seal=True)
    found = everywhere(settings, toy)
    assert len(found) == 800
    assert set(found.values()) == {1}


at_each_moment = pytest.mark.parametrize(
    "moment", ["at once", "sealed", "folded", "restarted", "folded and restarted"]
)


def brought_to(moment: str, log: HotLog, settings: Settings, toy: PipelineSpec) -> HotLog:
    """The log of node `a` after what the moment names; another one where that restarts."""
    if moment == "sealed":
        log.seal()
    if "folded" in moment:
        log.fold(seal=True)
    if "restarted" not in moment:
        return log
    log.close()
    return HotLog(settings, toy, node="a")


@at_each_moment
def test_a_retry_adds_no_second_row(settings: Settings, toy: PipelineSpec, moment: str) -> None:
    row = online_row(1)
    again = replace(row, scored_at=row.scored_at + timedelta(seconds=1), prediction=0.9)
    log = HotLog(settings, toy, node="a")
    assert log.append([row, row]).repeated == 1
    log = brought_to(moment, log, settings, toy)
    result = log.append([again, online_row(2)])
    assert (result.added, result.repeated) == (1, 1)
    log.fold(seal=True)
    log.close()
    rows = {row["source_key"]: row for row in warm_rows(settings, toy)}
    assert len(warm_rows(settings, toy)) == 2
    assert rows["request-1"]["prediction"] == np.float32(row.prediction)


@at_each_moment
def test_a_retry_that_another_version_answers_is_kept_beside_the_first_answer_and_once(
    settings: Settings, toy: PipelineSpec, moment: str
) -> None:
    first = online_row(1)
    later = first.scored_at + timedelta(seconds=1)
    second = replace(
        first, model=replace(MODEL, model_version=4, bundle_digest="e" * 64), prediction=0.9, scored_at=later
    )
    log = HotLog(settings, toy, node="a")
    log.append([first])
    assert log.append([second]).added == 1
    log = brought_to(moment, log, settings, toy)
    assert log.append([first, second]) == Appended(0, 2)
    log.fold(seal=True)
    log.close()
    kept = {row["model_version"]: row["prediction"] for row in warm_rows(settings, toy)}
    assert len(warm_rows(settings, toy)) == 2
    assert kept == {3: np.float32(first.prediction), 4: np.float32(0.9)}


def test_a_retry_is_recognised_for_the_retry_window_and_no_longer(
    settings: Settings, toy: PipelineSpec
) -> None:
    now = [datetime.now(UTC)]
    limits = HotLimits(retry_window_s=600)
    with HotLog(settings, toy, limits=limits, clock=lambda: now[0]) as log:
        log.append([online_row(1)])
        log.fold(seal=True)
        now[0] += timedelta(seconds=550)
        log.append([online_row(2)])
        log.seal()
        assert log.append([online_row(1)]).repeated == 1
        now[0] += timedelta(seconds=100)
        log.append([online_row(3)])
        log.seal()
        assert log.append([online_row(1), online_row(2)]) == replace(log.append([]), added=1, repeated=1)


def test_two_requests_for_one_prediction_are_two_rows_of_one_run(
    settings: Settings, toy: PipelineSpec
) -> None:
    with HotLog(settings, toy, node="a") as log:
        log.append([online_row(1), online_row(1, request_id="another")])
        assert hot_rows(settings, toy, "", "~").num_rows == 2
        log.fold(seal=True)
    rows = warm_rows(settings, toy)
    assert [row["source_key"] for row in rows] == ["another", "request-1"]
    assert len({row["run_id"] for row in rows}) == 1


def test_what_all_rows_of_a_model_share_is_stored_once(settings: Settings, toy: PipelineSpec) -> None:
    other = replace(MODEL, model_version=4)
    with HotLog(settings, toy) as log:
        log.append([online_row(number) for number in range(50)])
        log.append([replace(online_row(60), model=other)])
        segment = next(log.folder.glob("*.db"))
        with sqlite3.connect(segment) as reader:
            assert reader.execute("SELECT count(*) FROM models").fetchone() == (2,)
            body = reader.execute("SELECT sum(length(body)) FROM blocks").fetchone()[0]
        assert body < 51 * 110  # bytes
        versions = hot_rows(settings, toy, "", "~").column("model_version").to_pylist()
    assert sorted(versions) == [3] * 50 + [4]


def test_a_segment_is_sealed_by_rows_by_bytes_and_by_age(settings: Settings, toy: PipelineSpec) -> None:
    def sealed() -> int:
        return sum(one.state == "sealed" for one in hot_status(settings, toy).segments)

    now = [datetime.now(UTC)]
    for limits in (HotLimits(seal_rows=2), HotLimits(seal_bytes=150), HotLimits(seal_after_s=60)):
        with HotLog(settings, toy, limits=limits, clock=lambda: now[0]) as log:
            log.append([online_row(1)])
            before = sealed()
            now[0] += timedelta(seconds=61)
            log.append([online_row(2)])
            assert sealed() == before + 1
            log.fold(seal=True)
        now[0] += timedelta(hours=1)  # beyond the retry window: the rows may come again


def test_a_segment_open_at_midnight_is_folded_into_the_runs_of_both_days(
    settings: Settings, toy: PipelineSpec
) -> None:
    late = datetime(2024, 3, 2, tzinfo=UTC)
    rows = [online_row(n, scored_at=late + timedelta(seconds=n - 2)) for n in range(4)]
    with HotLog(settings, toy, node="a") as log:
        log.append(rows)
        assert log.fold(seal=True).files == 2
    runs = {row["scored_at"].date(): row["run_id"] for row in warm_rows(settings, toy)}
    assert len(set(runs.values())) == 2
    with HotLog(settings, toy, node="b") as log:
        log.append([online_row(9, scored_at=late)])
        log.fold(seal=True)
    assert len({row["run_id"] for row in warm_rows(settings, toy)}) == 3


def test_the_folding_thread_brings_rows_into_the_table_by_itself(
    settings: Settings, toy: PipelineSpec
) -> None:
    with HotLog(settings, toy, limits=HotLimits(seal_rows=5)) as log:
        log.start_folding(every_s=0.01)
        log.append([online_row(number) for number in range(5)])
        waited = threading.Event()
        for _ in range(1000):
            if hot_status(settings, toy).segments == ():
                break
            waited.wait(0.02)
    assert len(warm_rows(settings, toy)) == 5


def test_one_process_writes_a_nodes_log(settings: Settings, toy: PipelineSpec) -> None:
    with HotLog(settings, toy, node="a"):
        with pytest.raises(HotLogInUse, match="node a"):
            HotLog(settings, toy, node="a")
        HotLog(settings, toy, node="b").close()
    HotLog(settings, toy, node="a").close()


def test_an_append_after_close_is_refused(settings: Settings, toy: PipelineSpec) -> None:
    log = HotLog(settings, toy)
    log.close()
    log.close()
    with pytest.raises(HotLogClosed):
        log.append([online_row(1)])


def test_appends_beyond_what_may_wait_are_refused_and_can_be_retried(
    settings: Settings, toy: PipelineSpec
) -> None:
    with HotLog(settings, toy, limits=HotLimits(waiting_rows=3)) as log:
        log._file.acquire()  # the disk is slow
        results = []
        threads = [
            threading.Thread(target=lambda n=n: results.append(log.append([online_row(n)]))) for n in range(4)
        ]
        threads[0].start()
        while not log._group._leading or log._group._queue:
            pass
        for thread in threads[1:]:
            thread.start()
        while log._group._queued_rows < 3:
            pass
        with pytest.raises(HotLogBusy, match="3 rows wait"):
            log.append([online_row(9)])
        log._file.release()
        for thread in threads:
            thread.join()
        assert [result.added for result in results] == [1] * 4
        assert log.append([online_row(9)]).added == 1


def test_a_commit_waits_for_the_disk(settings: Settings, toy: PipelineSpec) -> None:
    with HotLog(settings, toy) as log:
        log.append([online_row(1)])
        assert log._segment is not None
        asked = log._segment._connection.execute
        assert asked("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert asked("PRAGMA journal_mode").fetchone() == ("wal",)


class Interrupted(BaseException):
    """As KeyboardInterrupt."""


@pytest.mark.parametrize("point", ["before-append-commit", "after-append-commit"])
def test_when_the_thread_that_commits_is_interrupted_the_others_are_told_to_retry(
    settings: Settings, toy: PipelineSpec, point: str
) -> None:
    outcomes: list[object] = []

    def serve(number: int) -> None:
        try:
            outcomes.append(log.append([online_row(number)]))
        except BaseException as error:
            outcomes.append(type(error))

    with HotLog(settings, toy, node="a") as log:
        log.append([online_row(0)])
        log._file.acquire()  # the disk is slow, so that the others come together
        threads = [threading.Thread(target=serve, args=(number,)) for number in range(1, 5)]
        threads[0].start()
        while not log._group._leading or log._group._queue:
            pass
        for thread in threads[1:]:
            thread.start()
        while len(log._group._queue) < 3:
            pass
        hits: list[str] = []

        def interrupt(name: str) -> None:
            hits.append(name)
            if hits.count(point) == 2:  # the second commit is that of the three
                raise Interrupted

        observe(interrupt)
        log._file.release()
        for thread in threads:
            thread.join()
        observe(None)
        assert outcomes.count(Interrupted) == 1
        assert outcomes.count(CommitOutcomeUnknown) == 2
        again = log.append([online_row(number) for number in range(6)])
        durable = 5 if point == "after-append-commit" else 2
        assert (again.repeated, again.added) == (durable, 6 - durable)
        log.fold(seal=True)
    assert set(everywhere(settings, toy).values()) == {1}
    assert len(everywhere(settings, toy)) == 6


def test_a_waiting_thread_that_is_interrupted_keeps_nobody_waiting(
    settings: Settings, toy: PipelineSpec
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    with HotLog(settings, toy) as log:
        log._file.acquire()
        results = []
        first, last = (
            threading.Thread(target=lambda n=n: results.append(log.append([online_row(n)]))) for n in (1, 3)
        )
        first.start()
        while not log._group._leading or log._group._queue:
            pass
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                log.append([online_row(2)])
        finally:
            signal.signal(signal.SIGALRM, before)
        assert log._group._queued_rows == 0
        last.start()
        while not log._group._queue:
            pass
        log._file.release()
        first.join()
        last.join()
        assert [result.added for result in results] == [1, 1]
        assert log.append([online_row(2)]).added == 1


def test_a_next_leader_that_is_interrupted_hands_on(settings: Settings, toy: PipelineSpec) -> None:
    with HotLog(settings, toy) as log:
        gone, waiting = Waiting([]), Waiting([])
        for one in (gone, waiting):
            one.wake.acquire()
        log._group._queue, log._group._leading = [gone, waiting], True
        with log._group._mutex:
            assert log._group._next_leader() is gone
        log._group._withdraw(gone)
        assert waiting.leads
        assert not waiting.wake.locked()
        log._group._withdraw(waiting)
        assert not log._group._leading
        # A leader that was interrupted before it took anything is gone too.
        log._group._queue, log._group._leading = [gone], True
        log._group._hand_over([], gone)
        assert not log._group._leading
        assert log.append([online_row(1)]).added == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": float("nan")}, "prediction is nan"),
        ({"features": {"price": 1.0}}, "'visits' is missing"),
        ({"features": {"price": "dear", "visits": 1.0, "city": "x", "device": "y"}}, "price|float"),
        ({"features": {"price": 1.0, "visits": 1.0, "city": 3.0, "device": "y"}}, "3.0 is not text"),
        ({"attributions": (0.1,)}, "1 attributions for 4 features"),
        ({"request_id": ""}, "0 characters"),
        ({"request_id": "\ud800"}, "surrogates"),
        ({"event_time": datetime(2024, 3, 1)}, "timezone|offset"),
        ({"event_time": datetime(1960, 1, 1, tzinfo=UTC)}, "outside"),
        ({"model": replace(MODEL, pipeline="other")}, "pipeline other"),
    ],
)
def test_a_row_that_cannot_be_kept_is_refused_with_its_whole_append(
    settings: Settings, toy: PipelineSpec, change: dict, message: str
) -> None:
    with HotLog(settings, toy) as log:
        with pytest.raises(DataError, match=message):
            log.append([online_row(1), replace(online_row(2), **change)])
        assert hot_rows(settings, toy, "", "~").num_rows == 0


def test_a_number_beyond_float32_is_infinite_as_in_batch(settings: Settings, toy: PipelineSpec) -> None:
    row = online_row(1)
    with HotLog(settings, toy) as log:
        log.append([replace(row, features={**row.features, "price": 1e300})])
        assert hot_rows(settings, toy, "", "~").column("feature_values").to_pylist() == [[float("inf"), 2.0]]


def test_a_model_with_a_base_value_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="base value nan"):
        replace(MODEL, base_value=float("nan"))
    assert OnlineModel.from_json(MODEL.to_json()) == MODEL


def test_a_machine_without_online_predictions_loads_no_sqlite_for_asking(
    settings: Settings, toy: PipelineSpec
) -> None:
    code = (
        "import sys; from tasks.core import Settings, load_pipeline; from tasks.audit.hot import hot_rows;"
        "s = Settings.from_environment(); t = hot_rows(s, load_pipeline(s, 'toy'), '', '~');"
        "assert t.num_rows == 0; assert 'sqlite3' not in sys.modules and 'deltalake' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **settings.as_environment()})
