"""Records that lie in the store as JSON."""

from __future__ import annotations

import json
from typing import TypeVar

from tasks.core.errors import DataError
from tasks.core.object_store import ObjectStore
from tasks.core.records import JsonRecord

_Record = TypeVar("_Record", bound=JsonRecord)


def read_record(store: ObjectStore, key: str, kind: type[_Record], *, what: str, fix: str) -> _Record:
    """The record that `key` holds.

    Args:
        store: Where it is.
        key: Its key.
        kind: Its class.
        what: What it is, in words, such as "a readable plan".
        fix: What to do when it cannot be read.

    Raises:
        NotFound: There is no such object.
        DataError: It is not JSON, or not of that class.
    """
    try:
        return kind.from_json(json.loads(store.get(key)))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"is not {what}: {error}", which=store.url(key), fix=fix) from error
