"""Where backups lie: contents once each, under their digests, and a manifest for each backup.

objects/<first two digits>/<sha256>    content, shared by all backups that hold it
backups/<backup_id>.json               a finished backup; its id ends in the digest of this very record
begun/<backup_id>.json                 a backup that was begun and has not ended
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tasks.core.clock import iso_utc
from tasks.core.errors import ConfigError, DataError, DigestMismatch, NotFound, TransientError
from tasks.core.ids import canonical_json, digest_bytes, digest_file
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.recovery.manifest import KeptObject, Manifest

_BACKUPS, _BEGUN, _OBJECTS = "backups", "begun", "objects"
_DIGITS = 16


@dataclass(frozen=True)
class BackupSummary(JsonRecord):
    """One backup of a place."""

    backup_id: str
    cut_at_utc: str
    objects: int
    size_bytes: int
    schema: str | None
    store: str


@dataclass(frozen=True)
class RemovedBackup(JsonRecord):
    """What removing a backup freed."""

    backup_id: str
    objects: int
    size_bytes: int


class BackupPlace:
    """A folder or `s3://bucket/prefix` that holds backups.

    Args:
        settings: Endpoint and region of S3 are those of the installation.
        url: The place. It must not lie in the installation's own store.

    Raises:
        ConfigError: It lies in the store, or holds it.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        at = url if "://" in url else str(Path(url).absolute())
        _refuse_overlap(settings.store_url, at)
        self._store: ObjectStore = open_store(replace(settings, store_url=at))
        self.url = self._store.url()

    def known(self) -> dict[str, int]:
        """Digest and size of every content that is there."""
        return {info.key.rsplit("/", 1)[-1]: info.size_bytes for info in self._store.list(_OBJECTS)}

    def keep(self, path: Path, sha256: str) -> None:
        """Keep a file's content; a second time changes nothing."""
        self._store.put_file(_content_key(sha256), path)

    def fetch(self, kept: KeptObject, path: Path) -> None:
        """Write a content to `path`, checked.

        Raises:
            DigestMismatch: It is damaged or gone.
        """
        try:
            self._store.get_file(_content_key(kept.sha256), path)
        except NotFound as error:
            raise _damaged(kept, self._store, "is gone") from error
        if (found := digest_file(path)) != kept.sha256:
            path.unlink()
            raise _damaged(kept, self._store, f"has SHA-256 {found[:16]}, and {kept.sha256[:16]} was kept")

    def begin(self, now: datetime) -> str:
        """Say that a backup has begun, so that no other call removes what it counts on; returns what `end` takes."""
        name = f"{_stamp(now)}-{secrets.token_hex(_DIGITS // 2)}"
        self._store.put_exclusive(f"{_BEGUN}/{name}.json", canonical_json({"begun_at_utc": iso_utc(now)}))
        return name

    def end(self, begun: str) -> None:
        """The backup has ended, well or not."""
        self._store.delete(f"{_BEGUN}/{begun}.json")

    def finish(self, manifest: Manifest) -> str:
        """Make it a backup; returns its id."""
        data = canonical_json(manifest.to_json())
        backup_id = (
            f"{_stamp(datetime.fromisoformat(manifest.finished_at_utc))}-{digest_bytes(data)[:_DIGITS]}"
        )
        self._store.put_exclusive(_manifest_key(backup_id), data)
        return backup_id

    def ids(self) -> list[str]:
        """Backups, oldest first."""
        return [_name(info.key) for info in self._store.list(_BACKUPS)]

    def newest(self) -> str:
        """The newest backup. Raises `NotFound` when there is none."""
        if not (ids := self.ids()):
            raise NotFound(
                "holds no backup",
                which=self.url,
                fix="`penstock backup create` makes one; or correct the place",
            )
        return ids[-1]

    def manifest(self, backup_id: str) -> Manifest:
        """A backup.

        Raises:
            NotFound: There is no such backup.
            DigestMismatch: Its manifest is damaged.
            DataError: It was made by a newer release.
        """
        key = _manifest_key(backup_id)
        try:
            data = self._store.get(key)
        except NotFound as error:
            raise NotFound(
                "is not a backup here",
                which=f"{self.url} {backup_id}",
                fix=f"use one of: {', '.join(self.ids()) or 'none'}",
            ) from error
        if digest_bytes(data)[:_DIGITS] != backup_id.rsplit("-", 1)[-1]:
            raise DigestMismatch(
                "the manifest is not the one that was written: this backup cannot be trusted",
                which=self._store.url(key),
                fix="use another backup; `penstock backup list` shows them",
            )
        raw = json.loads(data)
        if raw["protocol"] != 1:
            raise DataError(
                f"was made by a newer release (protocol {raw['protocol']})",
                which=f"backup {backup_id}",
                fix="use that release",
            )
        return Manifest.from_json(raw)

    def summaries(self) -> Iterator[BackupSummary]:
        """Every backup, oldest first; a damaged manifest raises."""
        for backup_id in self.ids():
            made = self.manifest(backup_id)
            yield BackupSummary(
                backup_id, made.cut_at_utc, len(made.everything), made.size_bytes, made.schema, made.store
            )

    def remove(self, backup_id: str) -> RemovedBackup:
        """Delete a backup, and the contents that no other one holds; of a begun one only the note that it was begun.

        Raises:
            NotFound: There is no such backup.
            TransientError: Another backup is being made here.
        """
        if self._store.exists(f"{_BEGUN}/{backup_id}.json"):
            self.end(backup_id)
            return RemovedBackup(backup_id, 0, 0)
        if begun := [_name(info.key) for info in self._store.list(_BEGUN)]:
            raise TransientError(
                f"a backup is being made here: {', '.join(begun)}",
                which=self.url,
                fix="wait for it; when its process has died, `penstock backup remove` its name first",
            )
        if backup_id not in self.ids():
            self.manifest(backup_id)  # says which there are
        self._store.delete(_manifest_key(backup_id))
        needed = {kept.sha256 for other in self.ids() for kept in self.manifest(other).everything}
        freed = {sha256: size for sha256, size in self.known().items() if sha256 not in needed}
        for sha256 in freed:
            self._store.delete(_content_key(sha256))
        return RemovedBackup(backup_id, len(freed), sum(freed.values()))

    def last(self) -> Manifest | None:
        """The newest backup whose manifest is whole; None when there is none."""
        for backup_id in reversed(self.ids()):
            with suppress(DigestMismatch):
                return self.manifest(backup_id)
        return None


def _refuse_overlap(store_url: str, at: str) -> None:
    ours, theirs = (f"{url.rstrip('/')}/" for url in (store_url, at))
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise ConfigError(
            f"overlaps with the installation's own store {store_url}",
            which=at,
            fix="name a place of its own, best on another disk or in another account",
        )


def _damaged(kept: KeptObject, store: ObjectStore, what: str) -> DigestMismatch:
    return DigestMismatch(
        f"{what}: the backup's copy of {kept.key} is damaged",
        which=store.url(_content_key(kept.sha256)),
        fix="use another backup. While the installation still has the object: delete this file and make a new backup",
    )


def _content_key(sha256: str) -> str:
    return f"{_OBJECTS}/{sha256[:2]}/{sha256}"


def _manifest_key(backup_id: str) -> str:
    return f"{_BACKUPS}/{backup_id}.json"


def _name(key: str) -> str:
    return key.rsplit("/", 1)[-1].removesuffix(".json")


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z"
