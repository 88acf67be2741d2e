"""Bringing a backup back into an empty installation: data, then records, then tables' logs, then the database.

In that order a restore that dies has made nothing visible that is not whole; called again it goes on where it was.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tasks.core.errors import ConfigError
from tasks.core.ids import canonical_json, digest_file
from tasks.core.object_store import AlreadyExists, LocalStore, ObjectStore, open_store, probe
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.recovery.backing_up import WORKERS, scratch_folder
from tasks.recovery.cut import LOG_ENTRY, RESTORING, is_record, unfinished_restore
from tasks.recovery.manifest import METADATA, KeptObject, Manifest
from tasks.recovery.place import BackupPlace

PARTS = ("store", "online", "metadata")
"""What can be restored, in that order."""
_DATA, _RECORD, _LOG = range(3)
_NO_ROWS = (".writer", ".lock", ".retries", "-shm")
"""Files beside segments that stay when all rows are folded."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestoreReport(JsonRecord):
    """What one call brought back."""

    backup_id: str
    cut_at_utc: str
    parts: tuple[str, ...]
    objects: int
    """Of the parts asked for."""
    found: int
    """Of these, there already from an earlier call."""
    size_bytes: int
    metadata_rows: int | None
    wall_s: float


def restore(
    settings: Settings, at: str, backup_id: str | None = None, *, parts: Collection[str] = PARTS
) -> RestoreReport:
    """Bring a backup back; without an id the newest one. Each part must be empty, or hold what an earlier call brought.

    The metadata database may be of another kind than the one that was backed up, and is migrated to this release.

    Raises:
        NotFound: There is no such backup.
        ConfigError: A part is not empty, or the store does not hold exclusive creates.
        DigestMismatch: The backup is damaged, or the database gave back other rows; what was being brought is not there.
        ServiceUnavailable, StoreUnavailable, AccessDenied, DiskFull: Something does not answer; run it again.
    """
    began = time.monotonic()
    place = BackupPlace(settings, at)
    backup_id = backup_id or place.newest()
    manifest = place.manifest(backup_id)
    store, hot = open_store(settings), LocalStore(settings.home / "hot")
    with scratch_folder(settings) as scratch:
        database = _database(settings, place, manifest, scratch) if "metadata" in parts else None
        if "online" in parts:
            _refuse_others(hot, manifest.hot)
        found = 0
        if "store" in parts:
            _claim(store, backup_id)
            probe(store)
            found += _bring(place, store, manifest.objects, scratch)
        if "online" in parts:
            found += _bring(place, hot, manifest.hot, scratch)
        rows = database.bring() if database else None
    if "store" in parts:
        store.delete(RESTORING)
    brought = [
        kept
        for part, some in (
            ("store", manifest.objects),
            ("online", manifest.hot),
            ("metadata", (manifest.metadata,)),
        )
        if part in parts
        for kept in some
    ]
    return RestoreReport(
        backup_id=backup_id,
        cut_at_utc=manifest.cut_at_utc,
        parts=tuple(part for part in PARTS if part in parts),
        objects=len(brought),
        found=found,
        size_bytes=sum(kept.size_bytes for kept in brought),
        metadata_rows=rows,
        wall_s=round(time.monotonic() - began, 3),
    )


def _claim(store: ObjectStore, backup_id: str) -> None:
    """Refuse a store that is not empty, but for an unfinished restore of this backup."""
    other = unfinished_restore(store)
    if other is None:
        first = next((info.key for info in store.list() if not info.key.startswith("_probe/")), None)
        if first is not None:
            raise ConfigError(
                f"is not empty: it holds {first}",
                which=store.url(),
                fix="point PENSTOCK_STORE at an empty folder or prefix; nothing is ever overwritten",
            )
        try:
            store.put_exclusive(RESTORING, canonical_json({"backup_id": backup_id}))
        except AlreadyExists:  # by another restore, this very moment
            _claim(store, backup_id)
        return
    if other != backup_id:
        raise ConfigError(
            f"holds an unfinished restore of backup {other}",
            which=store.url(),
            fix=f"finish that one, or empty the store and restore {backup_id}",
        )


def _refuse_others(hot: LocalStore, expected: tuple[KeptObject, ...]) -> None:
    """Refuse a folder with online rows that are not those of the backup: a segment of the same name may have more."""
    digests = {kept.key: kept.sha256 for kept in expected}
    for info in hot.list():
        if info.key not in digests and (
            info.key.endswith(_NO_ROWS) or (info.key.endswith("-wal") and not info.size_bytes)
        ):
            continue
        if digests.get(info.key) != digest_file(Path(hot.url(info.key))):
            raise ConfigError(
                f"holds online rows already: {info.key}",
                which=hot.url(),
                fix="end what serves on this machine and fold them (`penstock audit fold`), or use another PENSTOCK_HOME",
            )


def _bring(place: BackupPlace, store: ObjectStore, objects: tuple[KeptObject, ...], scratch: Path) -> int:
    """Write what is not there; returns how many were. An object of a store is whole or not there."""
    there = {info.key: info.size_bytes for info in store.list()}
    missing = [kept for kept in objects if there.get(kept.key) != kept.size_bytes]
    log.info("Bringing %s of %s objects to %s.", f"{len(missing):,}", f"{len(objects):,}", store.url())

    def bring(kept: KeptObject) -> None:
        file = scratch / secrets.token_hex(8)
        place.fetch(kept, file)
        store.put_file(kept.key, file)
        file.unlink()

    for rank in (_DATA, _RECORD):
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(bring, [kept for kept in missing if _rank(kept.key) == rank]))
    for kept in sorted((kept for kept in missing if _rank(kept.key) == _LOG), key=lambda kept: kept.key):
        bring(kept)
    return len(objects) - len(missing)


def _rank(key: str) -> int:
    return _LOG if LOG_ENTRY.match(key) else _RECORD if is_record(key) else _DATA


def _database(settings: Settings, place: BackupPlace, manifest: Manifest, scratch: Path) -> _Database:
    file = scratch / METADATA
    place.fetch(manifest.metadata, file)
    return _Database(settings, file)


class _Database:
    """The metadata database of a backup, and the one that it goes to. Refused when that holds other rows."""

    def __init__(self, settings: Settings, file: Path) -> None:
        from tasks.metadata.copying import plan_copy

        self._source, self._target = f"sqlite:///{file}", settings.metadata_url
        self._there = False
        try:
            plan_copy(self._source, self._target)
        except ConfigError:
            if not self._is_brought():
                raise
            self._there = True

    def bring(self) -> int:
        """Copy all rows in one transaction, unless an earlier call has; returns how many there are."""
        from tasks.metadata.checking import check_metadata
        from tasks.metadata.copying import copy_metadata

        if self._there:
            return check_metadata(self._source).rows
        return copy_metadata(self._source, self._target).rows

    def _is_brought(self) -> bool:
        from tasks.metadata.checking import check_metadata

        return check_metadata(self._source).tables == check_metadata(self._target).tables
