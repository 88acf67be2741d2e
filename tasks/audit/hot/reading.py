"""Read rows that are not folded yet, and say how many there are."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa

from tasks.audit.hot.rows import RowsDamaged, table_of
from tasks.audit.hot.segment import DAMAGED, Segment, SegmentDamaged, SegmentGone, hot_folder, segment_paths
from tasks.audit.rows import AUDIT_SCHEMA
from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.folds import online_run_id
from tasks.core.object_store import open_store
from tasks.core.records import JsonRecord
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HotSegment(JsonRecord):
    """One segment that is not folded yet."""

    segment: str
    node: str
    state: str
    """`open`, `sealed` or `new` (without a row)."""
    opened_at_utc: str | None
    rows: int
    size_bytes: int


@dataclass(frozen=True)
class HotStatus(JsonRecord):
    """What of a pipeline waits on this machine to be folded."""

    segments: tuple[HotSegment, ...]
    rows: int
    size_bytes: int
    oldest_s: float | None
    """Age of the oldest segment in seconds; None when there is none."""
    damaged: tuple[str, ...]
    """Files of segments that were set aside."""


def read_hot(settings: Settings, spec: PipelineSpec, low: str, high: str) -> pa.Table:
    """`tasks.audit.hot.hot_rows` where there is a folder."""
    tables = [AUDIT_SCHEMA.empty_table()]
    for path in segment_paths(hot_folder(settings, spec)):
        try:
            found = _rows_of(settings, spec, path, low, high)
        except (SegmentDamaged, RowsDamaged) as error:
            # The next fold sets it aside; the rows of all other segments are answered meanwhile.
            log.error("Rows of a damaged segment are missing in an answer. %s", error)
            continue
        if found is not None:
            tables.append(found)
    if len(tables) <= 2:
        return tables[-1]
    return pa.concat_tables(tables).sort_by([("prediction_id", "ascending"), ("source_key", "ascending")])


def hot_status(settings: Settings, spec: PipelineSpec, *, clock: Clock = utc_now) -> HotStatus:
    """Segments, rows, bytes and age of what is not folded on this machine."""
    folder = hot_folder(settings, spec)
    found: list[HotSegment] = []
    damaged: list[str] = [str(path) for path in sorted(folder.glob(f"*{DAMAGED}"))]
    opened = []
    for path in segment_paths(folder):
        try:
            segment = Segment.open(path, "ro")
            try:
                facts = segment.facts()
                rows = segment.count() if facts else 0
            finally:
                segment.close()
        except SegmentGone:
            continue
        except SegmentDamaged:
            damaged.append(str(path))
            continue
        state = "new" if facts is None else "sealed" if facts.sealed else "open"
        moment = facts.opened_at if facts else None
        opened += [moment] if moment else []
        found.append(
            HotSegment(
                path.stem,
                facts.node if facts else "",
                state,
                iso_utc(moment) if moment else None,
                rows,
                _size(path),
            )
        )
    return HotStatus(
        segments=tuple(found),
        rows=sum(one.rows for one in found),
        size_bytes=sum(one.size_bytes for one in found),
        oldest_s=round((clock() - min(opened)).total_seconds(), 3) if opened else None,
        damaged=tuple(damaged),
    )


def _rows_of(settings: Settings, spec: PipelineSpec, path: Path, low: str, high: str) -> pa.Table | None:
    """Rows of one segment; None when it has none, or was folded since the folder was listed."""
    try:
        segment = Segment.open(path, "ro")
        try:
            facts = segment.facts()
            rows = segment.rows(low, high) if facts else []
        finally:
            segment.close()
    except SegmentGone:
        return None
    if facts is None or not rows:
        return None
    node = facts.node

    def run_id(day: date) -> str:
        return online_run_id(spec.prefix, node, day.isoformat())

    return table_of(open_store(settings, prefix=spec.prefix), rows, run_id)


def _size(path: Path) -> int:
    size = 0
    for part in ("", "-wal"):
        try:
            size += path.with_name(path.name + part).stat().st_size
        except FileNotFoundError:
            continue
    return size
