"""Delta tables whose files are written first and added by one transaction (I3).

Every commit is a compare-and-swap on the table's version: the change is decided from one view of the table
and is refused when anybody committed in between; then it is decided anew. So two publishers of the same
days can never both add them, and an application transaction that is already in the log is always seen.
Source for the transaction identifier: Delta protocol, "Transaction Identifiers".

A table's files are named `event_date=<UTC date>/<run id>_<source day>_<shard>_<attempt>.parquet`: which run
and which source day a file holds is read from its name alone. A file that was merged from several has the lowest
of their shards and an attempt that begins with `c-`; one of online predictions has an attempt that begins with `o-`.
"""

from __future__ import annotations

import json
import logging
import math
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import pyarrow as pa

from tasks.core import delta_faults
from tasks.core.crash_points import reached
from tasks.core.errors import AccessDenied, CommitOutcomeUnknown, PenstockError, StoreUnavailable
from tasks.core.object_store import ObjectStore
from tasks.core.records import JsonRecord

log = logging.getLogger(__name__)

MERGED = "c-"
"""How the attempt in a merged file's name begins; no attempt at a shard begins so."""

ONLINE = "o-"
"""How the attempt in the name of a file of online predictions begins: no shard record names it (docs/audit.md)."""

SWEEP = "penstock:sweep"
"""Application id under which a sweep says what it is about to delete: merged and online files written by that time,
in ms since 1970 by the store's clock.
"""

_TRUSTED_S = 3600.0
"""After so long the log is read anew, whatever its next name says: entries older than a month are cleaned away."""
_CONFLICTS = 200
_FAULTS = 5
_FIRST_PAUSE_S = 0.2
"""After a commit whose answer was lost; each later pause is twice as long."""
_NAME = re.compile(
    r"event_date=(?P<event_date>\d{4}-\d\d-\d\d)/"
    r"(?P<run_id>[0-9a-f]{16})_(?P<day>\d{4}-\d\d-\d\d)_(?P<shard>\d{5,})_(?P<attempt>[0-9a-z-]+)\.parquet"
)


@dataclass(frozen=True)
class FileName:
    """What the name of a table's file says."""

    event_date: date
    run_id: str
    day: date
    shard: int
    attempt: str

    @property
    def merged(self) -> bool:
        """Whether the file was merged from files of several shards."""
        return self.attempt.startswith(MERGED)

    @property
    def online(self) -> bool:
        """Whether the file was folded from online predictions."""
        return self.attempt.startswith(ONLINE)

    def __str__(self) -> str:
        return (
            f"event_date={self.event_date}/{self.run_id}_{self.day}_{self.shard:05d}_{self.attempt}.parquet"
        )

    @classmethod
    def parse(cls, path: str) -> FileName | None:
        """The name's parts; None for a file that Penstock did not name."""
        match = _NAME.fullmatch(path)
        if match is None:
            return None
        return cls(
            event_date=date.fromisoformat(match["event_date"]),
            run_id=match["run_id"],
            day=date.fromisoformat(match["day"]),
            shard=int(match["shard"]),
            attempt=match["attempt"],
        )


@dataclass(frozen=True)
class TableFile(JsonRecord):
    """One data file as a shard record lists it; `path` is relative to the table's folder."""

    path: str
    event_date: date
    rows: int
    size_bytes: int
    sha256: str
    stats: dict[str, Any]
    """Delta's per-file statistics: numRecords, minValues, maxValues, nullCount."""


@dataclass(frozen=True)
class LiveFile:
    """One file that the table holds now."""

    path: str
    event_date: date
    rows: int
    size_bytes: int
    first_id: str
    last_id: str

    @cached_property
    def name(self) -> FileName | None:
        return FileName.parse(self.path)


