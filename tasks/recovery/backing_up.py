"""Making a backup while others write: database first, online rows next, then the store as it was at one moment.

A row of the database is written after the objects that it names, so the store that is copied after it has them. An
online row leaves its segment after it is in a table, so the tables that are copied after the segments have it.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import ConfigError, NotFound, StoreUnavailable, TransientError, disk_error
from tasks.core.ids import digest_file
from tasks.core.object_store import ObjectInfo, ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.recovery.cut import cut, unfinished_restore
from tasks.recovery.manifest import METADATA, KeptObject, Manifest
from tasks.recovery.place import LEFT_BEHIND, BackupPlace
from tasks.recovery.tables import table_problems
from tasks.recovery.vanished import vanished_problems

WORKERS = 8
"""Objects that are copied at once."""
_SCRATCH = "recovery-"
_SEGMENT = ".db"
_ONLINE = (_SEGMENT, ".retries", ".damaged")
"""Online rows, which of them were folded, and segments that were set aside; locks and passing files are left out."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackupReport(JsonRecord):
    """What one call copied."""

    backup_id: str
    place: str
    cut_at_utc: str
    objects: int
    """In the backup, the metadata database and online segments with them."""
    size_bytes: int
    new_objects: int
    """Contents that the place did not hold before."""
    new_bytes: int
    schema: str | None
    online_segments: int
    tables: dict[str, int]
    vanished: int
    wall_s: float


def back_up(settings: Settings, to: str, *, clock: Clock = utc_now) -> BackupReport:
    """Copy the installation to `to`. Writers, readers and upkeep go on meanwhile.

    A call that dies leaves no backup, and what it copied is found by the next.

    Raises:
        NotFound: There is no metadata database yet.
        ConfigError: The place lies in the store, or a restore into the store has not ended.
        TransientError: Upkeep deleted files of a table or of the archive while they were being copied, or a backup is
            being removed at the place: run it again.
        ServiceUnavailable, StoreUnavailable, AccessDenied, DiskFull: Something does not answer or has no space.
    """
    begun_at = clock()
    place = BackupPlace(settings, to)
    begun = place.begin(begun_at)
    try:
        with scratch_folder(settings) as scratch:
            return _backed_up(settings, place, scratch, begun, begun_at, clock)
    finally:
        place.end(begun)


@contextmanager
def scratch_folder(settings: Settings) -> Iterator[Path]:
    """A folder for copies in passing; it goes away, and so does what calls that were killed have left."""
    try:
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        _sweep(settings.cache_dir)
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=settings.cache_dir))
    except OSError as error:
        raise disk_error(error, str(settings.cache_dir)) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(folder: Path) -> None:
    for left in folder.glob(f"{_SCRATCH}*"):
        try:
            age_s = time.time() - left.stat().st_mtime
        except FileNotFoundError:  # its call has ended
            continue
        if age_s > LEFT_BEHIND.total_seconds():
            shutil.rmtree(left, ignore_errors=True)


def _refuse_half(source: ObjectStore) -> None:
    """Refuse a store that a restore has not filled yet: what is still to come would be missing, and nobody would know."""
    if other := unfinished_restore(source):
        raise ConfigError(
            f"holds an unfinished restore of backup {other}: a backup would lack what is not there yet",
            which=source.url(),
            fix="run that `penstock backup restore` again, which ends it; then make the backup",
        )


