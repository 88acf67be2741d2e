"""Merge the small files of the tables: only files of one run, one source day and one event date (docs/inference.md).

Merged files are written first, under names of their own; then a record that says what each was merged from, by
exclusive create; then one Delta transaction puts them in place of their inputs. Rows, runs and days stay what
they are, so superseding, replays and `replace_newer` go on telling runs and days apart by file name.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import (
    MERGED,
    SWEEP,
    Change,
    FileName,
    LiveFile,
    TableFile,
    TableView,
    commit_change,
    table_view,
)
from tasks.core.errors import ConfigError, DigestMismatch, NotFound, PenstockError, TransientError
from tasks.core.folds import read_fold_record
from tasks.core.holds import holds, is_held
from tasks.core.ids import canonical_json, digest_bytes
from tasks.core.object_store import AlreadyExists, ObjectStore, open_store, store_now
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.core.table_files import AUDIT_GROUP_ROWS, write_table_file
from tasks.inference.commit import discard
from tasks.inference.records import (
    AUDIT,
    PREDICTIONS,
    Merge,
    MergedInput,
    MergeRecord,
    merge_key,
    read_shard_records,
)
from tasks.inference.tables import PREDICTION_GROUP_ROWS

log = logging.getLogger(__name__)

TARGET_BYTES = 32 * 2**20
"""Size to merge up to. A merge holds its rows in memory, which are some twenty times as large as in the file."""

_GROUP_ROWS = {PREDICTIONS: PREDICTION_GROUP_ROWS, AUDIT: AUDIT_GROUP_ROWS}
_MAX_ROWS = 1_000_000
_BATCH_BYTES = 2**28
_BATCH_FILES = 20_000
_READERS = 8


@dataclass(frozen=True)
class Optimized(JsonRecord):
    """What `optimize` did, or with `dry_run` would do, to both tables."""

    merged_files: int
    """Small files that left the tables; their bytes leave the disk when `vacuum` runs."""
    written_files: int
    """Files in their place."""
    rows: int
    bytes_before: int
    bytes_after: int | None
    """None for a dry run."""
    transactions: int
    held_files: int
    """Small files left alone because a hold is on their event date."""
    overtaken_files: int
    """Small files that were merged in vain: another transaction took them out of the table meanwhile."""
    dry_run: bool


@dataclass(frozen=True)
class _Bin:
    """Files that become one file."""

    run_id: str
    day: date
    event_date: date
    files: tuple[LiveFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def optimize(
    settings: Settings,
    spec: PipelineSpec,
    *,
    target_bytes: int = TARGET_BYTES,
    dry_run: bool = False,
    clock: Clock = utc_now,
) -> Optimized:
    """Merge small files of each run, source day and event date into files of up to `target_bytes`.

    Safe beside scoring, publishing, replays, other calls of itself and readers. When nothing is small, nothing is
    written. A merged file is never merged again, so a repeated call does nothing.

    Args:
        settings: This installation.
        spec: The pipeline.
        target_bytes: Files below half of it are merged, up to it.
        dry_run: Only say what would be merged.
        clock: The time.

    Raises:
        ConfigError: `target_bytes` is below 1.
        DigestMismatch: Files are damaged; everything else was merged first, the damaged ones stay as they are.
        TransientError: A sweep overtook this call, which took longer than the sweep's age; repeat it.
        CommitOutcomeUnknown: The store failed during a commit; repeat the call.
    """
    if target_bytes < 1:
        raise ConfigError(f"is {target_bytes}", which="target_bytes", fix="give a size in bytes, 1 or more")
    store = open_store(settings, prefix=spec.prefix)
    done = Optimized(0, 0, 0, 0, None if dry_run else 0, 0, 0, 0, dry_run)
    damaged: list[str] = []
    for folder in (AUDIT, PREDICTIONS):
        view = table_view(store, folder)
        if view is None:
            continue
        bins, held = _bins(store, view, target_bytes)
        done = replace(done, held_files=done.held_files + held)
        if dry_run:
            files = [file for one in bins for file in one.files]
            done = replace(
                done,
                merged_files=done.merged_files + len(files),
                written_files=done.written_files + len(bins),
                rows=done.rows + sum(file.rows for file in files),
                bytes_before=done.bytes_before + sum(file.size_bytes for file in files),
                transactions=done.transactions + len(list(_batches(bins))),
            )
            continue
        for batch in _batches(bins):
            made = _Merging(store, folder, view, spec, clock).run(batch, damaged)
            done = _sum(done, made)
    log.info(
        "Optimized%s: %d files merged in %d transactions, %d held, %d overtaken.",
        ", dry run" if dry_run else "",
        done.merged_files,
        done.transactions,
        done.held_files,
        done.overtaken_files,
    )
    if damaged:
        raise DigestMismatch(
            f"{len(damaged)} files do not hold what their shard records say and were left alone",
            which=store.url(damaged[0]),
            fix="verify the run, restore the files from a backup, then repeat; everything else is merged",
        )
    return done


def _sum(left: Optimized, right: Optimized) -> Optimized:
    return Optimized(
        merged_files=left.merged_files + right.merged_files,
        written_files=left.written_files + right.written_files,
        rows=left.rows + right.rows,
        bytes_before=left.bytes_before + right.bytes_before,
        bytes_after=(left.bytes_after or 0) + (right.bytes_after or 0),
        transactions=left.transactions + right.transactions,
        held_files=left.held_files + right.held_files,
        overtaken_files=left.overtaken_files + right.overtaken_files,
        dry_run=False,
    )


def _bins(store: ObjectStore, view: TableView, target_bytes: int) -> tuple[list[_Bin], int]:
    """(what to merge into what, by run; small files that a hold is on).

    Neighbours in order of prediction id share a file: so its ids stay a narrow range, and look-ups by id stay short.
    """
    standing = holds(store)
    small = [
        (file.name.run_id, file.name.day, file.event_date, file)
        for file in view.files
        if file.name is not None and not file.name.merged and file.size_bytes < max(2, target_bytes) / 2
    ]
    small.sort(key=lambda item: (*item[:3], item[3].first_id, item[3].path))
    bins: list[_Bin] = []
    held = 0
    for (run_id, day, event_date), group in groupby(small, key=lambda item: item[:3]):
        files = [item[3] for item in group]
        if is_held(standing, event_date):
            held += len(files)
            continue
        bins += [
            _Bin(run_id, day, event_date, tuple(packed))
            for packed in _packed(files, target_bytes)
            if len(packed) > 1
        ]
    return bins, held


def _packed(files: Sequence[LiveFile], target_bytes: int) -> Iterator[list[LiveFile]]:
    packed: list[LiveFile] = []
    size = rows = 0
    for file in files:
        if packed and (size + file.size_bytes > target_bytes or rows + file.rows > _MAX_ROWS):
            yield packed
            packed, size, rows = [], 0, 0
        packed.append(file)
        size += file.size_bytes
        rows += file.rows
    if packed:
        yield packed


def _batches(bins: Sequence[_Bin]) -> Iterator[list[_Bin]]:
    """What one record and one transaction hold: bins of one run. A crash costs the batch that was under way."""
    batch: list[_Bin] = []
    size = count = 0
    for one in bins:
        full = size + one.size_bytes > _BATCH_BYTES or count + len(one.files) > _BATCH_FILES
        if batch and (full or one.run_id != batch[0].run_id):
            yield batch
            batch, size, count = [], 0, 0
        batch.append(one)
        size += one.size_bytes
        count += len(one.files)
    if batch:
        yield batch


class _Merging:
    """One batch: its files, its record, its transaction."""

    def __init__(
        self, store: ObjectStore, folder: str, view: TableView, spec: PipelineSpec, clock: Clock
    ) -> None:
        self._store = store
        self._folder = folder
        self._columns = [name for name in view.schema.names if name != "event_date"]
        self._timeout_s = spec.inference.shard_timeout_s
        self._clock = clock
        self._attempt = f"{MERGED}{secrets.token_hex(8)}"
        self._started = clock()
        self._stamped = store_now(store)
        """The start by the clock that stamps the files: by it a sweep tells which are old."""
        self._own: list[str] = []
        self._committed: list[Merge] = []
        self._sent = False

    def run(self, batch: Sequence[_Bin], damaged: list[str]) -> Optimized:
        """Merge and commit; adds damaged files to `damaged` and leaves their bins alone."""
        run_id = batch[0].run_id
        recorded = self._recorded(run_id, batch)
        merges: list[Merge] = []
        try:
            for one in batch:
                found = [recorded.get(file.path) for file in one.files]
                inputs = [file for file in found if file is not None]
                if len(inputs) < len(one.files):
                    log.warning("Left files of run %s alone: no shard record names them; verify it.", run_id)
                    continue
                try:
                    merges.append(self._merge(one, inputs))
                except DigestMismatch as error:
                    log.error("%s", error)
                    damaged.append(error.which)
                except NotFound:  # superseded and vacuumed, or merged by somebody else, since we looked
                    continue
            if merges:
                self._record(run_id, merges)
                self._commit(run_id, merges)
        except PenstockError:
            if not self._sent:  # no transaction was tried: certainly nobody refers to these files
                discard(self._store, [*self._own, merge_key(run_id, self._attempt)])
            raise
        self._discard_uncommitted(run_id)
        return self._summary(batch)

    def _discard_uncommitted(self, run_id: str) -> None:
        """Delete own files that the table has never held; its log remembers what it held a moment ago."""
        committed = {merge.output.path for merge in self._committed}
        if len(committed) == len(self._own):
            return
        view = table_view(self._store, self._folder)
        known = {file.path for file in view.files} | view.let_go if view else set()
        keys = [key for key in self._own if key.removeprefix(f"{self._folder}/") not in known]
        record = [merge_key(run_id, self._attempt)] if len(keys) == len(self._own) else []
        discard(self._store, [*keys, *record])

    def _recorded(self, run_id: str, batch: Sequence[_Bin]) -> dict[str, TableFile]:
        """What shard records say of the files, by path; of online files, the records of their folding."""
        names = [file.name for one in batch for file in one.files if file.name]
        shards = sorted({name.shard for name in names if not name.online})
        recorded = {
            file.path: file
            for record in read_shard_records(self._store, run_id, shards)
            for file in (record.files if self._folder == PREDICTIONS else record.audit_files)
        }
        for attempt in sorted({name.attempt for name in names if name.online}):
            fold = read_fold_record(self._store, run_id, attempt)
            recorded.update({file.path: file for file in fold.files} if fold else {})
        return recorded

    def _merge(self, one: _Bin, inputs: Sequence[TableFile]) -> Merge:
        """Write the merged file of a bin. Raises `DigestMismatch` before anything is written."""
        with ThreadPoolExecutor(_READERS) as pool:
            tables = list(pool.map(self._read, inputs))
        table = pa.concat_tables(tables, promote_options="default")
        del tables
        known = [name for name in self._columns if name in table.column_names]
        table = table.select([*known, *(name for name in table.column_names if name not in known)])
        order = pc.sort_indices(table.column("prediction_id"))
        if not np.array_equal(order.to_numpy(), np.arange(table.num_rows)):
            table = table.take(order)
        names = [FileName.parse(file.path) for file in inputs]
        shard = min(name.shard for name in names if name)
        name = FileName(one.event_date, one.run_id, one.day, shard, self._attempt)
        self._own.append(f"{self._folder}/{name}")
        output = write_table_file(
            self._store, self._folder, name, table.combine_chunks(), group_rows=_GROUP_ROWS[self._folder]
        )
        reached("after-optimize-file")
        return Merge(tuple(MergedInput(file.path, file.rows, file.sha256) for file in inputs), output)

    def _read(self, file: TableFile) -> pa.Table:
        key = f"{self._folder}/{file.path}"
        data = self._store.get(key)
        if digest_bytes(data) != file.sha256:
            raise DigestMismatch(
                "its SHA-256 is not the recorded one", which=key, fix="restore it from a backup"
            )
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        return table.replace_schema_metadata(None)

    def _record(self, run_id: str, merges: Sequence[Merge]) -> None:
        made = MergeRecord(
            run_id=run_id,
            folder=self._folder,
            attempt=self._attempt,
            merges=tuple(merges),
            started_at_utc=iso_utc(self._started),
            created_at_utc=iso_utc(self._clock()),
        )
        key, data = merge_key(run_id, self._attempt), canonical_json(made.to_json())
        reached("before-optimize-record")
        try:
            self._store.put_exclusive(key, data)
        except AlreadyExists:
            if self._store.get(key) != data:  # ours, when the client library sent it twice by itself
                raise
        reached("after-optimize-record")

    def _commit(self, run_id: str, merges: Sequence[Merge]) -> None:
        """Put the merged files in place of those inputs that the table still holds, all of a merge or none."""

        def decide(view: TableView) -> Change | None:
            live = {file.path: file for file in view.files}
            self._committed = [merge for merge in merges if merge.output.path in live]
            if self._committed:  # the answer to an earlier send was lost
                return None
            self._refuse_overtaken(view)
            standing = holds(self._store)
            ready = [
                merge
                for merge in merges
                if all(item.path in live for item in merge.inputs)
                and not is_held(standing, merge.output.event_date)
            ]
            self._committed = ready
            if not ready:
                return None
            self._sent = True
            return Change(
                add=tuple(merge.output for merge in ready),
                remove=tuple(live[item.path] for merge in ready for item in merge.inputs),
                note={"penstock_optimized": run_id, "penstock_merge": self._attempt},
                data_change=False,
            )

        commit_change(
            self._store,
            self._folder,
            schema=_no_table,
            decide=decide,
            points=("before-optimize-commit", "after-optimize-commit"),
        )

    def _refuse_overtaken(self, view: TableView) -> None:
        """A sweep may delete what lay around for long; what it condemned must not enter the table any more."""
        limit = timedelta(seconds=self._timeout_s)
        late = self._clock() - self._started > limit
        if late or (view.transaction_version(SWEEP) or 0) >= _millis(self._stamped):
            raise TransientError(
                f"a merge took longer than inference.shard_timeout_s ({self._timeout_s:g} s)"
                if late
                else "a sweep condemned this merge's files before they were committed",
                which=self._store.url(self._folder),
                fix="repeat the call; if it persists, use a smaller target size or raise inference.shard_timeout_s",
            )

    def _summary(self, batch: Sequence[_Bin]) -> Optimized:
        sizes = {file.path: file.size_bytes for one in batch for file in one.files}
        merged = [item.path for merge in self._committed for item in merge.inputs]
        return Optimized(
            merged_files=len(merged),
            written_files=len(self._committed),
            rows=sum(merge.output.rows for merge in self._committed),
            bytes_before=sum(sizes[path] for path in merged),
            bytes_after=sum(merge.output.size_bytes for merge in self._committed),
            transactions=int(bool(self._committed)),
            held_files=0,
            overtaken_files=len(sizes) - len(merged),
            dry_run=False,
        )


def _millis(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _no_table() -> pa.Schema:
    raise NotFound("the table is gone", which="optimize", fix="see who removed it; repeat the call")
