"""Remove what crashes and losers left behind, and what Delta no longer needs. Safe beside running work."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby

import pyarrow as pa

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.delta import SWEEP, Change, FileName, TableView, commit_change, table_view
from tasks.core.errors import ConfigError
from tasks.core.holds import holds, is_held
from tasks.core.object_store import ObjectInfo, ObjectStore, open_store, store_now
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.records import (
    AUDIT,
    PREDICTIONS,
    ShardRecord,
    merge_key,
    read_merge_record,
    read_published,
    read_shard_record,
)

log = logging.getLogger(__name__)

Named = Callable[[str, int], set[str]]
"""(run id, shard) -> keys of the files that the shard's record names."""

_UNAVOIDABLE = timedelta(minutes=1)
"""Difference of clocks that is none: S3 tells whole seconds, and asking takes a while."""

_DEAD_LETTER = re.compile(r"runs/(?P<run_id>[^/]+)/dead-letters/shard-(?P<shard>\d+)-[^/]+\.parquet")


@dataclass(frozen=True)
class Swept(JsonRecord):
    """What `sweep_orphans` removed."""

    data_files: int
    dead_letter_files: int
    staged_files: int
    size_bytes: int
    kept_young: int
    """Orphans that are younger than `older_than` and may still be committed."""


@dataclass(frozen=True)
class Vacuumed(JsonRecord):
    """What `vacuum` deleted, or with `dry_run` would delete."""

    files: int
    size_bytes: int
    held_files: int
    """Files that are old enough, on event dates with a hold: they stay."""
    dry_run: bool


def sweep_orphans(
    settings: Settings, spec: PipelineSpec, *, older_than: timedelta, clock: Clock | None = None
) -> Swept:
    """Delete files that no shard record names: of attempts that died, and of losers that could not clean up.

    A file's name says which shard record decides about it, so a sweep reads only the records of files that
    are in no table. About merged and online files the table's log decides. Files in the table, and files it let go (which `vacuum` ages out), are left alone.

    Args:
        settings: This installation.
        spec: The pipeline.
        older_than: Must exceed twice `inference.shard_timeout_s`: an attempt may not commit after that time,
            so what is older and unnamed stays unnamed.
        clock: The store's time. Without it the store is asked; this machine's clock counts for nothing.

    Raises:
        ConfigError: `older_than` is too short to be safe.
    """
    floor = timedelta(seconds=2 * spec.inference.shard_timeout_s)
    if older_than < floor:
        raise ConfigError(
            f"is {older_than}, but an attempt may still commit what is younger than {floor}",
            which="older_than",
            fix=f"use at least {floor}, or lower inference.shard_timeout_s",
        )
    store = open_store(settings, prefix=spec.prefix)
    before = (clock() if clock else store_now(store)) - older_than
    records: dict[tuple[str, int], ShardRecord | None] = {}

    def named(run_id: str, shard: int) -> set[str]:
        if (run_id, shard) not in records:
            records[run_id, shard] = read_shard_record(store, run_id, shard)
        record = records[run_id, shard]
        if record is None:
            return set()
        return {
            *(f"{PREDICTIONS}/{file.path}" for file in record.files),
            *(f"{AUDIT}/{file.path}" for file in record.audit_files),
            record.dead_letter_key or "",
        }

    data, young = _unnamed_table_files(store, named, before)
    letters, young_letters = _unnamed_dead_letters(store, named, before)
    for info in (*data, *letters):
        store.delete(info.key)
    _forget_merges(store, data)
    staged = store.sweep_staged(before)
    swept = Swept(
        data_files=len(data),
        dead_letter_files=len(letters),
        staged_files=staged,
        size_bytes=sum(info.size_bytes for info in (*data, *letters)),
        kept_young=young + young_letters,
    )
    log.info(
        "Swept %d data files, %d dead-letter files and %d staged files (%s bytes); %d young ones stay.",
        swept.data_files,
        swept.dead_letter_files,
        swept.staged_files,
        f"{swept.size_bytes:,}",
        swept.kept_young,
    )
    return swept


def vacuum(
    settings: Settings,
    spec: PipelineSpec,
    *,
    retention: timedelta = timedelta(days=7),
    dry_run: bool = False,
    clock: Clock | None = None,
) -> Vacuumed:
    """Delete files that the tables let go longer than `retention` ago, except of event dates with a hold.

    Files of unpublished runs are never touched. A table's log forgets a week after it what it let go; from then
    on a file that is older than its run's publication, and in the table no more, was let go before that week.

    Args:
        settings: This installation.
        spec: The pipeline.
        retention: At least a day.
        dry_run: Only say what would go.
        clock: The time. Without it the store is asked, and files are let go at the earliest when both its clock and
            this machine's say so; a dry run writes nothing, so it asks this machine.

    Raises:
        ConfigError: `retention` is below a day: a reader of an older version would lose its files.
        DataError: A hold cannot be read: nothing was deleted.
    """
    if retention < timedelta(days=1):
        raise ConfigError(
            f"is {retention}", which="retention", fix="keep at least a day, so that open readers can finish"
        )
    store = open_store(settings, prefix=spec.prefix)
    before, kept = _ages(store, retention, dry_run, clock)
    files = size = held = 0
    for folder in (PREDICTIONS, AUDIT):
        for event_date, infos in groupby(_let_go(store, folder, kept, before), key=lambda item: item[0]):
            if is_held(holds(store), event_date):
                held += len(list(infos))
                continue
            view = table_view(store, folder)
            live = {file.path for file in view.files} if view else set()
            for _, info in infos:
                if info.key.removeprefix(f"{folder}/") in live:  # brought back a moment ago
                    continue
                if not dry_run:
                    store.delete(info.key)
                files += 1
                size += info.size_bytes
    log.info("Vacuumed %d files (%s bytes); %d are held.", files, f"{size:,}", held)
    return Vacuumed(files, size, held, dry_run)