def _backed_up(
    settings: Settings, place: BackupPlace, scratch: Path, begun: str, begun_at: datetime, clock: Clock
) -> BackupReport:
    from tasks.metadata.database import Database
    from tasks.metadata.snapshot import snapshot_metadata

    source = open_store(settings)
    _refuse_half(source)
    copier = _Copier(place, scratch)
    file = scratch / METADATA
    schema = snapshot_metadata(settings.metadata_url, file)
    metadata = copier.keep_file(METADATA, file, iso_utc(begun_at))
    hot = tuple(copier.segments(settings.home / "hot"))
    now = cut(source)
    log.info("Copying %s objects of %s as of %s.", f"{len(now.objects):,}", source.url(), iso_utc(now.at))
    with ThreadPoolExecutor(WORKERS) as pool:
        copied = list(pool.map(lambda info: copier.keep(source, info), now.objects))
    manifest = Manifest(
        begun_at_utc=iso_utc(begun_at),
        cut_at_utc=iso_utc(now.at),
        finished_at_utc=iso_utc(clock()),
        store=source.url(),
        database=Database(settings.metadata_url).shown_url,
        schema=schema,
        metadata=metadata,
        hot=hot,
        objects=tuple(kept for kept in copied if kept is not None),
        tables=now.tables,
        vanished=tuple(info.key for info, kept in zip(now.objects, copied, strict=True) if kept is None),
    )
    problems = [
        *table_problems(place, manifest, scratch),
        *vanished_problems(place, manifest, scratch),
    ]
    if problems:
        raise TransientError(
            "what upkeep changed while it was copied is not whole:\n  " + "\n  ".join(problems),
            which=source.url(),
            fix="run it again: what was copied is found. If it comes back, `penstock inference verify` the runs",
        )
    backup_id = place.finish(manifest, begun)
    return BackupReport(
        backup_id=backup_id,
        place=place.url,
        cut_at_utc=manifest.cut_at_utc,
        objects=len(manifest.everything),
        size_bytes=manifest.size_bytes,
        new_objects=copier.new_objects,
        new_bytes=copier.new_bytes,
        schema=schema,
        online_segments=len(hot),
        tables=manifest.tables,
        vanished=len(manifest.vanished),
        wall_s=round((clock() - begun_at).total_seconds(), 3),
    )


class _Copier:
    """Brings contents to a place that it does not hold yet."""

    def __init__(self, place: BackupPlace, scratch: Path) -> None:
        self._place = place
        self._scratch = scratch
        self._known = place.known()
        last = place.last()
        self._last = {kept.key: kept for kept in last.objects} if last else {}
        self.new_objects = 0
        self.new_bytes = 0

    def keep(self, source: ObjectStore, info: ObjectInfo) -> KeptObject | None:
        """Keep one object of the store; None when it was deleted meanwhile."""
        modified = info.modified_at_utc.astimezone(UTC).isoformat()
        before = self._last.get(info.key)
        if (
            before
            and (before.size_bytes, before.modified_at_utc) == (info.size_bytes, modified)
            and self._has(before)
        ):
            return before  # as in the backup before: not read again
        file = self._scratch / secrets.token_hex(8)
        try:
            source.get_file(info.key, file)
        except NotFound:
            return None
        try:
            return self.keep_file(info.key, file, modified)
        finally:
            file.unlink()

    def keep_file(self, key: str, file: Path, modified: str) -> KeptObject:
        """Keep a local file as the object `key`."""
        kept = KeptObject(key, file.stat().st_size, digest_file(file), modified)
        if not self._has(kept):
            self._place.keep(file, kept.sha256)
            self._known[kept.sha256] = kept.size_bytes
            self.new_objects += 1
            self.new_bytes += kept.size_bytes
        return kept

    def segments(self, folder: Path) -> Iterator[KeptObject]:
        """Keep online rows that are not folded yet; a segment that is folded meanwhile is in the table."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.suffix not in _ONLINE:
                continue
            file = self._scratch / secrets.token_hex(8)
            try:
                modified = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
                if path.suffix == _SEGMENT:
                    _copy_segment(path, file)
                else:
                    shutil.copyfile(path, file)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise disk_error(error, f"{path} or {file}") from error
            yield self.keep_file(path.relative_to(folder).as_posix(), file, modified)
            file.unlink()

    def _has(self, kept: KeptObject) -> bool:
        return self._known.get(kept.sha256) == kept.size_bytes


def _copy_segment(path: Path, file: Path) -> None:
    """By SQLite's online backup: with what stands in its write-ahead log. Raises `FileNotFoundError`."""
    try:
        with (
            closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=10)) as reading,
            closing(sqlite3.connect(file)) as writing,
        ):
            reading.backup(writing)
    except sqlite3.Error as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise StoreUnavailable(
            f"online rows cannot be copied to {file.parent}: {error}",
            which=str(path),
            fix="free space there, or fold them first (`penstock audit fold`)",
        ) from error
