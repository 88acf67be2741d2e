"""Limits: time, attempts, memory and input that cannot be read. One bad shard does not cost the others."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pytest
from inference_support import STUB, StubModel, plan_stub, run_stub, scoring_snapshot, table_rows

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import (
    DataError,
    NotFound,
    OutOfMemory,
    PenstockError,
    StoreUnavailable,
    TransientError,
)
from tasks.core.object_store import LocalStore
from tasks.core.partitions import write_partition
from tasks.inference import publish, status
from tasks.inference.commit import take_token
from tasks.inference.deadline import TimeIsUp, interrupted_after
from tasks.inference.reading import PartitionReader
from tasks.inference.records import Plan, committed_shards
from tasks.inference.shard import ShardWorker

GREEDY = "test_inference_limits:load_greedy"
SLOW = "test_inference_limits:load_slow"
FLAKY = "test_inference_limits:load_flaky"
UNLUCKY_DAY = date(2024, 3, 2)


class SlowModel(StubModel):
    """Never answers, and swallows every ordinary exception."""

    def predict(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        while True:
            try:
                time.sleep(0.005)
            except Exception:
                continue


def load_slow(settings: Settings, spec: PipelineSpec, planned: Plan) -> SlowModel:
    return SlowModel(1)


class FlakyModel(StubModel):
    """One day's rows always meet a store that is away."""

    calls = 0

    def features(self, rows: pa.Table) -> pa.Table:
        if rows.column("asked_at")[0].as_py().date() == UNLUCKY_DAY:
            type(self).calls += 1
            raise StoreUnavailable("does not answer", which="the look-up file")
        return super().features(rows)


def load_flaky(settings: Settings, spec: PipelineSpec, planned: Plan) -> FlakyModel:
    return FlakyModel(1)


class GreedyModel(StubModel):
    """Asks torch for more than there is."""

    def predict(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        import torch

        return np.asarray(torch.zeros(1 << 60, dtype=torch.uint8))


def load_greedy(settings: Settings, spec: PipelineSpec, planned: Plan) -> GreedyModel:
    return GreedyModel(1)


def limited(toy: PipelineSpec, **limits: Any) -> PipelineSpec:
    return toy.model_copy(update={"inference": toy.inference.model_copy(update=limits)})


def test_an_attempt_that_takes_too_long_is_interrupted_and_leaves_nothing(
    settings: Settings, toy: PipelineSpec
) -> None:
    spec = limited(toy, shard_timeout_s=0.2, shard_attempts=1)
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec, days=1))
    with pytest.raises(TransientError, match="was interrupted") as caught:
        run_stub(settings, spec, planned.run_id, load_model=SLOW)
    assert f"shard 00000 of run {planned.run_id}" in str(caught.value)
    assert list(open_store(settings, prefix=spec.prefix).list("tables")) == []
    assert run_stub(settings, toy, planned.run_id).shards_committed == 2


def test_rows_for_which_there_was_no_memory_are_no_dead_letters(
    settings: Settings, toy: PipelineSpec
) -> None:
    spec = limited(toy, shard_attempts=1, max_dead_letter_share=1.0)
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec, days=1))
    with pytest.raises(OutOfMemory, match="needs more memory than this machine has"):
        run_stub(settings, spec, planned.run_id, load_model=GREEDY)
    store = open_store(settings, prefix=spec.prefix)
    assert committed_shards(store, planned.run_id) == set()
    assert run_stub(settings, toy, planned.run_id).dead_letters == 0


def test_the_interruption_never_arrives_after_its_block() -> None:
    late = 0
    for _ in range(200):
        try:
            with interrupted_after(0.001):
                time.sleep(0.001)
        except TimeIsUp:
            late += 1
        sum(range(500))  # an interruption that was left pending would be raised here
    assert late <= 200


def test_a_profiler_or_debugger_still_works_after_a_limited_block() -> None:
    """CPython 3.11 never ends a traced call once an asynchronous exception was withdrawn."""
    code = """
import cProfile
from tasks.inference.deadline import TimeIsUp, interrupted_after
for seconds in (60, 0.001):
    try:
        with interrupted_after(seconds):
            sum(range(200_000))
    except TimeIsUp:
        pass
cProfile.run("sum(number for number in range(1000))")
print("profiled")
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "profiled" in child.stdout, child.stderr


def test_an_attempt_that_is_starting_threads_is_interrupted_and_waits_for_none_of_them() -> None:
    """CPython 3.11 gives a thread that starts the number of the one that starts it: the exception must not go there."""
    code = """
