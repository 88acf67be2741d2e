"""Identities: content digests, run ids and prediction ids.

A prediction id is a UUIDv8 (RFC 9562): 48 bits of event time in milliseconds since the Unix epoch, then
74 bits of BLAKE2b over (pipeline, entity key, event time). The same row gets the same id in a retry, in
batch and online, and ids sort by event time, so an id alone names the day to read (I5).
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def canonical_json(value: Any) -> bytes:
    """One byte string for one value: sorted keys, no spaces, UTF-8, NaN refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str
    ).encode()


def digest_bytes(data: bytes) -> str:
    """SHA-256, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, 64 hex digits."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tree(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over (relative path, SHA-256) pairs in any order: the digest of a whole artifact tree (I9)."""
    return digest_json(sorted([path, digest] for path, digest in files))


def run_id(
    *,
    pipeline: str,
    snapshot_id: str,
    model_version: str,
    bundle_digest: str,
    feature_version: str,
    scoring_config: dict[str, Any],
) -> str:
    """The identity of a scoring run (I1), 16 hex digits: equal work has an equal id."""
    return digest_json(
        {
            "pipeline": pipeline,
            "snapshot_id": snapshot_id,
            "model_version": model_version,
            "bundle_digest": bundle_digest,
            "feature_version": feature_version,
            "scoring_config": scoring_config,
        }
    )[:16]


def entity_id(values: Sequence[object]) -> str:
    """One string for the values of an entity key, in the key's order; `|` and `\\` are escaped."""
    return "|".join(str(value).replace("\\", "\\\\").replace("|", "\\|") for value in values)


def event_millis(event_time: datetime) -> int:
    """Whole milliseconds since the Unix epoch; `event_time` must be timezone-aware."""
    if event_time.tzinfo is None:
        raise ValueError("event_time must be timezone-aware")
    return (event_time - _EPOCH) // _MILLISECOND


def prediction_id(pipeline: str, entity: str, millis: int) -> str:
    """The prediction id (I5) of one row, in the usual 36-character form.

    Args:
        pipeline: Name of the pipeline.
        entity: `entity_id` of the row.
        millis: Event time, milliseconds since the Unix epoch, 0 <= millis < 2**48.
    """
    if not 0 <= millis < 1 << 48:
        raise ValueError(f"event time {millis} ms is outside what a prediction id can hold")
    seed = f"{pipeline}\x1f{entity}\x1f{millis}".encode()
    tail = int.from_bytes(hashlib.blake2b(seed, digest_size=10).digest(), "big")
    rand_a = (tail >> 62) & 0xFFF
    rand_b = tail & ((1 << 62) - 1)
    return str(uuid.UUID(int=(millis << 80) | (8 << 76) | (rand_a << 64) | (0b10 << 62) | rand_b))


_PREDICTION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_LAST_TIME = "e677d21f-dbff"
"""The milliseconds of the year 9999's end, as an id begins: no event is later, and no `datetime` either."""


def is_prediction_id(text: str) -> bool:
    """True when `text` has the form of a prediction id."""
    return _PREDICTION_ID.fullmatch(text) is not None and text[:13] <= _LAST_TIME


def prediction_event_time(identifier: str) -> datetime:
    """The event time inside a prediction id, UTC, millisecond precision.

    Raises:
        ValueError: `identifier` is not a prediction id.
    """
    if not is_prediction_id(identifier):
        raise ValueError(f"{identifier!r} is not a prediction id (a UUID of version 8)")
    return _EPOCH + (uuid.UUID(identifier).int >> 80) * _MILLISECOND


@dataclass(frozen=True)
class IdParts:
    """What a prediction id says by itself; docs/audit.md has the bits."""

    millis: int
    """Event time, milliseconds since the Unix epoch."""
    version: int
    """Of the UUID: 8."""
    variant: int
    """Of the UUID: 2 (RFC 9562)."""
    hash_bits: str
    """The 74 bits of the hash, 19 hexadecimal digits."""
    draw: float
    """Where the last 32 bits lie in their range, 0 to 1: below `explanations.share` the prediction is explained."""

    @property
    def event_time(self) -> datetime:
        """UTC, millisecond precision."""
        return _EPOCH + self.millis * _MILLISECOND


def id_parts(identifier: str) -> IdParts:
    """Take a prediction id apart.

    Raises:
        ValueError: `identifier` is not a prediction id.
    """
    if not is_prediction_id(identifier):
        raise ValueError(f"{identifier!r} is not a prediction id (a UUID of version 8)")
    bits = uuid.UUID(identifier).int
    tail = (bits >> 64 & 0xFFF) << 62 | bits & ((1 << 62) - 1)
    return IdParts(
        bits >> 80, bits >> 76 & 0xF, bits >> 62 & 0b11, f"{tail:019x}", (bits & 0xFFFFFFFF) / 2**32
    )
