"""Records that a person places, with a reason, and may release: two exclusive creates, neither ever changed.

<folder>/<id>/placed.json      the record as it was placed
<folder>/<id>/released.json    the same with who released it, when and why; it is over
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from tasks.core.clock import Clock, iso_utc
from tasks.core.errors import ConfigError, NotFound
from tasks.core.ids import canonical_json
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.core.records import JsonRecord
from tasks.core.stored import read_record

_PLACED, _RELEASED = "placed.json", "released.json"
_Record = TypeVar("_Record", bound=JsonRecord)


def place(store: ObjectStore, folder: str, identifier: str, record: JsonRecord) -> None:
    """Keep a new record."""
    store.put_exclusive(f"{folder}/{identifier}/{_PLACED}", canonical_json(record.to_json()))


def release(
    store: ObjectStore,
    folder: str,
    identifier: str,
    read: Callable[[], Mapping[str, _Record]],
    *,
    reason: str,
    actor: str,
    clock: Clock,
    missing: NotFound,
) -> _Record:
    """Keep that a record is over, and return it as it then stands; the first release stays.

    Args:
        read: Every record of the folder as it stands, by its id.
        missing: What to raise when it is none of them.
    """
    record = read().get(identifier)
    if record is None:
        raise missing
    over = {
        **record.to_json(),
        "released_at_utc": iso_utc(clock()),
        "released_by": actor,
        "release_reason": reason,
    }
    try:
        store.put_exclusive(f"{folder}/{identifier}/{_RELEASED}", canonical_json(over))
    except AlreadyExists:
        return read()[identifier]
    return type(record).from_json(over)


def read_placed(
    store: ObjectStore, folder: str, kind: type[_Record], *, what: str, fix: str
) -> list[_Record]:
    """Every record of a folder as it stands, in order of their ids.

    Args:
        what: What one is, in words, such as "a readable hold".
        fix: What to do when one cannot be read.

    Raises:
        DataError: One cannot be read.
    """
    keys = {info.key for info in store.list(folder)}
    placed = sorted(key for key in keys if key.endswith(f"/{_PLACED}"))
    newest = [over if (over := key.replace(_PLACED, _RELEASED)) in keys else key for key in placed]
    return [read_record(store, key, kind, what=what, fix=fix) for key in newest]


def refuse_blank(text: str, which: str, fix: str) -> None:
    """Raises `ConfigError` for a text without a word in it."""
    if not text.strip():
        raise ConfigError("is empty", which=which, fix=fix)