import threading
from tasks.inference.deadline import TimeIsUp, interrupted_after
interrupted = 0
for _ in range(100):
    try:
        with interrupted_after(0.0005):
            while True:
                thread = threading.Thread(target=int)
                thread.start()
                thread.join()
    except TimeIsUp:
        interrupted += 1
print("interrupted", interrupted)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert child.stdout == "interrupted 100\n", child.stderr


def test_a_shard_that_keeps_failing_is_named_with_its_last_cause_after_the_others_finished(
    settings: Settings, toy: PipelineSpec
) -> None:
    FlakyModel.calls = 0
    spec = limited(toy, shard_attempts=2)
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec))
    with pytest.raises(StoreUnavailable) as caught:
        run_stub(settings, spec, planned.run_id, load_model=FLAKY)
    text = str(caught.value)
    assert f"shard 00002 of run {planned.run_id} (the look-up file)" in text
    assert "attempt 2 of inference.shard_attempts 2" in text
    assert "1 more shards failed: 00003; 4 of 6 shards are committed" in text
    assert FlakyModel.calls == 4
    assert committed_shards(open_store(settings, prefix=spec.prefix), planned.run_id) == {0, 1, 4, 5}
    with pytest.raises(TransientError, match="2 of 6 shards are not committed"):
        publish(settings, spec, planned.run_id)
    assert run_stub(settings, spec, planned.run_id).shards_committed == 2


def test_a_store_that_is_away_ends_the_run_before_every_shard_was_tried(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = limited(toy, shard_attempts=1, shard_rows=10)
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec))
    assert len(planned.shards) == 36
    tried: list[int] = []

    def fail(self: ShardWorker, shard: int, *, then: int | None) -> Any:
        tried.append(shard)
        raise StoreUnavailable("does not answer", which="the store")

    monkeypatch.setattr(ShardWorker, "run_once", fail)
    with pytest.raises(StoreUnavailable, match="7 more shards failed"):
        run_stub(settings, spec, planned.run_id)
    assert len(tried) == 8


@pytest.mark.parametrize("damage", ["truncated", "damaged", "gone"])
def test_a_poison_partition_fails_the_run_before_publication_and_the_other_days_are_kept(
    store_settings: Settings, toy: PipelineSpec, damage: str
) -> None:
    planned = plan_stub(store_settings, toy, scoring_snapshot(store_settings, toy))
    store = open_store(store_settings, prefix=toy.prefix)
    key = planned.partitions[1].key
    good = store.get(key)
    if damage == "gone":
        store.delete(key)
    else:
        half = len(good) // 2
        store.put(key, good[:half] if damage == "truncated" else good[:half] + b"\0\0\0\0" + good[half + 4 :])
    with pytest.raises(NotFound if damage == "gone" else DataError) as caught:
        run_stub(store_settings, toy, planned.run_id)
    assert key in str(caught.value)
    assert "shard 00002" in str(caught.value)
    assert committed_shards(store, planned.run_id) == {0, 1, 4, 5}
    with pytest.raises(TransientError):
        publish(store_settings, toy, planned.run_id)
    assert table_rows(store_settings, toy) == []
    store.put(key, good)
    assert run_stub(store_settings, toy, planned.run_id).shards_committed == 2
    publish(store_settings, toy, planned.run_id)
    assert len(table_rows(store_settings, toy)) == 360


