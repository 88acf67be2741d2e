"""Remove what crashes and losers left behind, and what Delta no longer needs. Safe beside running work."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from tasks.core.clock import Clock, utc_now
from tasks.core.delta import FileName, table_view
from tasks.core.errors import ConfigError
from tasks.core.object_store import ObjectInfo, ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.records import AUDIT, PREDICTIONS, ShardRecord, read_shard_record

log = logging.getLogger(__name__)

Named = Callable[[str, int], set[str]]
"""(run id, shard) -> keys of the files that the shard's record names."""

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


def sweep_orphans(
    settings: Settings, spec: PipelineSpec, *, older_than: timedelta, clock: Clock = utc_now
) -> Swept:
    """Delete files that no shard record names: of attempts that died, and of losers that could not clean up.

    A file's name says which shard record decides about it, so a sweep reads only the records of files that
    are in no table. Files in the table, and files it let go (which `vacuum` ages out), are left alone.

    Args:
        settings: This installation.
        spec: The pipeline.
        older_than: Must exceed twice `inference.shard_timeout_s`: an attempt may not commit after that time,
            so what is older and unnamed stays unnamed.
        clock: The time.

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
    before = clock() - older_than
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


def vacuum(settings: Settings, spec: PipelineSpec, *, retention: timedelta = timedelta(days=7)) -> int:
    """Delete files that the tables let go longer than `retention` ago; returns how many.

    Only files with a tombstone in the log are looked at, so files of unpublished runs are never touched.

    Raises:
        ConfigError: `retention` is below a day: a reader of an older version would lose its files.
    """
    if retention < timedelta(days=1):
        raise ConfigError(
            f"is {retention}", which="retention", fix="keep at least a day, so that open readers can finish"
        )
    from deltalake import DeltaTable

    store = open_store(settings, prefix=spec.prefix)
    count = 0
    for folder in (PREDICTIONS, AUDIT):
        if table_view(store, folder) is None:
            continue
        table = DeltaTable(store.url(folder), storage_options=store.storage_options() or None)
        hours = int(retention.total_seconds() // 3600)
        gone = table.vacuum(
            retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=False
        )
        count += len(gone)
    return count


def _unnamed_table_files(store: ObjectStore, named: Named, before: datetime) -> tuple[list[ObjectInfo], int]:
    """(old files that no record names, how many young ones)."""
    found: list[ObjectInfo] = []
    young = 0
    for folder in (PREDICTIONS, AUDIT):
        view = table_view(store, folder)
        live = {file.path for file in view.files} if view else set()
        for info in store.list(folder):
            path = info.key.removeprefix(f"{folder}/")
            name = FileName.parse(path)
            if name is None or path in live or info.key in named(name.run_id, name.shard):
                continue
            if info.modified_at_utc < before:
                found.append(info)
            else:
                young += 1
    return found, young


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
