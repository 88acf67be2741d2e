"""Is a backup whole? Every content is read and its digest compared; the database and the tables' logs are opened."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tasks.core.errors import DigestMismatch
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.recovery.backing_up import WORKERS, scratch_folder
from tasks.recovery.manifest import METADATA, KeptObject, Manifest
from tasks.recovery.place import BackupPlace
from tasks.recovery.tables import table_problems
from tasks.recovery.vanished import vanished_problems


@dataclass(frozen=True)
class BackupCheck(JsonRecord):
    """What was found in a backup."""

    backup_id: str
    place: str
    cut_at_utc: str
    objects: int
    size_bytes: int
    tables: dict[str, int]
    problems: tuple[str, ...]
    """Empty: whole."""


def verify_backup(settings: Settings, at: str, backup_id: str | None = None) -> BackupCheck:
    """Read a backup whole; without an id the newest one.

    Raises:
        NotFound: There is no such backup.
        DigestMismatch: Its manifest is damaged.
    """
    place = BackupPlace(settings, at)
    backup_id = backup_id or place.newest()
    manifest = place.manifest(backup_id)
    with scratch_folder(settings) as scratch:
        problems = tuple(_problems(place, manifest, scratch))
    return BackupCheck(
        backup_id=backup_id,
        place=place.url,
        cut_at_utc=manifest.cut_at_utc,
        objects=len(manifest.everything),
        size_bytes=manifest.size_bytes,
        tables=manifest.tables,
        problems=problems,
    )


def _problems(place: BackupPlace, manifest: Manifest, scratch: Path) -> Iterator[str]:
    contents = {kept.sha256: kept for kept in reversed(manifest.everything)}
    with ThreadPoolExecutor(WORKERS) as pool:
        damaged = [
            said for said in pool.map(lambda kept: _damage(place, kept, scratch), contents.values()) if said
        ]
    yield from damaged
    if damaged:
        return  # what is opened below would only say the same again
    yield from table_problems(place, manifest, scratch)
    yield from vanished_problems(place, manifest, scratch)
    yield from _database_problems(place, manifest, scratch)


def _damage(place: BackupPlace, kept: KeptObject, scratch: Path) -> str | None:
    file = scratch / secrets.token_hex(8)
    try:
        place.fetch(kept, file)
    except DigestMismatch as error:
        return f"{error.which} {error.what}"
    file.unlink()
    return None


def _database_problems(place: BackupPlace, manifest: Manifest, scratch: Path) -> Iterator[str]:
    from tasks.metadata.checking import check_metadata
    from tasks.metadata.schema import HEAD

    file = scratch / METADATA
    place.fetch(manifest.metadata, file)
    if manifest.schema == HEAD:
        yield from check_metadata(f"sqlite:///{file}").problems
        return
    with closing(sqlite3.connect(file)) as connection:
        said = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if said != "ok":
        yield f"SQLite's integrity check: {said}"
