"""Which objects of a store make one consistent whole while others write to it.

A record is written after all that it names. So everything that was there at one moment, by the clock that stamps the
objects, names nothing that was not. Data that nothing names yet may be newer: it is an orphan, as after a crash. Of
records those are left out that are newer than the moment; of a table's log all behind the first gap as well.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from tasks.core.errors import NotFound
from tasks.core.object_store import ObjectInfo, ObjectStore, store_now

_RECORDS = re.compile(
    r"/(snapshots|runs|archive|audit|triggers|holds|waivers|monitoring/cases|monitoring/holds|evaluation)/.*\.json$"
    r"|/bundles/[^/]+/bundle\.json$|/training/[^/]+/result\.json$|^jobs/.*\.json$"
)
"""Created once and never changed, or only to what says the same; their being there means that other objects are."""
LOG_ENTRY = re.compile(
    r"(?P<table>.+)/_delta_log/(?P<version>\d{20})\.(?P<kind>json|checkpoint[^/]*\.parquet)$"
)
_LOG = "/_delta_log/"
_TICK_S = 0.05
RESTORING = "_restoring.json"
"""Object of a store that says: a restore has begun here and has not ended."""
_NOT_KEPT = ("_probe/", RESTORING)


@dataclass(frozen=True)
class Cut:
    """A store at one moment."""

    at: datetime
    objects: tuple[ObjectInfo, ...]
    tables: dict[str, int]
    """Folder of each Delta table and its newest version."""


def unfinished_restore(store: ObjectStore) -> str | None:
    """The backup that is being brought back into `store`; None when no restore has begun there, or all have ended."""
    try:
        return str(json.loads(store.get(RESTORING))["backup_id"])
    except NotFound:
        return None


def cut(store: ObjectStore) -> Cut:
    """What a backup takes of `store` now; every object that was there when it was called is older than the moment.

    Raises:
        StoreUnavailable, AccessDenied: The store cannot be listed.
    """
    called = store_now(store)
    while (
        at := store_now(store)
    ) <= called:  # S3 tells whole seconds: what was just written must be older than it
        time.sleep(_TICK_S)
    # The listing comes after: what is older is seen.
    return cut_at(at, store.list())


def cut_at(at: datetime, listed: Iterable[ObjectInfo]) -> Cut:
    """The cut of a listing that was begun after `at`. Pure."""
    taken: list[ObjectInfo] = []
    logs: dict[str, list[tuple[int, str, ObjectInfo]]] = defaultdict(list)
    for info in listed:
        entry = LOG_ENTRY.match(info.key)
        if entry and info.modified_at_utc < at:
            logs[entry["table"]].append((int(entry["version"]), entry["kind"], info))
        elif _LOG not in info.key and _is_taken(info, at):
            taken.append(info)
    tables = {table: _head(entries) for table, entries in logs.items()}
    for table, entries in logs.items():
        taken += [info for version, _, info in entries if version <= tables[table]]
    ordered = sorted(taken, key=lambda info: info.key)
    return Cut(at, tuple(ordered), {table: head for table, head in sorted(tables.items()) if head >= 0})


def is_record(key: str) -> bool:
    """Whether an object means, by being there, that others are."""
    return bool(_RECORDS.search(key)) or _LOG in key


def _is_taken(info: ObjectInfo, at: datetime) -> bool:
    if info.key.startswith(_NOT_KEPT):
        return False
    return info.modified_at_utc < at or not is_record(info.key)


def _head(entries: list[tuple[int, str, ObjectInfo]]) -> int:
    """The newest version up to which a log has no gap; -1 for a log without a commit."""
    commits = sorted(version for version, kind, _ in entries if kind == "json")
    head = -1
    for place, version in enumerate(commits):
        if version != commits[0] + place:
            break
        head = version
    return head
