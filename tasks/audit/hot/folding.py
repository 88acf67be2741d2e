"""Fold sealed segments into the audit table: each in one Delta transaction of its own, found again by its name.

The order is: files, their records, the transaction `(penstock:online:<segment>, 1)`, and only then the segment goes. Who
dies in between leaves a segment that the next fold takes up; the transaction in the log says whether its rows are in
the table. Files that never came into it are swept by the table's log, as merged files are.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks.audit.hot.locks import locked, try_lock, unlock, writer_lock
from tasks.audit.hot.rows import RowsDamaged, table_of
from tasks.audit.hot.segment import (
    RETRIES,
    Facts,
    Segment,
    SegmentDamaged,
    SegmentGone,
    drop_remains,
    hot_folder,
    remove,
    segment_paths,
    set_aside,
)
from tasks.audit.rows import AUDIT_SCHEMA, AUDIT_TABLE
from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import ONLINE, SWEEP, Change, FileName, TableFile, TableView, commit_change, table_view
from tasks.core.errors import OutcomeUnknown, PenstockError, TransientError, disk_error
from tasks.core.folds import FoldRecord, fold_key, online_run_id, write_fold_record
from tasks.core.object_store import ObjectStore, open_store, store_now
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.core.table_files import AUDIT_GROUP_ROWS, by_event_date, write_table_file

log = logging.getLogger(__name__)

RETRY_WINDOW_S = 900.0
"""How long the identities of folded rows are kept, to recognise retries."""


class FoldInProgress(TransientError):
    """Another fold of this machine is at it."""


@dataclass(frozen=True)
class Folded(JsonRecord):
    """What `fold` did."""

    segments: int
    """Segments that are folded and gone; without rows, or folded by a process that died since, count too."""
    rows: int
    """Rows that this call added to the audit table."""
    files: int
    open_segments: int
    """Segments that are still written to; `seal` closes them first."""
    damaged: tuple[str, ...]
    """Segments that were set aside now, or earlier and are still there."""


def fold(
    settings: Settings,
    spec: PipelineSpec,
    *,
    seal: bool = False,
    wait_s: float = 0.0,
    retry_window_s: float = RETRY_WINDOW_S,
    clock: Clock = utc_now,
) -> Folded:
    """Bring this machine's sealed segments into the audit table, oldest first, and delete them. Repeat it at any time.

    Segments that are due by age, and those whose writer is gone, are sealed first. A damaged one is set aside
    and the others go on.

    Args:
        settings: This installation.
        spec: The pipeline.
        seal: Seal every segment first: then all rows that were acknowledged before the call are in the table after it.
        wait_s: How long to wait for another fold of this machine, in seconds.
        retry_window_s: How long the identities of folded rows are kept.
        clock: The time.

    Raises:
        FoldInProgress: Another fold of this machine did not end in `wait_s`.
        TransientError: A sweep condemned the files of this fold, which took longer than the sweep's age; repeat it.
        CommitOutcomeUnknown: The store failed during a commit; repeat the call, the segment is still there.
        PenstockError: The disk or the store failed; nothing is lost, repeat the call.
    """
    folder = hot_folder(settings, spec)
    done = Folded(0, 0, 0, 0, ())
    if not folder.is_dir():
        return done
    with locked(folder / "fold.lock", wait_s=wait_s) as mine:
        if not mine:
            raise FoldInProgress(
                "another fold of this machine is at it",
                which=str(folder),
                fix="wait for it, or repeat the call",
            )
        folding = _Folding(settings, spec, folder, seal, clock)
        folding.tidy(retry_window_s)
        for path in segment_paths(folder):
            done = folding.take(path, done)
        done = replace(done, damaged=tuple(sorted(str(path) for path in folder.glob("*.damaged"))))
    if done.segments or done.damaged:
        log.info("Folded %d segments with %d rows; %d damaged.", done.segments, done.rows, len(done.damaged))
    return done


class _Folding:
    """One call, which holds the folding lock."""

    def __init__(
        self, settings: Settings, spec: PipelineSpec, folder: Path, seal: bool, clock: Clock
    ) -> None:
        self._store = open_store(settings, prefix=spec.prefix)
        self._spec = spec
        self._folder = folder
        self._seal = seal
        self._clock = clock

    def tidy(self, retry_window_s: float) -> None:
        """Remains of a fold that died, and identities whose time is over."""
        try:
            drop_remains(self._folder)
            before = (self._clock() - timedelta(seconds=retry_window_s)).timestamp()
            for path in self._folder.glob(f"*{RETRIES}"):
                if path.stat().st_mtime < before:
                    path.unlink()
        except OSError as error:
            raise disk_error(error, str(self._folder)) from error

    def take(self, path: Path, done: Folded) -> Folded:
        """Fold one segment if it is sealed; the sums with it."""
        try:
            segment = Segment.open(path)
            try:
                facts = self._sealed(segment)
                if facts is None:
                    return replace(done, open_segments=done.open_segments + 1)
                rows, files = _SegmentFold(self._store, self._spec, segment, facts, self._clock).run()
                remove(segment, segment.keys())
            finally:
                segment.close()
        except SegmentGone:
            return done
        except (SegmentDamaged, RowsDamaged) as error:
            log.error("Set aside as %s. %s", set_aside(path), error)
            return done
        return replace(done, segments=done.segments + 1, rows=done.rows + rows, files=done.files + files)

    def _sealed(self, segment: Segment) -> Facts | None:
        """What a segment says of itself once it is sealed; None while it may still be written to."""
        facts = segment.facts()
        if facts is not None and not facts.sealed:
            age_s = (self._clock() - facts.opened_at).total_seconds()
            if self._seal or age_s >= facts.seal_after_s or self._abandoned(segment):
                segment.seal()
                facts = segment.facts()
        if facts is None and self._abandoned(segment):  # who made it died at once: nothing is in it
            return Facts("", self._clock(), 0.0, True)
        return facts if facts is not None and facts.sealed else None

    def _abandoned(self, segment: Segment) -> bool:
        """Whether its writer is gone. One that starts now finds out by itself that the segment is sealed."""
        handle = try_lock(writer_lock(self._folder, segment.name.split("-")[1]))
        if handle is None:
            return False
        unlock(handle)
        return True


class _SegmentFold:
    """The files, records and transaction of one sealed segment."""

    def __init__(
        self, store: ObjectStore, spec: PipelineSpec, segment: Segment, facts: Facts, clock: Clock
    ) -> None:
        self._store = store
        self._spec = spec
        self._segment = segment
        self._node = facts.node
        self._clock = clock
        self._application = f"penstock:online:{segment.name}"
        self._attempt = f"{ONLINE}{segment.name}-{secrets.token_hex(4)}"
        self._keys: list[str] = []

    def run(self) -> tuple[int, int]:
        """(rows, files) that this call added to the table; (0, 0) when there is nothing to add."""
        view = table_view(self._store, AUDIT_TABLE)
        if view is not None and view.transaction_version(self._application) is not None:
            log.info(
                "Segment %s is in the table already: its fold died before it was deleted.", self._segment.name
            )
            return 0, 0
        rows = self._segment.rows() if self._node else []
        if not rows:
            return 0, 0
        self._started = self._clock()
        self._stamped_ms = int(store_now(self._store).timestamp() * 1000)
        """The start by the clock that stamps the files: by it a sweep tells which are old."""
        table = table_of(self._store, rows, self._run_id)
        try:
            files = [file for run, some in _by_run(table) for file in self._write(run, some)]
            added = self._commit(files)
        except OutcomeUnknown:
            raise
        except PenstockError:
            self._discard()  # certainly not in the table
            raise
        if not added:
            self._discard_strangers()
        return (table.num_rows, len(files)) if added else (0, 0)

    def _run_id(self, day: date) -> str:
        return online_run_id(self._spec.prefix, self._node, day.isoformat())

    def _write(self, run_id: str, table: pa.Table) -> list[TableFile]:
        """The files of one run, one for each event date, and their record."""
        day: date = table.column("scored_at")[0].as_py().date()
        files = []
        for event_date, rows in by_event_date(table):
            reached("before-fold-file")
            name = FileName(event_date, run_id, day, 0, self._attempt)
            self._keys.append(f"{AUDIT_TABLE}/{name}")
            files.append(
                write_table_file(
                    self._store, AUDIT_TABLE, name, rows.combine_chunks(), group_rows=AUDIT_GROUP_ROWS
                )
            )
            reached("after-fold-file")
        self._keys.append(fold_key(run_id, self._attempt))
        write_fold_record(
            self._store,
            FoldRecord(
                run_id, self._attempt, self._segment.name, self._node, tuple(files), iso_utc(self._clock())
            ),
        )
        reached("after-fold-record")
        return files

    def _commit(self, files: Sequence[TableFile]) -> bool:
        """Add the files in one transaction; False when the segment is in the table already."""
        own = {file.path for file in files}
        in_table = False

        def decide(view: TableView) -> Change | None:
            nonlocal in_table
            if view.transaction_version(self._application) is not None:
                in_table = own <= {file.path for file in view.files}  # then only the answer was lost
                return None
            # A sweep says in the log what it condemns; of a table that is still to be made there is no log.
            late = self._clock() - self._started > timedelta(seconds=self._spec.inference.shard_timeout_s)
            if late or (view.transaction_version(SWEEP) or 0) >= self._stamped_ms:
                raise TransientError(
                    "a fold took longer than inference.shard_timeout_s"
                    if late
                    else "a sweep condemned this fold's files before they were committed",
                    which=self._store.url(AUDIT_TABLE),
                    fix="repeat the call: the segment is still there",
                )
            missing = [field for field in AUDIT_SCHEMA if field.name not in view.schema.names]
            if missing:
                return Change(widen=tuple(missing))
            return Change(
                add=tuple(files),
                transaction=(self._application, 1),
                note={"penstock_folded": self._segment.name, "penstock_node": self._node},
            )

        change = commit_change(
            self._store,
            AUDIT_TABLE,
            schema=_table_schema,
            decide=decide,
            points=("before-fold-commit", "after-fold-commit"),
        )
        return change is not None or in_table

    def _discard_strangers(self) -> None:
        """Another fold was faster, from the same segment: what this one wrote is in no table, unless it was merged."""
        view = table_view(self._store, AUDIT_TABLE)
        known = {file.path for file in view.files} | view.let_go if view else set()
        if not any(key.removeprefix(f"{AUDIT_TABLE}/") in known for key in self._keys):
            self._discard()

    def _discard(self) -> None:
        for key in self._keys:
            try:
                self._store.delete(key)
            except PenstockError as error:
                log.warning("Left %s behind for the sweep: %s", key, error.what)


def _by_run(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """Rows by run, each in their order: a segment that was open at midnight UTC has two."""
    runs = sorted(pc.unique(table.column("run_id")).to_pylist())
    if len(runs) == 1:
        return [(runs[0], table)]
    return [(run, table.filter(pc.equal(table.column("run_id"), run))) for run in runs]


def _table_schema() -> pa.Schema:
    at = AUDIT_SCHEMA.get_field_index("event_time") + 1
    return AUDIT_SCHEMA.insert(at, pa.field("event_date", pa.date32()))