@dataclass(frozen=True)
class Change:
    """What one transaction does. `transaction` is (application id, version)."""

    add: tuple[TableFile, ...] = ()
    remove: tuple[LiveFile, ...] = ()
    transaction: tuple[str, int] | None = None
    note: dict[str, Any] = field(default_factory=dict)
    """Kept in the commit's metadata, for people and for `history`."""
    data_change: bool = True
    """False when the rows stay the same and only their files are others: readers of changes may skip it."""
    widen: tuple[pa.Field, ...] = ()
    """Columns to give the table first, in a transaction of their own; then the change is decided anew."""


class TableView:
    """A table as it was at one version. Some of it is read when it is asked for first.

    What it reads then may raise:
        StoreUnavailable: The log cannot be read now.
        TerminalError: It cannot be read by this user, or is gone.
    """

    def __init__(self, table: Any, which: str) -> None:
        self._table = table
        self._which = which
        self.version: int = table.version()

    @cached_property
    def files(self) -> tuple[LiveFile, ...]:
        """All files, in path order."""
        with _reading(self._which):
            rows = pa.table(self._table.get_add_actions(flatten=True))
        wanted = ("path", "size_bytes", "num_records", "partition.event_date")
        columns = [rows.column(name).to_pylist() for name in wanted]
        bounds = [
            rows.column(name).to_pylist() if name in rows.column_names else [None] * rows.num_rows
            for name in ("min.prediction_id", "max.prediction_id")
        ]
        found = [
            LiveFile(path, event_date, count or 0, size, first or "", last or "~")
            for path, size, count, event_date, first, last in zip(*columns, *bounds, strict=True)
        ]
        return tuple(sorted(found, key=lambda file: file.path))

    @cached_property
    def let_go(self) -> frozenset[str]:
        """Paths of files that the table held and holds no more, as far back as its log remembers."""
        return self.let_go_before(timedelta(0))

    def let_go_before(self, retention: timedelta) -> frozenset[str]:
        """Those of `let_go` that it let go longer than `retention`, in whole hours, ago; by this machine's clock."""
        hours = math.ceil(retention / timedelta(hours=1))
        with _reading(self._which):
            return frozenset(
                self._table.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=False)
            )

    @cached_property
    def schema(self) -> pa.Schema:
        """All columns of the table."""
        with _reading(self._which):
            return pa.schema(self._table.schema().to_arrow())

    def transaction_version(self, application: str) -> int | None:
        """The newest version committed under this application id; None when there is none."""
        with _reading(self._which):
            version: int | None = self._table.transaction_version(application)
        return version

    def commit_note(self, key: str, value: str, *, limit: int = 100) -> dict[str, Any] | None:
        """The newest commit whose note holds `key: value`, with its `version`; None when not among the last `limit`."""
        with _reading(self._which):
            return next((entry for entry in self._table.history(limit) if entry.get(key) == value), None)


def table_view(store: ObjectStore, folder: str) -> TableView | None:
    """The newest version of the table in `folder`; None when there is no table yet.

    Raises:
        StoreUnavailable: The log cannot be read now.
        TerminalError: It cannot be read by this user.
    """
    table = _open(store, folder)
    return None if table is None else TableView(table, store.url(folder))


