"""Where backups lie: contents once each, under their digests, and a manifest for each backup.

objects/<first two digits>/<sha256>    content, shared by all backups that hold it
backups/<backup_id>.json               a finished backup; its id ends in the digest of this very record
begun/<backup_id>.json                 a backup that was begun and has not ended
removing/<backup_id>.json              a backup that is being removed

Of a backup that is made and one that is removed at the same moment, one gives way: each writes its note first and looks for
the other's then. So no content goes that a backup counted on.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from tasks.core.clock import iso_utc
from tasks.core.errors import ConfigError, DataError, DigestMismatch, NotFound, PenstockError, TransientError
from tasks.core.ids import canonical_json, digest_bytes, digest_file
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.recovery.manifest import KeptObject, Manifest

_BACKUPS, _BEGUN, _REMOVING, _OBJECTS = "backups", "begun", "removing", "objects"
_DIGITS = 16
_ID = re.compile(rf"\d{{8}}T\d{{9}}Z-[0-9a-f]{{{_DIGITS}}}")
LEFT_BEHIND = timedelta(days=1)
"""What a killed call left half-written is older than this; no call writes at one file for so long."""


@dataclass(frozen=True)
class BackupSummary(JsonRecord):
    """One backup of a place."""

    backup_id: str
    cut_at_utc: str | None
    """None, as all that follows, when the manifest cannot be read."""
    objects: int | None
    size_bytes: int | None
    schema: str | None
    store: str | None
    problem: str | None
    """Why the manifest cannot be read; None when it can."""


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
        ConfigError: It lies in the store, or holds it; or it is neither a folder nor on S3.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        if "://" in url and not re.match(r"s3://[^/]", url):
            raise ConfigError(
                "is neither a folder nor s3://bucket/prefix", which=url, fix="name one of the two for backups"
            )
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
        """Say that a backup has begun, so that no other call removes what it counts on; returns what `end` takes.

        Raises:
            TransientError: A backup is being removed here.
        """
        self._store.sweep_staged(now - LEFT_BEHIND)
        name = f"{_stamp(now)}-{secrets.token_hex(_DIGITS // 2)}"
        self._store.put_exclusive(_begun_key(name), canonical_json({"begun_at_utc": iso_utc(now)}))
        if removing := self._names(_REMOVING):
            self.end(name)
            raise TransientError(
                f"a backup is being removed here: {', '.join(removing)}",
                which=self.url,
                fix=f"wait for it; when its process has died, `penstock backup remove {self.url} {removing[0]}` ends it",
            )
        return name

    def end(self, begun: str) -> None:
        """The backup has ended, well or not."""
        self._store.delete(_begun_key(begun))

    def finish(self, manifest: Manifest, begun: str) -> str:
        """Make it a backup; returns its id.

        Raises:
            TransientError: Somebody took it for dead meanwhile, so what it counts on may have been removed.
        """
        data = canonical_json(manifest.to_json())
        backup_id = (
            f"{_stamp(datetime.fromisoformat(manifest.finished_at_utc))}-{digest_bytes(data)[:_DIGITS]}"
        )
        self._store.put_exclusive(_manifest_key(backup_id), data)
        # Looked for last: whoever has asked while the note was there removed nothing, and who asks later sees the manifest.
        if not self._store.exists(_begun_key(begun)):
            self._store.delete(_manifest_key(backup_id))
            raise TransientError(
                f"the note of the backup {begun} was removed while it was being made, and others may have removed what it holds",
                which=self.url,
                fix="run it again: what is there is found",
            )
        return backup_id

    def ids(self) -> list[str]:
        """Backups, oldest first."""
        return self._names(_BACKUPS)

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
        """Every backup, oldest first."""
        for backup_id in self.ids():
            try:
                made = self.manifest(backup_id)
            except (DigestMismatch, DataError) as error:
                yield BackupSummary(backup_id, None, None, None, None, None, error.what)
            else:
                yield BackupSummary(
                    backup_id,
                    made.cut_at_utc,
                    len(made.everything),
                    made.size_bytes,
                    made.schema,
                    made.store,
                    None,
                )

    def remove(self, backup_id: str) -> RemovedBackup:
        """Delete a backup, and the contents that no other one holds; of a begun one only the note that it was begun.

        A call that dies is finished by the next one.

        Raises:
            NotFound: There is no such backup.
            TransientError: Another backup is being made here.
            DigestMismatch, DataError: Nobody can tell what another backup holds; nothing was removed.
        """
        if self._store.exists(_begun_key(backup_id)):
            self.end(backup_id)
            return RemovedBackup(backup_id, 0, 0)
        note = f"{_REMOVING}/{backup_id}.json"
        went_on = self._store.exists(note)
        if backup_id not in self.ids() and not went_on:
            self.manifest(backup_id)  # says which there are
        self._store.put(note, canonical_json({}))
        try:
            if begun := self._names(_BEGUN):
                raise TransientError(
                    f"a backup is being made here: {', '.join(begun)}",
                    which=self.url,
                    fix=f"wait for it; when its process has died, `penstock backup remove {self.url} NAME` takes its note away",
                )
            needed = self._held_by_others(backup_id)
        except PenstockError:
            if not went_on:
                self._store.delete(note)
            raise
        self._store.delete(_manifest_key(backup_id))
        freed = {sha256: size for sha256, size in self.known().items() if sha256 not in needed}
        for sha256 in freed:
            self._store.delete(_content_key(sha256))
        self._store.delete(note)
        return RemovedBackup(backup_id, len(freed), sum(freed.values()))

    def _held_by_others(self, backup_id: str) -> set[str]:
        held: set[str] = set()
        for other in self.ids():
            if other == backup_id:
                continue
            try:
                held |= {kept.sha256 for kept in self.manifest(other).everything}
            except NotFound:  # it is being removed as well
                continue
            except DigestMismatch as error:
                raise DigestMismatch(
                    f"nothing was removed, for what this other backup holds cannot be told: {error.what}",
                    which=error.which,
                    fix=f"remove the damaged one first: `penstock backup remove {self.url} {other}`",
                ) from error
        return held

    def _names(self, folder: str) -> list[str]:
        """What has the name of a backup there, in order."""
        names = (info.key.rsplit("/", 1)[-1].removesuffix(".json") for info in self._store.list(folder))
        return [name for name in names if _ID.fullmatch(name)]

    def last(self) -> Manifest | None:
        """The newest backup whose manifest is whole; None when there is none."""
        for backup_id in reversed(self.ids()):
            with suppress(DigestMismatch):
                return self.manifest(backup_id)
        return None


def _refuse_overlap(store_url: str, at: str) -> None:
    ours, theirs = (
        f"{(url if '://' in url else str(Path(url).resolve())).rstrip('/')}/" for url in (store_url, at)
    )
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


def _begun_key(name: str) -> str:
    return f"{_BEGUN}/{name}.json"


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z"
