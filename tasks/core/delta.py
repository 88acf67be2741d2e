"""Delta tables whose files are written first and added by one transaction (I3).

Every commit is a compare-and-swap on the table's version: the change is decided from one view of the table
and is refused when anybody committed in between; then it is decided anew. So two publishers of the same
days can never both add them, and an application transaction that is already in the log is always seen.
Source for the transaction identifier: Delta protocol, "Transaction Identifiers".

A table's files are named `event_date=<UTC date>/<run id>_<source day>_<shard>_<attempt>.parquet`: which run
and which source day a file holds is read from its name alone. A file that was merged from several has the lowest
of their shards and an attempt that begins with `c-`.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import pyarrow as pa

from tasks.core.crash_points import reached
from tasks.core.errors import CommitOutcomeUnknown, StoreUnavailable, TerminalError
from tasks.core.object_store import ObjectStore
from tasks.core.records import JsonRecord

log = logging.getLogger(__name__)

MERGED = "c-"
"""How the attempt in a merged file's name begins; no attempt at a shard begins so."""

_CONFLICTS = 200
_FAULTS = 5
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
    """A table as it was at one version."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self.version: int = table.version()

    @cached_property
    def files(self) -> tuple[LiveFile, ...]:
        """All files, in path order."""
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
        """Those of `let_go` that it let go longer than `retention` ago."""
        hours = int(retention.total_seconds() // 3600)
        return frozenset(
            self._table.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=False)
        )

    @cached_property
    def schema(self) -> pa.Schema:
        """All columns of the table."""
        return pa.schema(self._table.schema().to_arrow())

    def transaction_version(self, application: str) -> int | None:
        """The newest version committed under this application id; None when there is none."""
        version: int | None = self._table.transaction_version(application)
        return version

    def commit_note(self, key: str, value: str, *, limit: int = 100) -> dict[str, Any] | None:
        """The newest commit whose note holds `key: value`, with its `version`; None when not among the last `limit`."""
        return next((entry for entry in self._table.history(limit) if entry.get(key) == value), None)


def table_view(store: ObjectStore, folder: str) -> TableView | None:
    """The newest version of the table in `folder`; None when there is no table yet.

    Raises:
        StoreUnavailable: The log cannot be read.
    """
    table = _open(store, folder)
    return None if table is None else TableView(table)


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
        StoreUnavailable: Other writers kept winning.
    """
    from deltalake import CommitProperties, Transaction
    from deltalake.exceptions import CommitFailedError, DeltaError

    faults = 0
    for conflict in range(_CONFLICTS):
        table = _open(store, folder) or _create(store, folder, schema())
        change = decide(TableView(table))
        if change is None:
            return None
        if change.widen:
            faults = _widen(table, change.widen, store.url(folder), faults)
            continue
        transactions = [Transaction(*change.transaction)] if change.transaction else None
        actions = _actions(change)
        if points:
            reached(points[0])
        try:
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
        except CommitFailedError:
            time.sleep(random.uniform(0, min(1.0, 0.01 * 2 ** min(conflict, 6))))
            continue
        except (DeltaError, OSError) as error:
            # The answer may be lost and not the commit (I4): the next turn reads the log and decides from it.
            faults = _fault(faults, error, store.url(folder))
            continue
        if points:
            reached(points[1])
        return change
    raise StoreUnavailable(
        "other writers kept committing first", which=store.url(folder), fix="repeat the call"
    )


def _widen(table: Any, fields: tuple[pa.Field, ...], which: str, faults: int) -> int:
    """Add columns; whether it succeeded shows when the table is read again. Returns the faults so far."""
    from deltalake import CommitProperties, Schema
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        table.alter.add_columns(
            list(Schema.from_arrow(pa.schema(fields)).fields),
            commit_properties=CommitProperties(max_commit_retries=0),
        )
    except CommitFailedError:
        time.sleep(random.uniform(0, 0.05))
    except (DeltaError, OSError) as error:
        return _fault(faults, error, which)
    return faults


def _fault(faults: int, error: Exception, which: str) -> int:
    """Wait after a fault of the store; returns the faults so far.

    Raises:
        CommitOutcomeUnknown: There were too many.
    """
    if faults + 1 >= _FAULTS:
        raise CommitOutcomeUnknown(
            f"the commit's answer was lost: {error}",
            which=which,
            fix="repeat the call: it looks the transaction up before it commits anything",
        ) from error
    time.sleep(0.1 * 2 ** (faults + 1))
    return faults + 1


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
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return DeltaTable(store.url(folder), storage_options=store.storage_options() or None)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise StoreUnavailable(
            f"the table's log cannot be read: {error}",
            which=store.url(folder),
            fix="retry; if it persists, check the store and its credentials",
        ) from error


def _create(store: ObjectStore, folder: str, schema: pa.Schema) -> Any:
    from deltalake import CommitProperties, DeltaTable
    from deltalake.exceptions import DeltaError

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
        # Somebody else created it meanwhile, or nobody could.
        table = _open(store, folder)
        if table is None:
            raise TerminalError(
                f"the table cannot be created: {error}",
                which=store.url(folder),
                fix="give this user write access to the store",
            ) from error
        return table
    return _open(store, folder)