class LatestView:
    """The newest version of a table, kept between questions; the log is read again only when somebody committed.

    Whether somebody did shows in one look at the name of the next version in the log. May be asked by many threads.

    Args:
        store: The pipeline's store.
        folder: Key of the table's folder.
        max_age_s: For so long an answer is given again without a look. 0: there is a look each time.
        monotonic: Seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: str,
        *,
        max_age_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._folder = folder
        self._max_age_s = max_age_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._view: TableView | None = None
        self._read_at = self._looked_at = -math.inf

    def get(self, *, fresh: bool = False) -> TableView | None:
        """The newest version, or with `fresh=False` what was the newest at most `max_age_s` ago; None: no table yet.

        Raises:
            StoreUnavailable: The log cannot be read now.
            TerminalError: It cannot be read by this user.
        """
        asked_at = self._monotonic()
        with self._lock:
            # Whoever waited here for another's look takes what that one saw, if the look began after the question.
            if self._looked_at > asked_at or (not fresh and asked_at - self._looked_at < self._max_age_s):
                return self._view
            now = self._monotonic()
            if now - self._read_at >= _TRUSTED_S or self._has_next():
                view = table_view(self._store, self._folder)
                if view is not None:
                    view.files  # noqa: B018  # read now: later the log's files may be gone
                self._view, self._read_at = view, now
            self._looked_at = now
            return self._view

    def _has_next(self) -> bool:
        version = 0 if self._view is None else self._view.version + 1
        return self._store.exists(f"{self._folder}/_delta_log/{version:020d}.json")


def commit_change(
    store: ObjectStore,
    folder: str,
    *,
    schema: Callable[[], pa.Schema],
    decide: Callable[[TableView], Change | None],
    points: tuple[str, str] | None = None,
) -> Change | None:
    """Commit what `decide` makes of the table; decides anew whenever somebody else committed first.

    Args:
        store: The pipeline's store.
        folder: Key of the table's folder.
        schema: All columns with `event_date`; asked only when the table has to be created.
        decide: Returns the change, or None when there is nothing to do.
        points: Crash points before and after the commit.

    Returns:
        The change that is in the table now, or None when `decide` found nothing to do.

    Raises:
        CommitOutcomeUnknown: The store failed; calling again looks the transaction up first.
        AccessDenied, DiskFull, TerminalError: The store refused the commit: it is not in the table.
        StoreUnavailable: The log cannot be read, or other writers kept winning.
    """
    from deltalake import CommitProperties, Transaction

    sending = _Sending(store, folder)
    for _ in range(_CONFLICTS):
        with sending.looking():
            table = _open(store, folder) or _create(store, folder, schema())
            sending.settle(table.version())
            change = decide(TableView(table, store.url(folder)))
        if change is None:
            return None
        if change.widen:
            with sending.sent(table.version()):
                _widen(table, change.widen)
            continue
        transactions = [Transaction(*change.transaction)] if change.transaction else None
        actions = _actions(change)
        if points:
            reached(points[0])
        with sending.sent(table.version()):
            table.create_write_transaction(
                actions,
                mode="append",
                schema=table.schema(),
                partition_by=["event_date"],
                # No retries inside the library: it would append beside a commit that `decide` has not seen.
                commit_properties=CommitProperties(
                    custom_metadata=change.note or None, max_commit_retries=0, app_transactions=transactions
                ),
            )
        if sending.failed:
            continue
        if points:
            reached(points[1])
        return change
    raise StoreUnavailable(
        "other writers kept committing first", which=store.url(folder), fix="repeat the call"
    )


class _Sending:
    """The commits that one call sends, and what is known of those that failed (I4)."""

    def __init__(self, store: ObjectStore, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._which = store.url(folder)
        self._conflicts = 0
        self._faults = 0
        # Of the last commit that failed so: the version it was decided from, and what the library said.
        self._doubt: tuple[int, Exception] | None = None
        self._refused: tuple[int, Exception, PenstockError] | None = None
        self._lost_race: int | None = None
        self.failed = False

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Read the log; when that fails after a commit failed, nobody knows what became of the commit."""
        try:
            yield
        except (StoreUnavailable, AccessDenied) as error:
            sent = self._doubt or self._refused
            if sent is None:
                raise
            raise self._unknown(sent[1]) from error

    def settle(self, version: int) -> None:
        """What the log, now read at `version`, says of the commit before.

        Raises:
            AccessDenied, DiskFull, TerminalError: It was refused, and it is not there.
        """
        refused, lost_race = self._refused, self._lost_race
        self._refused = self._lost_race = None
        if self._doubt is not None and version > self._doubt[0]:
            self._doubt = None  # that version is there by now: ours, which `decide` sees, or somebody else's
        if refused is not None and refused[0] == version:
            raise refused[2] from refused[1]
        if lost_race == version:
            # Nobody was faster. The library says the same of a log that it may not write to.
            _refuse_unwritable(self._store, self._folder)

    @contextmanager
    def sent(self, version: int) -> Iterator[None]:
        """Send a commit that was decided from this version; `failed` says whether it has to be looked up."""
        from deltalake.exceptions import CommitFailedError, DeltaError

        self.failed = True
        try:
            yield
        except CommitFailedError:
            self._lost_race = version
            time.sleep(random.uniform(0, min(1.0, 0.01 * 2 ** min(self._conflicts, 6))))
            self._conflicts += 1
        except (DeltaError, OSError) as error:
            found = delta_faults.typed(error, self._which)
            if self._doubt is None and delta_faults.surely_had_no_effect(error, found):
                # Looked up all the same: what failed may be what the library does after a commit, a checkpoint.
                self._refused = version, error, found
                return
            # The answer may be lost and not the commit: the next turn reads the log and decides from it.
            self._doubt = version, error
            self._faults += 1
            if self._faults >= _FAULTS:
                raise self._unknown(error) from error
            time.sleep(_FIRST_PAUSE_S * 2 ** (self._faults - 1))
        else:
            self.failed = False

    def _unknown(self, error: Exception) -> CommitOutcomeUnknown:
        return CommitOutcomeUnknown(
            f"the commit's answer was lost: {delta_faults.said(error)}",
            which=self._which,
            fix="repeat the call: it looks the transaction up before it commits anything",
        )


