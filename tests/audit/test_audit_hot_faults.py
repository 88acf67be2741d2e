"""The hot log on disks that fill up or refuse, with damaged files, and beside other folds, sweeps and merges."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from audit_support import publish_days
from hot_support import MOMENT, everywhere, online_row, warm_rows
from small_disk import SmallDisk, small_disk

from tasks.audit import by_prediction
from tasks.audit.hot import HotLimits, HotLog, fold, hot_rows, hot_status
from tasks.audit.hot.folding import FoldInProgress
from tasks.audit.hot.locks import locked
from tasks.audit.hot.segment import hot_folder
from tasks.audit.rows import AUDIT_SCHEMA
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.crash_points import observe
from tasks.core.delta import FileName, table_view
from tasks.core.errors import AccessDenied, DigestMismatch, DiskFull, TransientError
from tasks.core.holds import place_hold, release_hold
from tasks.inference import optimize, sweep_orphans, verify

__all__ = ["small_disk"]

DAY = timedelta(days=1)


class Died(BaseException):
    """Stands for the end of the process at a crash point: nothing of ours may catch it."""


def die_at(point: str) -> None:
    def die(name: str) -> None:
        if name == point:
            observe(None)
            raise Died(name)

    observe(die)


def segments(settings: Settings, toy: PipelineSpec) -> list[Path]:
    return sorted(hot_folder(settings, toy).glob("*.db"))


def audit_files(settings: Settings, toy: PipelineSpec) -> set[str]:
    store = open_store(settings, prefix=toy.prefix)
    return {info.key for info in store.list("tables/audit") if info.key.endswith(".parquet")}


def three_segments(settings: Settings, toy: PipelineSpec) -> None:
    """Rows 0 to 8, three in a segment, all sealed."""
    with HotLog(settings, toy, node="a", limits=HotLimits(seal_rows=3)) as log:
        for number in range(9):
            log.append([online_row(number)])


# -- disks


def test_a_full_disk_refuses_appends_and_loses_none_that_was_acknowledged(
    settings: Settings, toy: PipelineSpec, small_disk: SmallDisk
) -> None:
    there = replace(settings, home=small_disk.path / "home")
    with HotLog(there, toy, node="a") as log:
        log.append([online_row(number) for number in range(100)])
        small_disk.fill()
        kept = 100
        with pytest.raises(DiskFull):
            for kept in range(100, 10_000):
                log.append([online_row(kept)])
        with pytest.raises(DiskFull):
            log.append([online_row(kept)])
        small_disk.make_space()
        rows = [online_row(number) for number in range(kept + 10)]
        assert log.append(rows).repeated == kept
        log.fold(seal=True)
    assert set(everywhere(there, toy).values()) == {1}
    assert len(warm_rows(there, toy)) == kept + 10


def test_a_read_only_disk_refuses_writers_and_folds_and_answers_readers(
    settings: Settings, toy: PipelineSpec, small_disk: SmallDisk
) -> None:
    there = replace(settings, home=small_disk.path / "home")
    log = HotLog(there, toy, node="a")
    log.append([online_row(1)])
    log.close()  # a mount with files open for writing cannot be remounted
    small_disk.read_only(True)
    with pytest.raises(AccessDenied):
        HotLog(there, toy, node="a")
    with pytest.raises(AccessDenied):
        fold(there, toy)
    assert hot_rows(there, toy, "", "~").column("source_key").to_pylist() == ["request-1"]
    small_disk.read_only(False)
    log = HotLog(there, toy, node="a")
    assert log.append([online_row(1), online_row(2)]).added == 1
    log.close()


# -- damaged segments


@pytest.mark.parametrize("damage", ["header", "page", "truncated", "empty", "bit"])
def test_a_damaged_segment_is_set_aside_and_the_others_are_folded(
    settings: Settings, toy: PipelineSpec, damage: str
) -> None:
    three_segments(settings, toy)
    bad = segments(settings, toy)[1]
    data = bytearray(bad.read_bytes())
    if damage == "header":
        data[:16] = b"not a data base!"
    elif damage == "page":
        data[-4096:] = os.urandom(4096)
    elif damage == "truncated":
        data = data[:5000]
    elif damage == "empty":
        data = bytearray(b"x" * 100)
    else:
        data[data.rindex(b"phone")] ^= 1  # SQLite itself does not notice
    bad.write_bytes(data)
    answered = hot_rows(settings, toy, "", "~").column("source_key").to_pylist()
    assert {"request-0", "request-8"} <= set(answered)
    assert not {"request-4"} & set(answered) or damage == "page"
    folded = fold(settings, toy)
    assert (folded.segments, folded.rows) == (2, 6)
    assert folded.damaged == (str(bad.with_suffix(".damaged")),)
    assert hot_status(settings, toy).damaged == folded.damaged
    assert hot_status(settings, toy).segments == ()
    with HotLog(settings, toy, node="a") as log:
        assert log.append([online_row(number) for number in range(9)]).added == 3


def test_a_segment_that_was_restored_is_folded_after_all(settings: Settings, toy: PipelineSpec) -> None:
    three_segments(settings, toy)
    bad = segments(settings, toy)[1]
    good = bad.read_bytes()
    bad.write_bytes(b"x" * len(good))
    fold(settings, toy)
    bad.with_suffix(".damaged").unlink()
    bad.write_bytes(good)
    assert fold(settings, toy).rows == 3
    assert len(everywhere(settings, toy)) == 9


def test_a_torn_end_of_the_write_ahead_log_costs_only_what_was_not_acknowledged(
    settings: Settings, toy: PipelineSpec
) -> None:
    log = HotLog(settings, toy, node="a")
    for number in range(5):
        log.append([online_row(number)])
    wal = next(log.folder.glob("*.db-wal"))
    whole = wal.stat().st_size
    log.append([online_row(5)])  # its frames are what is torn
    there = replace(settings, home=settings.home.parent / "after-the-power-cut")
    folder = hot_folder(there, toy)
    shutil.copytree(log.folder, folder)
    log.close()
    copy = next(folder.glob("*.db-wal"))
    copy.write_bytes(copy.read_bytes()[: whole + 2000])
    with HotLog(there, toy, node="a") as after:
        assert after.append([online_row(number) for number in range(6)]).added == 1
    assert set(everywhere(there, toy).values()) == {1}


def test_a_segment_that_breaks_under_its_writer_is_left_and_the_append_goes_on(
    settings: Settings, toy: PipelineSpec
) -> None:
    with HotLog(settings, toy, node="a") as log:
        log.append([online_row(1)])
        log.seal()
        log.append([online_row(2)])
        # The next transaction reads the damaged first page, as it would after a bad sector.
        open_now = next(
            path for path in segments(settings, toy) if path.with_name(f"{path.name}-wal").exists()
        )
        log._segment._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        open_now.write_bytes(b"y" * open_now.stat().st_size)
        log._segment._connection.execute("PRAGMA shrink_memory")
        assert log.append([online_row(3)]).added == 1
        assert [Path(path).suffix for path in hot_status(settings, toy).damaged] == [".damaged"]
        log.fold(seal=True)
    assert {row["source_key"] for row in warm_rows(settings, toy)} == {"request-1", "request-3"}


def test_a_copy_without_shared_memory_is_read_and_folded(settings: Settings, toy: PipelineSpec) -> None:
    """What a power cut leaves: the index of the write-ahead log is no file that lasts."""
    log = HotLog(settings, toy, node="a")
    log.append([online_row(1)])
    there = replace(settings, home=settings.home.parent / "after-the-power-cut")
    shutil.copytree(log.folder, hot_folder(there, toy))
    log.close()
    next(hot_folder(there, toy).glob("*.db-shm")).unlink()
    assert hot_rows(there, toy, "", "~").column("source_key").to_pylist() == ["request-1"]
    assert fold(there, toy).rows == 1


# -- several at once


def test_two_folds_at_once_add_each_row_once(settings: Settings, toy: PipelineSpec) -> None:
    three_segments(settings, toy)
    results: list[object] = []

    def run() -> None:
        results.append(fold(settings, toy, wait_s=30))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.segments for done in results) == [0, 0, 0, 3]
    assert set(everywhere(settings, toy).values()) == {1}


def test_a_fold_that_does_not_wait_says_that_another_is_at_it(settings: Settings, toy: PipelineSpec) -> None:
    three_segments(settings, toy)
    with locked(hot_folder(settings, toy) / "fold.lock") as mine:
        assert mine
        with pytest.raises(FoldInProgress):
            fold(settings, toy)


def test_a_segment_that_came_back_is_not_folded_twice(settings: Settings, toy: PipelineSpec) -> None:
    """A restored backup, or a lock that a network file system did not keep: the application transaction decides."""
    three_segments(settings, toy)
    copies = {path: path.read_bytes() for path in segments(settings, toy)}
    assert fold(settings, toy).rows == 9
    for path, data in copies.items():
        path.write_bytes(data)
    again = fold(settings, toy)
    assert (again.segments, again.rows) == (3, 0)
    assert len(warm_rows(settings, toy)) == 9


def test_a_writer_goes_on_in_a_new_segment_when_another_process_sealed_and_folded_its_own(
    settings: Settings, toy: PipelineSpec
) -> None:
    with HotLog(settings, toy, node="a") as log:
        log.append([online_row(1)])
        assert fold(settings, toy).open_segments == 1
        assert fold(settings, toy, seal=True).rows == 1
        result = log.append([online_row(1), online_row(2)])
        assert (result.added, result.repeated) == (1, 1)
        log.fold(seal=True)
    assert set(everywhere(settings, toy).values()) == {1}


def test_a_fold_seals_what_a_dead_writer_left_open(settings: Settings, toy: PipelineSpec) -> None:
    log = HotLog(settings, toy, node="a")
    log.append([online_row(1)])
    os.close(log._lock)  # as the kernel does when the process ends
    assert fold(settings, toy).rows == 1


def test_a_reader_misses_no_row_while_segments_are_folded(settings: Settings, toy: PipelineSpec) -> None:
    three_segments(settings, toy)
    over = threading.Event()

    def folding() -> None:
        fold(settings, toy)
        over.set()

    thread = threading.Thread(target=folding)
    thread.start()
    looks = 0
    while not over.is_set() or looks < 2:
        rows = hot_rows(settings, toy, "", "~").to_pylist() + warm_rows(settings, toy)  # in this order
        assert {row["source_key"] for row in rows} == {f"request-{n}" for n in range(9)}
        copies = {(row["prediction_id"], row["run_id"], row["source_key"]) for row in rows}
        assert len(copies) == 9
        looks += 1
    thread.join()


# -- upkeep


def test_a_sweep_removes_what_a_dead_fold_left_and_nothing_that_is_in_the_table(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    with HotLog(store_settings, toy, node="a") as log:
        log.append([online_row(1)])
        log.fold(seal=True)
        log.append([online_row(2)])
        die_at("before-fold-commit")
        with pytest.raises(Died):
            log.fold(seal=True)
    assert len(audit_files(store_settings, toy)) == 2
    young = sweep_orphans(store_settings, toy, older_than=DAY)
    assert (young.data_files, young.kept_young) == (0, 1)
    assert fold(store_settings, toy).rows == 1
    for expected in (1, 0):
        later = sweep_orphans(store_settings, toy, older_than=DAY, clock=lambda: datetime.now(UTC) + 2 * DAY)
        assert later.data_files == expected
    assert len(audit_files(store_settings, toy)) == 2
    assert set(everywhere(store_settings, toy).values()) == {1}


def test_a_fold_that_a_sweep_overtook_does_not_commit_what_was_swept(
    settings: Settings, toy: PipelineSpec
) -> None:
    with HotLog(settings, toy, node="a") as log:
        log.append([online_row(1)])
        log.fold(seal=True)  # there is a table whose log can hold what the sweep says
        log.append([online_row(2)])

        def sweep(point: str) -> None:
            if point == "after-fold-record":
                observe(None)
                sweep_orphans(settings, toy, older_than=DAY, clock=lambda: datetime.now(UTC) + 2 * DAY)

        observe(sweep)
        with pytest.raises(TransientError, match="sweep condemned"):
            log.fold(seal=True)
        # That sweep was of two days later: until then its word stands.
        assert hot_rows(settings, toy, "", "~").num_rows == 1
    assert len(audit_files(settings, toy)) == 1


def test_small_online_files_of_a_day_are_merged_and_stay_the_same_rows(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    with HotLog(store_settings, toy, node="a") as log:
        for number in range(6):
            log.append([online_row(number)])
            log.fold(seal=True)
    before = sorted(warm_rows(store_settings, toy), key=lambda row: row["prediction_id"])
    hold = _hold(store_settings, toy)
    assert optimize(store_settings, toy).held_files == 6
    _release(store_settings, toy, hold)
    merged = optimize(store_settings, toy)
    assert (merged.merged_files, merged.written_files, merged.rows) == (6, 1, 6)
    assert warm_rows(store_settings, toy) == before
    assert by_prediction(store_settings, toy, online_row(4).prediction_id).source_key == "request-4"
    # What was merged goes with the vacuum: the sweep leaves it to it.
    in_nine_days = datetime.now(UTC) + 9 * DAY
    assert sweep_orphans(store_settings, toy, older_than=DAY, clock=lambda: in_nine_days).data_files == 0
    assert len(audit_files(store_settings, toy)) == 7
    assert warm_rows(store_settings, toy) == before


def test_a_damaged_online_file_is_left_alone_by_the_merge(settings: Settings, toy: PipelineSpec) -> None:
    with HotLog(settings, toy, node="a") as log:
        for number in range(2):
            log.append([online_row(number)])
            log.fold(seal=True)
    store = open_store(settings, prefix=toy.prefix)
    key = min(audit_files(settings, toy))
    store.put(key, store.get(key)[:-1] + b"?")
    with pytest.raises(DigestMismatch):
        optimize(settings, toy)
    view = table_view(store, "tables/audit")
    assert view is not None
    assert len(view.files) == 2


@pytest.mark.parametrize("first", ["batch", "online"])
def test_batch_and_online_rows_live_in_one_table(settings: Settings, toy: PipelineSpec, first: str) -> None:
    def serve() -> None:
        with HotLog(settings, toy, node="a") as log:
            log.append([online_row(number) for number in range(3)])
            log.fold(seal=True)

    if first == "online":
        serve()
    ids, run_id = publish_days(settings, toy, days=1)
    if first == "batch":
        serve()
    assert verify(settings, toy, run_id).ok
    optimize(settings, toy)
    swept = sweep_orphans(settings, toy, older_than=DAY, clock=lambda: datetime.now(UTC) + 2 * DAY)
    assert swept.data_files == 0
    assert by_prediction(settings, toy, ids[3]).run_id == run_id
    assert by_prediction(settings, toy, online_row(2).prediction_id).source_key == "request-2"
    names = [FileName.parse(key.removeprefix("tables/audit/")) for key in audit_files(settings, toy)]
    assert {name.event_date for name in names if name and name.online} == {MOMENT.date()}


def test_a_table_of_an_earlier_release_is_widened_by_the_fold(settings: Settings, toy: PipelineSpec) -> None:
    from deltalake import DeltaTable

    store = open_store(settings, prefix=toy.prefix)
    old = AUDIT_SCHEMA.remove(AUDIT_SCHEMA.get_field_index("erasure_id"))
    DeltaTable.create(
        store.url("tables/audit"),
        old.append(pa.field("event_date", pa.date32())),
        partition_by=["event_date"],
    )
    three_segments(settings, toy)
    assert fold(settings, toy).rows == 9
    view = table_view(store, "tables/audit")
    assert view is not None
    assert "erasure_id" in view.schema.names
    assert len(view.files) == 3


def _hold(settings: Settings, toy: PipelineSpec) -> str:
    store = open_store(settings, prefix=toy.prefix)
    day = MOMENT.date()
    return place_hold(store, first_day=day, last_day=day, actor="me", reason="a complaint").hold_id


def _release(settings: Settings, toy: PipelineSpec, hold_id: str) -> None:
    release_hold(open_store(settings, prefix=toy.prefix), hold_id, actor="me", reason="settled")
