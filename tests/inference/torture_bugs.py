"""Drivers with a planted bug."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from tasks.core.errors import PenstockError
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.inference import commit, publishing
from tasks.inference.records import PREDICTIONS, TableFile
from tasks.inference.torture import child

_publish = publishing._publish_predictions


def twice(store: Any, planned: Any, files: tuple[TableFile, ...], **more: Any) -> Any:
    """Publish the first file once more, under a name of its own."""
    copy = dataclasses.replace(files[0], path=files[0].path.replace(".parquet", "0.parquet"))
    store.put(f"{PREDICTIONS}/{copy.path}", store.get(f"{PREDICTIONS}/{files[0].path}"))
    return _publish(store, planned, (*files, copy), **more)


def without_the_last(store: Any, planned: Any, files: tuple[TableFile, ...], **more: Any) -> Any:
    """Forget a file."""
    return _publish(store, planned, files[:-1], **more)


def in_halves(store: Any, planned: Any, files: tuple[TableFile, ...], **more: Any) -> Any:
    """Publish in two transactions."""
    application = publishing.application_id
    publishing.application_id = lambda run_id: f"first half of {run_id}"
    _publish(store, planned, files[:3], **more)
    publishing.application_id = application
    return _publish(store, planned, files, **more)


def deleted_on_a_doubt(store: ObjectStore, key: str, data: bytes) -> None:
    """Take a lost answer for a failure, and tidy up behind it."""
    try:
        store.put_exclusive(key, data)
    except AlreadyExists:
        raise
    except PenstockError:
        for file in json.loads(data).get("files", ()):
            store.delete(f"{PREDICTIONS}/{file['path']}")
        raise


def work_with(bug: str, words: Sequence[str], asked: Connection) -> int:
    """A driver's work, once the bug is planted in its process."""
    if bug == "deleted-on-a-doubt":
        commit._create_or_look_up = deleted_on_a_doubt
    elif bug == "not-exclusive":
        # Not in the store itself: its probe finds that before anything is scored.
        commit._create_or_look_up = lambda store, key, data: store.put(key, data)
    else:
        publishing._publish_predictions = {
            "twice": twice, "without-the-last": without_the_last, "in-halves": in_halves
        }[bug]  # fmt: skip
    return child.work(words, asked)
