"""Bring archived event dates back to the audit table for some days; then retention takes them away again.

archive/restores/<event_date>/restore-<n:05d>.json     which file, until when, why and who, by exclusive create
archive/restores/<event_date>/returned-<n:05d>.json    that its time is over and the date is in the archive alone

The archive's data stays where they are: a restored file is a copy of them, named by their digest, so the way back is
to remove it. The record comes before the transaction that adds the file: from then on retention lets the date be.
"""

from __future__ import annotations

import logging
import re
import secrets
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import pyarrow as pa

from tasks.audit.archive import ArchivedDate, archived_date, archived_dates, has_moved_on
from tasks.audit.cold import EXPLANATION, cold_rows
from tasks.audit.reader import forget_reader
from tasks.audit.rows import AUDIT_SCHEMA, AUDIT_TABLE
from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.crash_points import reached
from tasks.core.delta import (
    MERGED,
    Change,
    FileName,
    LiveFile,
    TableFile,
    TableView,
    commit_change,
    table_view,
)
from tasks.core.errors import ConfigError, NotFound, StoreUnavailable
from tasks.core.ids import canonical_json
from tasks.core.object_store import AlreadyExists, ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.core.stored import read_record
from tasks.core.table_files import AUDIT_GROUP_ROWS, write_table_file

log = logging.getLogger(__name__)

_RECORD = re.compile(
    r"archive/restores/(?P<day>\d{4}-\d\d-\d\d)/(?P<what>restore|returned)-(?P<number>\d{5})\.json"
)
_COPY = f"{MERGED}r"
"""How the attempt in a copy's name begins: of what an erasure left of one it begins otherwise."""
_TURNS = 20
_WARM_ROW_BYTES = 110
"""Of a row when the table has none to measure by."""


@dataclass(frozen=True)
class Restore(JsonRecord):
    """One restore of one event date."""

    event_date: date
    number: int
    path: str
    """Of the file in the audit table."""
    rows: int
    size_bytes: int
    sha256: str
    """Of the archive file that it is a copy of."""
    until: date
    """The last day on which it stays, as `retain` counts days."""
    actor: str
    reason: str
    recorded_at_utc: str


@dataclass(frozen=True)
class Returned(JsonRecord):
    """The end of a restore."""

    event_date: date
    number: int
    rows: int
    recorded_at_utc: str


@dataclass(frozen=True)
class Restored(JsonRecord):
    """What `restore` did, or with `dry_run` would do."""

    first_day: date
    last_day: date
    until: date
    """The last day on which they stay; earlier where a date expires before."""
    restored_days: tuple[date, ...]
    standing_days: tuple[date, ...]
    """Days that an earlier call restored for as long or longer."""
    expired_days: tuple[date, ...]
    rows: int
    size_bytes: int
    """Of the files in the audit table; with `dry_run` an estimate by the rows that it has."""
    dry_run: bool


