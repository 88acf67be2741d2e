"""The archive's records: one event date, one data file, a chain of generations made by exclusive create.

archive/audit/<event_date>/record-<generation:05d>.json    the newest says what holds now
archive/audit/<event_date>/<first 16 of sha256>.parquet    the date's rows, named by content
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date

from tasks.core.errors import DataError
from tasks.core.ids import canonical_json
from tasks.core.object_store import ObjectStore
from tasks.core.records import JsonRecord

_RECORD = re.compile(r"archive/audit/(\d{4}-\d\d-\d\d)/record-(\d{5})\.json")


@dataclass(frozen=True)
class ArchivedDate(JsonRecord):
    """What the archive holds of one event date."""

    event_date: date
    generation: int
    state: str
    """`archived`, or `expired`: then the data is gone and this record says that it was."""
    key: str
    rows: int
    size_bytes: int
    sha256: str
    hot_files: tuple[str, ...]
    """Paths of the audit table's files whose rows this archive holds."""
    recorded_at_utc: str
    format: int = 1
    """Of the data file: `tasks.audit.cold.COLD_FORMAT`; 1, a copy of the table's rows, in records before it."""
    top_k: int | None = None
    """How many attributions of a row were kept; None: all."""
    values_kept: bool = True
    explained_rows: int | None = None
    """Rows with attributions; None in records that do not say."""
    cause: str = "retention"
    """`retention`, or `erasure`: then only what is left of an entity differs from the generation before."""


def data_key(event_date: date, sha256: str) -> str:
    return f"archive/audit/{event_date}/{sha256[:16]}.parquet"


def archived_dates(store: ObjectStore) -> dict[date, ArchivedDate]:
    """The newest record of every archived or expired event date."""
    newest: dict[date, int] = {}
    for info in store.list("archive/audit"):
        match = _RECORD.fullmatch(info.key)
        if match:
            day = date.fromisoformat(match[1])
            newest[day] = max(newest.get(day, 0), int(match[2]))
    return {day: _read(store, day, number) for day, number in sorted(newest.items())}


def archive_history(store: ObjectStore, known: Collection[tuple[date, int]] = ()) -> list[ArchivedDate]:
    """Every generation of every event date, except those (date, generation) that are `known`; oldest first."""
    found = []
    for info in store.list("archive/audit"):
        match = _RECORD.fullmatch(info.key)
        if match and (pair := (date.fromisoformat(match[1]), int(match[2]))) not in known:
            found.append(_read(store, *pair))
    return sorted(found, key=lambda item: (item.recorded_at_utc, item.event_date, item.generation))


def archived_date(store: ObjectStore, event_date: date) -> ArchivedDate | None:
    """The newest record of one event date; None when it was never archived."""
    found = [_RECORD.fullmatch(info.key) for info in store.list(f"archive/audit/{event_date}")]
    numbers = [int(match[2]) for match in found if match]
    return _read(store, event_date, max(numbers)) if numbers else None


def has_moved_on(store: ObjectStore, archived: ArchivedDate) -> bool:
    """Whether the date has a newer record than this one: then its file may be gone, and nothing is lost."""
    return archived_date(store, archived.event_date) != archived


def older_keys(store: ObjectStore, archived: ArchivedDate) -> set[str]:
    """Data keys that the generations before this one named."""
    return {_read(store, archived.event_date, number).key for number in range(1, archived.generation)}


def record(store: ObjectStore, archived: ArchivedDate) -> None:
    """Create the record of a new generation.

    Raises:
        AlreadyExists: Somebody else made this generation first: read it and decide anew.
    """
    store.put_exclusive(_key(archived.event_date, archived.generation), canonical_json(archived.to_json()))


def _key(event_date: date, generation: int) -> str:
    return f"archive/audit/{event_date}/record-{generation:05d}.json"


def _read(store: ObjectStore, event_date: date, generation: int) -> ArchivedDate:
    key = _key(event_date, generation)
    try:
        return ArchivedDate.from_json(json.loads(store.get(key)))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"is not a readable archive record: {error}",
            which=store.url(key),
            fix="restore it from a backup",
        ) from error
