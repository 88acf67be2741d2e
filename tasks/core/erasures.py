"""Erasures: entities whose rows were made tombstones, by whom and why, and how far that came.

audit/erasures/<erasure id>.json               the request, by exclusive create, before anything is changed
audit/erasures/<erasure id>/done-<n:05d>.json  what has become of it, by exclusive create; the newest counts

The records hold a digest of the entity's key and not the key. Whoever knows the key can compute the digest, so it
tells whether somebody was erased to those alone who know who it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.ids import canonical_json, digest_json
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.core.records import JsonRecord
from tasks.core.stored import read_record

Matches = Callable[[pa.Array], pa.Array]
"""Entity ids -> which of them are meant; boolean, without nulls."""

_REQUEST = re.compile(r"audit/erasures/(?P<erasure_id>[0-9a-f]{16})\.json")
_OUTCOME = re.compile(r"audit/erasures/(?P<erasure_id>[0-9a-f]{16})/done-(?P<number>\d{5})\.json")
_FIX = "restore the object from a backup; it is never rewritten"


@dataclass(frozen=True)
class Erasure(JsonRecord):
    """The request to erase an entity, and what there was of it then."""

    erasure_id: str
    """The first 16 hex digits of `entity_digest`: so a repeated request is the same erasure."""
    entity_digest: str
    reason: str
    actor: str
    requested_at_utc: str
    dates: tuple[date, ...]
    """Event dates that held the entity."""
    audit_rows: int
    prediction_rows: int
    deferred_dates: tuple[date, ...]
    """Those with a hold: they stay until it is released."""


@dataclass(frozen=True)
class ErasureOutcome(JsonRecord):
    """What one call left."""

    erasure_id: str
    number: int
    actor: str
    reason: str
    at_utc: str
    dates: tuple[date, ...]
    """Event dates with tombstones of this erasure, or that lost rows of predictions in this call."""
    audit_rows: int
    """Tombstones of this erasure that the audit tiers hold now."""
    prediction_rows: int
    """Rows of the predictions table that became tombstones in this call."""
    deferred_dates: tuple[date, ...]


def entity_digest(pipeline: str, entity: str) -> str:
    """What stands for an entity of a pipeline in records, 64 hex digits."""
    return digest_json(["penstock:erasure", pipeline, entity])


def is_entity(entity: str) -> Matches:
    """Matches this entity id."""
    return lambda ids: pc.fill_null(pc.equal(ids, pa.scalar(entity, pa.string())), False)


def has_digest(pipeline: str, digest: str) -> Matches:
    """Matches the entity of that digest: what a later call knows of it."""

    def matches(ids: pa.Array) -> pa.Array:
        known = [
            one
            for one in pc.unique(ids).to_pylist()
            if one is not None and entity_digest(pipeline, one) == digest
        ]
        return pc.is_in(ids, pa.array(known, pa.string()))

    return matches


def request_erasure(store: ObjectStore, wanted: Erasure) -> Erasure:
    """Create the request, or find that of an earlier call."""
    key = erasure_key(wanted.erasure_id)
    try:
        store.put_exclusive(key, canonical_json(wanted.to_json()))
    except AlreadyExists:
        return read_record(store, key, Erasure, what="a readable erasure", fix=_FIX)
    return wanted


def record_outcome(store: ObjectStore, outcome: ErasureOutcome) -> bool:
    """Create the record; False when another call made that number first."""
    try:
        store.put_exclusive(
            outcome_key(outcome.erasure_id, outcome.number), canonical_json(outcome.to_json())
        )
    except AlreadyExists:
        return False
    return True


def erasures(store: ObjectStore) -> list[tuple[Erasure, tuple[ErasureOutcome, ...]]]:
    """Every erasure that was asked for with its outcomes, both oldest first.

    Raises:
        DataError: A record cannot be read.
    """
    requests: list[Erasure] = []
    outcomes: dict[str, list[ErasureOutcome]] = {}
    for info in store.list("audit/erasures"):
        if _REQUEST.fullmatch(info.key):
            requests.append(read_record(store, info.key, Erasure, what="a readable erasure", fix=_FIX))
        elif match := _OUTCOME.fullmatch(info.key):
            found = read_record(
                store, info.key, ErasureOutcome, what="a readable outcome of an erasure", fix=_FIX
            )
            outcomes.setdefault(match["erasure_id"], []).append(found)
    requests.sort(key=lambda one: (one.requested_at_utc, one.erasure_id))
    return [
        (one, tuple(sorted(outcomes.get(one.erasure_id, ()), key=lambda item: item.number)))
        for one in requests
    ]


def erasure_key(erasure_id: str) -> str:
    return f"audit/erasures/{erasure_id}.json"


def outcome_key(erasure_id: str, number: int) -> str:
    return f"audit/erasures/{erasure_id}/done-{number:05d}.json"


def without(table: pa.Table, gone: pa.Array, *, kept: frozenset[str]) -> pa.Table:
    """The table with nothing but the columns `kept` in rows where `gone`."""
    columns = {
        name: table.column(name)
        if name in kept
        else pc.if_else(gone, pa.scalar(None, table.schema.field(name).type), table.column(name))
        for name in table.column_names
    }
    return pa.table(columns)