def _ages(
    store: ObjectStore, retention: timedelta, dry_run: bool, clock: Clock | None
) -> tuple[datetime, timedelta]:
    """(moment before which the store must have stamped a file, time since the log must have let one go)."""
    if clock is not None or dry_run:
        return (clock or utc_now)() - retention, retention
    now = store_now(store)
    # Delta's library tells by this machine's clock how long ago that was.
    ahead = max(timedelta(0), utc_now() - now)
    return now - retention, retention + (ahead if ahead > _UNAVOIDABLE else timedelta(0))


def _let_go(
    store: ObjectStore, folder: str, retention: timedelta, before: datetime
) -> list[tuple[date, ObjectInfo]]:
    """(event date, file) of what a table let go that long ago, by date."""
    view = table_view(store, folder)
    if view is None:
        return []
    published: dict[str, datetime | None] = {}

    def added(run_id: str, info: ObjectInfo) -> bool:
        """Whether the file was there when its run was published: then that transaction added it."""
        if run_id not in published:
            marker = read_published(store, run_id)
            published[run_id] = datetime.fromisoformat(marker.published_at_utc) if marker else None
        moment = published[run_id]
        return moment is not None and info.modified_at_utc < moment

    live, remembered, old = {file.path for file in view.files}, view.let_go, view.let_go_before(retention)
    found: list[tuple[date, ObjectInfo]] = []
    forgotten: list[tuple[date, ObjectInfo]] = []
    for info in store.list(folder):
        path = info.key.removeprefix(f"{folder}/")
        name = FileName.parse(path)
        if name is None or path in live:
            continue
        if path in old:
            found.append((name.event_date, info))
        elif path not in remembered and not (name.merged or name.online) and info.modified_at_utc < before:
            forgotten += [(name.event_date, info)] if added(name.run_id, info) else []
    if forgotten:
        # Markers come after commits: what was published while we looked is in a view that is opened now.
        now = table_view(store, folder)
        known = {file.path for file in now.files} | now.let_go if now else set()
        found += [item for item in forgotten if item[1].key.removeprefix(f"{folder}/") not in known]
    return sorted(found, key=lambda item: (item[0], item[1].key))


def _unnamed_table_files(store: ObjectStore, named: Named, before: datetime) -> tuple[list[ObjectInfo], int]:
    """(old files that no record names, how many young ones)."""
    found: list[ObjectInfo] = []
    young = 0
    for folder in (PREDICTIONS, AUDIT):
        view = table_view(store, folder)
        live = {file.path for file in view.files} if view else set()
        told_by_log: list[ObjectInfo] = []
        for info in store.list(folder):
            path = info.key.removeprefix(f"{folder}/")
            name = FileName.parse(path)
            if name is None or path in live:
                continue
            if name.merged or name.online:
                told_by_log.append(info)
            elif info.key not in named(name.run_id, name.shard):
                found += [info] if info.modified_at_utc < before else []
                young += info.modified_at_utc >= before
        some, few = _never_committed(store, folder, view, told_by_log, before)
        found += some
        young += few
    return found, young


def _never_committed(
    store: ObjectStore, folder: str, view: TableView | None, written: list[ObjectInfo], before: datetime
) -> tuple[list[ObjectInfo], int]:
    """(old merged or online files that the table has never held, how many young ones).

    The sweep first says in the table's log what it condemns: a merge or fold that is still under way after so long, for
    example because its process was paused, finds that and does not commit. Files that committed before are seen
    in the table, or among those that it let go, which `vacuum` ages out while the log remembers them.
    """
    let_go = view.let_go if view else frozenset()
    standing = holds(store)  # the log forgets what it let go: on a held date nobody can tell after a week
    unknown = [
        info
        for info in written
        if (path := info.key.removeprefix(f"{folder}/")) not in let_go
        and (name := FileName.parse(path)) is not None
        and not is_held(standing, name.event_date)
    ]
    old = [info for info in unknown if info.modified_at_utc < before]
    if not old:
        return [], len(unknown)
    condemned = int(before.timestamp() * 1000)

    def decide(now: TableView) -> Change | None:
        if (now.transaction_version(SWEEP) or 0) >= condemned:
            return None
        return Change(transaction=(SWEEP, condemned), note={"penstock_sweep": iso_utc(before)})

    if view is not None:
        commit_change(store, folder, schema=lambda: pa.schema([]), decide=decide)
        view = table_view(store, folder)
    known = {file.path for file in view.files} | view.let_go if view else set()
    return [info for info in old if info.key.removeprefix(f"{folder}/") not in known], len(unknown) - len(old)


def _forget_merges(store: ObjectStore, swept: list[ObjectInfo]) -> None:
    """Delete the records of merges none of whose files is left: what they name was never in a table."""
    for run_id, attempt in {
        (name.run_id, name.attempt)
        for info in swept
        if (name := FileName.parse("/".join(info.key.split("/")[-2:]))) and name.merged
    }:
        record = read_merge_record(store, run_id, attempt)
        if record is not None and not any(
            store.exists(f"{record.folder}/{merge.output.path}") for merge in record.merges
        ):
            store.delete(merge_key(run_id, attempt))


def _unnamed_dead_letters(store: ObjectStore, named: Named, before: datetime) -> tuple[list[ObjectInfo], int]:
    found: list[ObjectInfo] = []
    young = 0
    for info in store.list("runs"):
        match = _DEAD_LETTER.fullmatch(info.key)
        if match is None or info.key in named(match["run_id"], int(match["shard"])):
            continue
        if info.modified_at_utc < before:
            found.append(info)
        else:
            young += 1
    return found, young