def test_a_partition_is_checked_once_in_a_process_and_again_when_it_changed(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []
    real = PartitionReader._refuse_other_bytes

    def counted(self: PartitionReader, path: Path, *rest: Any) -> None:
        checked.append(path)
        real(self, path, *rest)

    monkeypatch.setattr(PartitionReader, "_refuse_other_bytes", counted)
    spec = limited(toy, shard_rows=10)
    planned = plan_stub(settings, spec, scoring_snapshot(settings, spec, days=2))
    run_stub(settings, spec, planned.run_id)
    assert (len(planned.shards), len(checked)) == (24, 2)

    store = open_store(settings, prefix=spec.prefix)
    part = planned.partitions[0]
    reader = PartitionReader(store, settings.cache_dir)
    assert reader.read(part, [0]).num_rows == 120
    data = bytearray(store.get(part.key))
    data[len(data) // 2] ^= 1
    store.put(part.key, bytes(data))
    with pytest.raises(DataError, match="damaged"):
        reader.read(part, [0])


class Remote:
    """A store whose objects are no files of this machine, and which counts what is fetched."""

    def __init__(self, inner: LocalStore) -> None:
        self._inner = inner
        self.fetched: list[str] = []

    def get_file(self, key: str, path: Path) -> None:
        self.fetched.append(key)
        self._inner.get_file(key, path)

    def get(self, key: str) -> bytes:
        raise AssertionError("a whole partition in memory")

    def open(self, key: str) -> IO[bytes]:
        return io.BytesIO()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_remote_partition_is_copied_once_for_all_processes_and_a_damaged_copy_is_replaced(
    settings: Settings, toy: PipelineSpec
) -> None:
    local = open_store(settings, prefix=toy.prefix)
    assert isinstance(local, LocalStore)
    rows = pa.table({"a": pa.array(range(200_000), pa.int64())})
    part = write_partition(local, date(2024, 3, 1), rows)
    store: Any = Remote(local)
    first, second = (PartitionReader(store, settings.cache_dir) for _ in range(2))
    assert first.read(part, [1]).column("a").to_pylist() == list(range(65_536, 131_072))
    assert second.read(part, [0, 3]).num_rows == 65_536 + 200_000 % 65_536
    assert store.fetched == [part.key]
    copy = next((settings.cache_dir / "partitions").glob("*.parquet"))
    copy.write_bytes(b"x" * copy.stat().st_size)
    assert PartitionReader(store, settings.cache_dir).read(part, [2]).num_rows == 65_536
    assert len(store.fetched) == 2


def test_readers_that_copy_one_partition_at_once_do_not_disturb_each_other(
    settings: Settings, toy: PipelineSpec
) -> None:
    local = open_store(settings, prefix=toy.prefix)
    assert isinstance(local, LocalStore)
    part = write_partition(local, UNLUCKY_DAY, pa.table({"a": pa.array(range(100), pa.int64())}))
    together = threading.Barrier(4)

    class Together(Remote):
        """Every copy is made before any of them takes its place."""

        def get_file(self, key: str, path: Path) -> None:
            super().get_file(key, path)
            together.wait(30)

    store: Any = Together(local)
    readers = [PartitionReader(store, settings.cache_dir) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda reader: reader.read(part, [0]), readers))
    assert [table.num_rows for table in tables] == [100] * 4
    assert len(list((settings.cache_dir / "partitions").iterdir())) == 1


def test_a_cache_folder_that_cannot_be_made_is_named(settings: Settings, toy: PipelineSpec) -> None:
    local = open_store(settings, prefix=toy.prefix)
    assert isinstance(local, LocalStore)
    part = write_partition(local, UNLUCKY_DAY, pa.table({"a": pa.array(range(100), pa.int64())}))
    settings.cache_dir.parent.mkdir(parents=True, exist_ok=True)
    settings.cache_dir.write_bytes(b"a file where the folder should be")
    store: Any = Remote(local)
    with pytest.raises(PenstockError, match="partitions"):
        PartitionReader(store, settings.cache_dir).read(part, [0])


def test_status_says_how_far_how_fast_where_and_at_what_cost(settings: Settings, toy: PipelineSpec) -> None:
    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy))
    empty = status(settings, toy, planned.run_id)
    assert (empty.share_done, empty.rows_per_s, empty.eta_s) == (0.0, None, None)
    assert "|..............................|   0 %" in empty.line()
    store = open_store(settings, prefix=toy.prefix)
    started = datetime(2024, 4, 1, tzinfo=UTC)
    token = take_token(store, planned.run_id, clock=lambda: started)
    worker = ShardWorker(
        settings, toy, planned, token, load_model=STUB, clock=lambda: started + timedelta(seconds=10)
    )
    for shard in range(3):
        worker.run(shard)
    half = status(settings, toy, planned.run_id)
    assert (half.share_done, half.rows_per_s, half.eta_s) == (0.5, 18.0, 10.0)
    assert [(node.shards, node.rows) for node in half.by_node] == [(3, 180)]
    assert "|###############...............|  50 %  3 of 6 shards, 180 of 360 rows" in half.line()
    assert "18 rows/s, about 10 s left" in half.line()
