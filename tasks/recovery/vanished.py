"""What a backup needs of the objects that upkeep deleted while they were being copied, told from the backup alone.

Files of tables are looked for by `tasks.recovery.tables`. A date of the archive is a chain of records that each name a file: a
newer one may be too young for the backup, and the file of the one that is in it gone already.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from tasks.recovery.manifest import KeptObject, Manifest
from tasks.recovery.place import BackupPlace

_ARCHIVE_FILE = re.compile(r"(?P<pipeline>.+)/(?P<date>archive/audit/\d{4}-\d\d-\d\d)/[^/]+\.parquet")
_VALIDATION = re.compile(r"/validation/[^/]+/[^/]+$")
"""Moved to `history/` when a changed gate looks at the snapshot again: it is in neither place then."""


def vanished_problems(place: BackupPlace, manifest: Manifest, scratch: Path) -> Iterator[str]:
    """Objects that were deleted while they were being copied and that others of the backup count on."""
    for key in manifest.vanished:
        of_archive = _ARCHIVE_FILE.fullmatch(key)
        if of_archive:
            folder = f"{of_archive['pipeline']}/{of_archive['date']}"
            if _file_of(place, _newest_record(manifest, folder), scratch) == key.removeprefix(
                f"{of_archive['pipeline']}/"
            ):
                yield f"{key} is not in the backup, and its date's record names it"
        elif _VALIDATION.search(key):
            yield f"{key} is not in the backup, and it was evidence"


def _newest_record(manifest: Manifest, folder: str) -> KeptObject | None:
    records = (kept for kept in manifest.objects if kept.key.startswith(f"{folder}/record-"))
    return max(records, key=lambda kept: kept.key, default=None)


def _file_of(place: BackupPlace, record: KeptObject | None, scratch: Path) -> str | None:
    """The file that a record of the archive names; None for a date that is expired, or has no record yet."""
    if record is None:
        return None
    file = scratch / secrets.token_hex(8)
    place.fetch(record, file)
    found = json.loads(file.read_bytes())
    file.unlink()
    return str(found["key"]) if found["state"] == "archived" else None
