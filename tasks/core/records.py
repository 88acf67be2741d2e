"""Records that cross from one room to another. Frozen, JSON-ready through `to_json` / `from_json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime
from functools import cache
from typing import Any, Self, get_args, get_origin, get_type_hints

from tasks.core.ids import digest_json


class JsonRecord:
    """Mixin for frozen dataclasses: dates as ISO text, tuples as lists, nested records as objects."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        assert is_dataclass(self)
        return {field.name: _encode(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """The inverse of `to_json`; fields that this release does not know are ignored."""
        decode = _decoders(cls)  # type: ignore[arg-type]  # mypy takes type[Self] for unhashable
        return cls(**{key: decode[key](value) for key, value in raw.items() if key in decode})


_Decode = Callable[[Any], Any]


@cache  # a run has ten thousand records, and resolving the hints costs more than all the rest of reading one
def _decoders(cls: type) -> dict[str, _Decode]:
    """For each field of a record class, what makes its value of the JSON value."""
    hints = get_type_hints(cls)
    return {field.name: _decoder(hints[field.name]) for field in fields(cls)}


def _decoder(hint: Any) -> _Decode:
    plain = _plain_decoder(hint)
    return plain if plain is _as_it_is else lambda value: None if value is None else plain(value)


def _plain_decoder(hint: Any) -> _Decode:
    """For a value that is not null."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        item = _decoder(arguments[0])
        return tuple if item is _as_it_is else lambda value: tuple([item(one) for one in value])
    if origin is dict:
        item = _decoder(arguments[1])
        if item is _as_it_is:
            return _as_it_is
        return lambda value: {key: item(one) for key, one in value.items()}
    if origin is not None and type(None) in arguments:
        return _plain_decoder(next(one for one in arguments if one is not type(None)))
    if isinstance(hint, type):
        if issubclass(hint, JsonRecord):
            return hint.from_json
        if issubclass(hint, datetime | date):
            return hint.fromisoformat
    return _as_it_is


def _as_it_is(value: Any) -> Any:
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, JsonRecord):
        return value.to_json()
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class PartitionFile(JsonRecord):
    """One immutable Parquet file of a snapshot, holding rows of one day."""

    day: date
    key: str
    """Key in the pipeline's store; its name holds the content digest."""
    rows: int
    size_bytes: int
    sha256: str
    row_group_rows: tuple[int, ...]


@dataclass(frozen=True)
class Snapshot(JsonRecord):
    """An immutable set of partitions. Equal content has an equal `snapshot_id`, whenever it was taken."""

    snapshot_id: str
    """16 hex digits of the digest over kind, schema and partition contents."""
    pipeline: str
    kind: str
    """`training` (with labels) or `scoring` (without labels and outcome columns)."""
    schema: tuple[tuple[str, str], ...]
    """(column, Arrow type) in order."""
    partitions: tuple[PartitionFile, ...]
    """In day order."""
    created_at_utc: str
    parent_snapshot_id: str | None = None
    """The snapshot this one was cleaned from, when rows were quarantined."""

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)

    @property
    def days(self) -> tuple[date, ...]:
        return tuple(partition.day for partition in self.partitions)

    @staticmethod
    def identity(
        pipeline: str, kind: str, schema: tuple[tuple[str, str], ...], partitions: tuple[PartitionFile, ...]
    ) -> str:
        """The `snapshot_id` of this content."""
        return digest_json(
            [pipeline, kind, schema, [[part.day, part.sha256, part.rows] for part in partitions]]
        )[:16]


@dataclass(frozen=True)
class Finding(JsonRecord):
    """One reason on a verdict."""

    name: str
    status: str
    """`pass`, `warn` or `fail`."""
    detail: str
    value: float | None = None
    limit: float | None = None
    waived: str | None = None
    """`waived by ACTOR until DATE: REASON` when a person lets it pass; the status stays what was found."""

    @property
    def shown(self) -> str:
        """The detail, with the waiver when there is one."""
        return f"{self.detail} ({self.waived})" if self.waived else self.detail


def outcome_of(findings: Iterable[Finding]) -> str:
    """What a gate says with these findings: one fail is `fail`, else one warning is `inconclusive`."""
    statuses = {finding.status for finding in findings}
    return "fail" if "fail" in statuses else "inconclusive" if "warn" in statuses else "pass"


@dataclass(frozen=True)
class Verdict(JsonRecord):
    """The answer of a gate, with every reason. No evidence is a failure, never a pass."""

    gate: str
    """`data`, `evaluation` or `canary`."""
    pipeline: str
    subject: str
    """What was judged: a snapshot id or a bundle digest."""
    outcome: str
    """`pass`, `fail` or `inconclusive`."""
    findings: tuple[Finding, ...]
    decided_at_utc: str
    evidence_key: str | None = None
    """Key of the full evidence (JSON) in the pipeline's store."""
    report_key: str | None = None
    """Key of the static HTML report in the pipeline's store."""

    @property
    def passed(self) -> bool:
        return self.outcome == "pass"

    @property
    def waived(self) -> tuple[Finding, ...]:
        """Findings that were let pass by a person; the outcome does not count them."""
        return tuple(finding for finding in self.findings if finding.waived)

    def reasons(self) -> list[str]:
        """The findings that are not passes, or all when there is none, one line each."""
        bad = [finding for finding in self.findings if finding.status != "pass"]
        return [f"[{item.status}] {item.name}: {item.shown}" for item in (bad or self.findings)]
