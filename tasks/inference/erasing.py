"""Make rows of the tables tombstones: a file is replaced by one whose other rows are the same.

It goes as merging does (`optimizing.py`), so verification, superseding and the sweep know what they see: the new file
first, under a merged file's name; then a record that says which files of the run's shards it stands for, by exclusive
create; then one Delta transaction that puts it in place of the old file. A file that no shard record accounts for,
such as one that was restored from the archive, needs no record.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby

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
from tasks.core.erasures import Matches, without
from tasks.core.errors import DataError, DigestMismatch, NotFound, PenstockError, StoreUnavailable
from tasks.core.holds import holds, is_held
from tasks.core.ids import canonical_json, digest_bytes
from tasks.core.object_store import ObjectStore, store_now
from tasks.core.records import JsonRecord
from tasks.core.table_files import AUDIT_GROUP_ROWS, write_table_file
from tasks.inference.commit import discard
from tasks.inference.records import (
    AUDIT,
    PREDICTIONS,
    Merge,
    MergedInput,
    MergeRecord,
    merge_key,
    read_merge_records,
    read_shard_record,
)
from tasks.inference.tables import PREDICTION_GROUP_ROWS

log = logging.getLogger(__name__)

KEPT_OF_PREDICTIONS = frozenset(
    {
        "prediction_id",
        "event_time",
        "day",
        "pipeline",
        "model_version",
        "bundle_digest",
        "feature_version",
        "run_id",
        "shard",
        "source_snapshot",
        "scored_at",
    }
)
"""What remains of an erased prediction: counts and ids of its run stay what they were."""

_GROUP_ROWS = {PREDICTIONS: PREDICTION_GROUP_ROWS, AUDIT: AUDIT_GROUP_ROWS}
_TURNS = 20


@dataclass(frozen=True)
class TombstonedFiles(JsonRecord):
    """Files of one table that held matching rows."""

    rows: dict[str, int]
    """Matching rows by event date."""
    files: int
    size_bytes: int
    held_dates: tuple[date, ...]
    """Dates that hold such rows and have a hold: they were left alone."""


def tombstone(
    store: ObjectStore,
    folder: str,
    matches: Matches,
    *,
    kept: frozenset[str],
    erasure_id: str,
    dates: Collection[date] | None = None,
    dry_run: bool = False,
    clock: Clock = utc_now,
) -> TombstonedFiles:
    """Leave of matching rows only the columns `kept`, and `erasure_id` where the table has such a column.

    Safe beside scoring, publishing, merging, retention and readers; may be repeated after a crash.

    Args:
        store: The pipeline's store.
        folder: `tables/predictions` or `tables/audit`.
        matches: Which entity ids are meant.
        kept: Columns that remain of a matching row.
        erasure_id: What the rows say afterwards.
        dates: Only these event dates; default: all.
        dry_run: Only say what would be replaced.
        clock: The time.

    Raises:
        DigestMismatch, DataError: A file is damaged; what came before it is done.
        StoreUnavailable: Files kept being replaced by others; repeat the call.
        CommitOutcomeUnknown: The store failed during a commit; repeat the call.
    """
    rows: dict[str, int] = {}
    files = size = 0
    for _ in range(_TURNS):
        found, held = _matching(store, folder, matches, dates)
        if not found or dry_run:
            for file, count in found:
                rows[file.event_date.isoformat()] = rows.get(file.event_date.isoformat(), 0) + count
            files += len(found)
            size += sum(file.size_bytes for file, _ in found)
            return TombstonedFiles(dict(sorted(rows.items())), files, size, held)
        counts = {file.path: count for file, count in found}
        by_run = groupby(sorted((one for one, _ in found), key=_run_of), key=_run_of)
        for run_id, group in by_run:
            work = _Tombstoning(store, folder, matches, kept, erasure_id, clock)
            for file in work.run(run_id, list(group)):
                rows[file.event_date.isoformat()] = (
                    rows.get(file.event_date.isoformat(), 0) + counts[file.path]
                )
                files += 1
                size += file.size_bytes
    raise StoreUnavailable(
        "its files kept being replaced by other upkeep", which=store.url(folder), fix="repeat the call"
    )


def let_go_files(store: ObjectStore, folder: str, matches: Matches) -> tuple[list[str], list[str]]:
    """Keys of files with matching rows that are in no table: (let go, so waiting for vacuum; of no table yet)."""
    view = table_view(store, folder)
    live = {file.path for file in view.files} if view else set()
    let_go = view.let_go if view else frozenset()
    waiting: list[str] = []
    others: list[str] = []
    for info in store.list(folder):
        path = info.key.removeprefix(f"{folder}/")
        if not path.endswith(".parquet") or path.startswith("_delta_log/") or path in live:
            continue
        if _count(store, info.key, matches):
            (waiting if path in let_go else others).append(info.key)
    return waiting, others


def _matching(
    store: ObjectStore, folder: str, matches: Matches, dates: Collection[date] | None
) -> tuple[list[tuple[LiveFile, int]], tuple[date, ...]]:
    """(files of the table with matching rows and how many, dates of such files that have a hold)."""
    view = table_view(store, folder)
    standing = holds(store)
    found: list[tuple[LiveFile, int]] = []
    held: set[date] = set()
    for file in view.files if view else ():
        if dates is not None and file.event_date not in dates:
            continue
        count = _count(store, f"{folder}/{file.path}", matches)
        if count and is_held(standing, file.event_date):
            held.add(file.event_date)
        elif count:
            found.append((file, count))
    return found, tuple(sorted(held))


def _count(store: ObjectStore, key: str, matches: Matches) -> int:
    try:
        with store.open(key) as raw:
            column = pq.ParquetFile(raw).read(columns=["entity_id"], use_threads=False).column("entity_id")
    except NotFound:  # vacuumed or swept since we looked
        return 0
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"is not readable as Parquet: {error}", which=store.url(key), fix="restore it from a backup"
        ) from error
    return pc.sum(matches(column.combine_chunks())).as_py() or 0


def _run_of(file: LiveFile) -> str:
    return file.name.run_id if file.name else ""


class _Tombstoning:
    """Files of one run: new files, their record, their transaction."""

    def __init__(
        self,
        store: ObjectStore,
        folder: str,
        matches: Matches,
        kept: frozenset[str],
        erasure_id: str,
        clock: Clock,
    ) -> None:
        self._store = store
        self._folder = folder
        self._matches = matches
        self._kept = kept
        self._erasure_id = erasure_id
        self._clock = clock
        self._attempt = f"{MERGED}{secrets.token_hex(8)}"
        self._started = clock()
        self._stamped = store_now(store)
        """By the clock that stamps files: a sweep condemns what is older than it says."""
        self._own: list[str] = []
        self._sent = False

    def run(self, run_id: str, files: Sequence[LiveFile]) -> tuple[LiveFile, ...]:
        """The files that were replaced; those that somebody else replaced meanwhile are not among them."""
        try:
            made = [(file, *self._written(file)) for file in files]
            merges = [Merge(inputs, output) for _, output, inputs in made if inputs]
            if merges:
                self._record(run_id, merges)
            done = self._commit({file.path: output for file, output, _ in made})
        except PenstockError:
            if not self._sent:
                discard(self._store, [*self._own, *self._record_key(run_id)])
            raise
        if not done:
            discard(self._store, [*self._own, *self._record_key(run_id)])
        return done

    def _record_key(self, run_id: str) -> list[str]:
        return [merge_key(run_id, self._attempt)] if run_id else []

    def _written(self, file: LiveFile) -> tuple[TableFile, tuple[MergedInput, ...]]:
        key = f"{self._folder}/{file.path}"
        data = self._store.get(key)
        sha256, inputs = self._accounted(file)
        if sha256 is not None and digest_bytes(data) != sha256:
            raise DigestMismatch(
                "its SHA-256 is not the recorded one",
                which=self._store.url(key),
                fix="restore it from a backup, then repeat",
            )
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).replace_schema_metadata(None)
        gone = self._matches(table.column("entity_id").combine_chunks())
        changed = without(table, gone, kept=self._kept)
        if self._folder == AUDIT:
            before = (
                changed.column("erasure_id").combine_chunks()
                if "erasure_id" in changed.column_names
                else pa.nulls(changed.num_rows, pa.string())
            )
            mark = pc.if_else(gone, pa.scalar(self._erasure_id), before)
            columns = {name: changed.column(name) for name in changed.column_names}
            changed = pa.table(columns | {"erasure_id": mark})
        # A file that is not named by us gets a name by which the sweep and vacuum know it.
        name = file.name or FileName(
            file.event_date, digest_bytes(file.path.encode())[:16], file.event_date, 0, ""
        )
        name = FileName(name.event_date, name.run_id, name.day, name.shard, self._attempt)
        self._own.append(f"{self._folder}/{name}")
        output = write_table_file(
            self._store, self._folder, name, changed.combine_chunks(), group_rows=_GROUP_ROWS[self._folder]
        )
        reached("after-erase-file")
        return output, inputs

    def _accounted(self, file: LiveFile) -> tuple[str | None, tuple[MergedInput, ...]]:
        """(the recorded SHA-256, the shards' files that it stands for); nothing for a file of no run."""
        name = file.name
        if name is None:
            return None, ()
        if name.merged:
            for record in read_merge_records(self._store, name.run_id, self._folder):
                for merge in record.merges:
                    if merge.output.path == file.path:
                        return merge.output.sha256, merge.inputs
            return None, ()
        shard = read_shard_record(self._store, name.run_id, name.shard)
        for one in () if shard is None else (*shard.files, *shard.audit_files):
            if one.path == file.path and one.size_bytes == file.size_bytes:
                return one.sha256, (MergedInput(one.path, one.rows, one.sha256),)
        return None, ()

    def _record(self, run_id: str, merges: Sequence[Merge]) -> None:
        made = MergeRecord(
            run_id=run_id,
            folder=self._folder,
            attempt=self._attempt,
            merges=tuple(merges),
            started_at_utc=iso_utc(self._started),
            created_at_utc=iso_utc(self._clock()),
        )
        reached("before-erase-record")
        self._store.put_exclusive(merge_key(run_id, self._attempt), canonical_json(made.to_json()))
        reached("after-erase-record")

    def _commit(self, outputs: dict[str, TableFile]) -> tuple[LiveFile, ...]:
        done: tuple[LiveFile, ...] = ()

        def decide(view: TableView) -> Change | None:
            nonlocal done
            live = {file.path: file for file in view.files}
            if any(output.path in live for output in outputs.values()):
                return None  # the answer to an earlier send was lost
            if (view.transaction_version(SWEEP) or 0) >= int(self._stamped.timestamp() * 1000):
                raise StoreUnavailable(
                    "a sweep condemned these files before they were committed",
                    which=self._store.url(self._folder),
                    fix="repeat the call",
                )
            standing = holds(self._store)
            done = tuple(
                live[path]
                for path in outputs
                if path in live and not is_held(standing, live[path].event_date)
            )
            if len(done) < len(outputs):  # superseded, merged or held since we looked: look again
                done = ()
                return None
            self._sent = True
            missing = self._folder == AUDIT and "erasure_id" not in view.schema.names
            return Change(
                add=tuple(outputs[file.path] for file in done),
                remove=done,
                note={"penstock_erasure": self._erasure_id},
                widen=(pa.field("erasure_id", pa.string()),) if missing else (),
            )

        commit_change(
            self._store,
            self._folder,
            schema=_no_table,
            decide=decide,
            points=("before-erase-commit", "after-erase-commit"),
        )
        return done


def _no_table() -> pa.Schema:
    raise NotFound("the table is gone", which="erase", fix="see who removed it; repeat the call")