def restore_dates(
    settings: Settings,
    spec: PipelineSpec,
    *,
    first_day: date,
    last_day: date,
    actor: str,
    reason: str,
    days: int = 30,
    as_of: date | None = None,
    expire_days: int | None = None,
    dry_run: bool = False,
    clock: Clock = utc_now,
) -> Restored:
    """Copy archived event dates back into the audit table, where they stay for some days.

    What the archive did not keep does not come back: attributions stay reduced. May be repeated after a crash; a date
    that is there already is not copied again. Look-ups answer from the copy.

    Args:
        settings: This installation.
        spec: The pipeline.
        first_day: First event date (UTC).
        last_day: Last event date, included.
        actor: Who decides; kept in the record.
        reason: Why; kept in the record.
        days: How long they stay, counted from `as_of`.
        as_of: The day on which it is done; default: today.
        expire_days: Instead of `explanations.expire_days`: a restore does not keep a date beyond that.
        dry_run: Only say what would come back.
        clock: The time, for records.

    Raises:
        ConfigError: The window ends before it starts, `days` is below 1, or nobody says why.
        NotFound: No date of the window is in the archive, or an archive file is gone.
        DataError: An archive file is damaged; dates before it are restored.
        StoreUnavailable: The store failed, or other upkeep kept coming first; repeat the call.
    """
    if last_day < first_day:
        raise ConfigError(f"is before first_day {first_day}", which="last_day", fix="swap the two days")
    if days < 1:
        raise ConfigError(f"is {days}", which="days", fix="give 1 or more")
    for name, text in (("actor", actor), ("reason", reason)):
        if not text.strip():
            raise ConfigError("is empty", which=name, fix="say it: the record is all that remains")
    today = as_of or clock().date()
    age = timedelta(days=spec.explanations.expire_days if expire_days is None else expire_days)
    store = open_store(settings, prefix=spec.prefix)
    within = {day: item for day, item in archived_dates(store).items() if first_day <= day <= last_day}
    wanted = [day for day, item in within.items() if item.state == "archived" and day + age >= today]
    gone = tuple(day for day in within if day not in wanted)
    if not wanted:
        raise NotFound(
            f"no event date from {first_day} to {last_day} is in the archive",
            which=f"pipeline {spec.name}",
            fix=f"{len(gone)} of them are past explanations.expire_days on {today}: for historical data say as of when"
            if gone
            else "see penstock audit cost for what is where",
        )
    until = today + timedelta(days=days)
    done: list[tuple[date, int, int]] = []
    standing: list[date] = []
    row_bytes = _warm_row_bytes(store)
    for day in wanted:
        if dry_run:
            if _stands(store, day, min(until, day + age)):
                standing.append(day)
            else:
                done.append((day, within[day].rows, int(within[day].rows * row_bytes)))
            continue
        made = _restore_date(store, spec, day, min(until, day + age), actor, reason, clock)
        if made is None:
            standing.append(day)
        else:
            done.append((day, made.rows, made.size_bytes))
    log.info("Restored %d dates until %s, %d were there already.", len(done), until, len(standing))
    forget_reader(spec)
    return Restored(
        first_day=first_day,
        last_day=last_day,
        until=until,
        restored_days=tuple(day for day, _, _ in done),
        standing_days=tuple(standing),
        expired_days=gone,
        rows=sum(rows for _, rows, _ in done),
        size_bytes=sum(size for _, _, size in done),
        dry_run=dry_run,
    )


def restores(store: ObjectStore) -> dict[date, tuple[tuple[Restore, Returned | None], ...]]:
    """Every restore with its end, by event date, oldest first.

    Raises:
        DataError: A record cannot be read.
    """
    keys = [
        (match, info.key) for info in store.list("archive/restores") if (match := _RECORD.fullmatch(info.key))
    ]
    ended = {(match["day"], match["number"]): key for match, key in keys if match["what"] == "returned"}
    found: dict[date, list[tuple[Restore, Returned | None]]] = {}
    fix = "restore the object from a backup; it is never rewritten"
    for match, key in keys:
        if match["what"] == "returned":
            continue
        over = ended.get((match["day"], match["number"]))
        end = (
            read_record(store, over, Returned, what="a readable end of a restore", fix=fix) if over else None
        )
        made = read_record(store, key, Restore, what="a readable restore", fix=fix)
        found.setdefault(made.event_date, []).append((made, end))
    return {
        day: tuple(sorted(items, key=lambda item: item[0].number)) for day, items in sorted(found.items())
    }


def standing_dates(store: ObjectStore, as_of: date) -> frozenset[date]:
    """Event dates that a restore keeps in the audit table on that day."""
    return frozenset(
        day
        for day, items in restores(store).items()
        if any(end is None and made.until >= as_of for made, end in items)
    )


def is_copy(file: LiveFile, archived: ArchivedDate | None) -> bool:
    """Whether the table's file is a restored copy of exactly what the archive holds of its date."""
    return (
        archived is not None
        and archived.state == "archived"
        and file.name is not None
        and file.name.attempt.startswith(_COPY)
        and file.name.run_id == archived.sha256[:16]
    )


def record_returned(store: ObjectStore, as_of: date, clock: Clock) -> tuple[date, ...]:
    """Record the end of restores whose time is over and whose dates are in the archive alone; returns the dates."""
    view = table_view(store, AUDIT_TABLE)
    warm = {file.event_date for file in view.files} if view else set()
    ended = []
    for day, items in restores(store).items():
        for made, end in items:
            if end is not None or made.until >= as_of or day in warm:
                continue
            reached("before-returned-record")
            over = Returned(day, made.number, made.rows, iso_utc(clock()))
            try:
                store.put_exclusive(_key(day, "returned", made.number), canonical_json(over.to_json()))
            except AlreadyExists:
                continue
            ended.append(day)
    return tuple(sorted(set(ended)))


class _ArchiveMoved(Exception):
    """The date's archive has another generation than the copy was made of."""


