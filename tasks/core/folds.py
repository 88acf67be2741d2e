"""What a fold of online predictions wrote: the record that a shard's commit record is for batch files."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.core.delta import TableFile
from tasks.core.errors import NotFound
from tasks.core.ids import canonical_json, digest_json
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.core.records import JsonRecord
from tasks.core.stored import read_record


@dataclass(frozen=True)
class FoldRecord(JsonRecord):
    """The files of one attempt at one segment and one run. They are in the table when its log says so, not before."""

    run_id: str
    attempt: str
    segment: str
    node: str
    files: tuple[TableFile, ...]
    created_at_utc: str


def online_run_id(prefix: str, node: str, day: str) -> str:
    """The run that a node's online predictions of one UTC day of scoring belong to, 16 hex digits.

    Args:
        prefix: The pipeline's, with its tenant.
        node: Name of the node.
        day: YYYY-MM-DD.
    """
    return digest_json(["online", prefix, node, day])[:16]


def fold_key(run_id: str, attempt: str) -> str:
    return f"audit/folds/{run_id}/{attempt}.json"


def write_fold_record(store: ObjectStore, record: FoldRecord) -> None:
    """Store it under its attempt's name, which is nobody else's."""
    key, data = fold_key(record.run_id, record.attempt), canonical_json(record.to_json())
    try:
        store.put_exclusive(key, data)
    except AlreadyExists:
        if store.get(key) != data:  # ours, when the client library sent it twice by itself
            raise


def read_fold_record(store: ObjectStore, run_id: str, attempt: str) -> FoldRecord | None:
    """The record; None when there is none.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return read_record(
            store,
            fold_key(run_id, attempt),
            FoldRecord,
            what="a readable record of a fold",
            fix="restore it from a backup; the rows are in the audit table all the same",
        )
    except NotFound:
        return None