def _refuse_unwritable(store: ObjectStore, folder: str) -> None:
    """Raises what the store says to an object beside those of the log, where a commit may not be written."""
    key = f"{folder}/_delta_log/_probe-{secrets.token_hex(8)}"
    store.put(key, b"")
    store.delete(key)


@contextmanager
def _reading(which: str) -> Iterator[None]:
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError) as error:
        raise delta_faults.typed(error, which) from error


def _widen(table: Any, fields: tuple[pa.Field, ...]) -> None:
    """Add columns; whether it succeeded shows when the table is read again."""
    from deltalake import CommitProperties, Schema

    table.alter.add_columns(
        list(Schema.from_arrow(pa.schema(fields)).fields),
        commit_properties=CommitProperties(max_commit_retries=0),
    )


def _actions(change: Change) -> list[Any]:
    from deltalake.transaction import AddAction, RemoveAction

    now_ms = int(time.time() * 1000)
    actions: list[Any] = [
        AddAction(
            path=file.path,
            size=file.size_bytes,
            partition_values={"event_date": file.event_date.isoformat()},
            modification_time=now_ms,
            data_change=change.data_change,
            stats=json.dumps(file.stats),
        )
        for file in change.add
    ]
    actions += [
        RemoveAction(
            file.path,
            change.data_change,
            now_ms,
            file.size_bytes,
            {"event_date": file.event_date.isoformat()},
        )
        for file in change.remove
    ]
    return actions


def _open(store: ObjectStore, folder: str) -> Any:
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    with _reading(store.url(folder)):
        try:
            return DeltaTable(store.url(folder), storage_options=store.storage_options() or None)
        except TableNotFoundError:
            return None


def _create(store: ObjectStore, folder: str, schema: pa.Schema) -> Any:
    from deltalake import CommitProperties, DeltaTable
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        DeltaTable.create(
            store.url(folder),
            schema,
            mode="error",
            partition_by=["event_date"],
            storage_options=store.storage_options() or None,
            # With retries, the loser of a race would write the table's metadata once more as version 1.
            commit_properties=CommitProperties(max_commit_retries=0),
        )
    except (DeltaError, OSError) as error:
        # Somebody else created it meanwhile, or its answer was lost; or nobody could.
        table = _open(store, folder)
        if table is None:
            if isinstance(error, CommitFailedError):  # which says no more than that
                _refuse_unwritable(store, folder)
            raise delta_faults.typed(error, store.url(folder)) from error
        return table
    return _open(store, folder)