def _restore_date(
    store: ObjectStore, spec: PipelineSpec, day: date, until: date, actor: str, reason: str, clock: Clock
) -> Restore | None:
    """None when the date is restored for as long already."""
    for _ in range(_TURNS):
        if _stands(store, day, until):
            return None
        archived = archived_date(store, day)
        if archived is None or archived.state != "archived":
            raise NotFound(
                "expired while it was restored", which=f"audit date {day}", fix="nothing of it is left"
            )
        items = restores(store).get(day, ())
        live = _live_copy(store, day, archived)
        if live is not None:  # only for longer, or what a call left that died after its transaction
            path, rows, size, own = live.path, live.rows, live.size_bytes, None
        else:
            try:
                own = _copy_of(store, archived)
            except NotFound:
                if has_moved_on(store, archived):
                    continue
                raise
            path, rows, size = own.path, own.rows, own.size_bytes
        made = Restore(
            event_date=day,
            number=items[-1][0].number + 1 if items else 1,
            path=path,
            rows=rows,
            size_bytes=size,
            sha256=archived.sha256,
            until=until,
            actor=actor,
            reason=reason,
            recorded_at_utc=iso_utc(clock()),
        )
        try:
            store.put_exclusive(_key(day, "restore", made.number), canonical_json(made.to_json()))
        except AlreadyExists:
            if own is not None:
                store.delete(f"{AUDIT_TABLE}/{own.path}")
            continue
        reached("after-restore-record")
        if own is None:
            return made
        late = clock() + timedelta(seconds=spec.inference.shard_timeout_s)
        try:
            if not _add(store, archived, own, made.number, late, clock):
                store.delete(f"{AUDIT_TABLE}/{own.path}")  # another call's copy is there
        except _ArchiveMoved:
            store.delete(f"{AUDIT_TABLE}/{own.path}")
            continue
        return made
    raise StoreUnavailable(
        "other upkeep of this date kept coming first", which=f"audit date {day}", fix="repeat the call"
    )


def _add(
    store: ObjectStore, archived: ArchivedDate, own: TableFile, number: int, late: datetime, clock: Clock
) -> bool:
    """Put the copy into the table; False when another copy is there. Raises `_ArchiveMoved` with nothing committed."""
    day = archived.event_date
    added = True

    def decide(view: TableView) -> Change | None:
        nonlocal added
        copies = {file.path for file in view.files if file.event_date == day and is_copy(file, archived)}
        added = not copies or own.path in copies  # the latter: the answer to an earlier send was lost
        if copies:
            return None
        if archived_date(store, day) != archived:
            raise _ArchiveMoved
        if clock() > late:  # a sweep may have taken the file for that of a dead attempt
            raise StoreUnavailable(
                "took longer than inference.shard_timeout_s", which=f"audit date {day}", fix="repeat the call"
            )
        return Change(
            add=(own,),
            transaction=(f"penstock:restore:{day}", number),
            note={"penstock_restored": day.isoformat()},
        )

    commit_change(
        store,
        AUDIT_TABLE,
        schema=_table_schema,
        decide=decide,
        points=("before-restore-commit", "after-restore-commit"),
    )
    return added


def _stands(store: ObjectStore, day: date, until: date) -> bool:
    """Whether the date is in the table by a restore that lasts until then."""
    lasting = [made for made, end in restores(store).get(day, ()) if end is None and made.until >= until]
    return bool(lasting) and _live_copy(store, day, archived_date(store, day)) is not None


def _live_copy(store: ObjectStore, day: date, archived: ArchivedDate | None) -> LiveFile | None:
    view = table_view(store, AUDIT_TABLE)
    copies = (
        file for file in (view.files if view else ()) if file.event_date == day and is_copy(file, archived)
    )
    return next(copies, None)


def _copy_of(store: ObjectStore, archived: ArchivedDate) -> TableFile:
    table = cold_rows(store, archived, "", "~").drop_columns([EXPLANATION.name]).combine_chunks()
    attempt = f"{_COPY}{secrets.token_hex(8)}"
    name = FileName(archived.event_date, archived.sha256[:16], archived.event_date, 0, attempt)
    reached("before-restore-file")
    made = write_table_file(store, AUDIT_TABLE, name, table, group_rows=AUDIT_GROUP_ROWS)
    reached("after-restore-file")
    return made


def _table_schema() -> pa.Schema:
    return AUDIT_SCHEMA.append(pa.field("event_date", pa.date32()))


def _warm_row_bytes(store: ObjectStore) -> float:
    view = table_view(store, AUDIT_TABLE)
    files = view.files if view else ()
    rows = sum(file.rows for file in files)
    return sum(file.size_bytes for file in files) / rows if rows else _WARM_ROW_BYTES


def _key(day: date, what: str, number: int) -> str:
    return f"archive/restores/{day}/{what}-{number:05d}.json"
