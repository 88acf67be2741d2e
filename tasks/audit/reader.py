"""Where audit rows are: the tiers of a pipeline, asked in the order in which rows move through them.

A row goes from hot to warm to cold, and is written in the next place before it leaves the last. So whoever asks in this order
meets it at least once, whatever moves meanwhile; a row that was met twice comes once in the answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from tasks.audit.archive import ArchivedDate, archived_date, archived_dates
from tasks.audit.cold import cold_rows
from tasks.audit.files import FOOTER_CACHE_BYTES, AuditFile, AuditFiles, FileGone
from tasks.audit.hot import hot_rows
from tasks.audit.rows import AUDIT_TABLE, FeatureSet, read_feature_set
from tasks.core.delta import LatestView, LiveFile, TableView
from tasks.core.errors import NotFound
from tasks.core.object_store import ObjectStore, open_store
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec

MAX_AGE_S = 5.0
"""On S3 a look-up by id may answer from what the table held so long ago. On a local disk it never does."""

_READERS = 16
_DATES_ONE_BY_ONE = 8
"""Up to so many dates are looked up in the archive by themselves; for more, all of it is listed."""


@dataclass(frozen=True)
class Asked:
    """Which rows are wanted: those of some dates with low <= prediction_id <= high."""

    dates: tuple[date, ...]
    """UTC dates of the event times, in order."""
    low: str
    high: str
    columns: tuple[str, ...] | None = None
    """Of `AUDIT_SCHEMA`, and `explanation`; None: all. A source may leave out what it does not have."""
    ids: pa.Array | None = None
    """In order: only these. A source may give others too."""
    fresh: bool = True
    """Whether the answer must know of everything that was committed before the question."""


class Source(Protocol):
    """One tier. To add one, give it its place in `AuditReader.sources`."""

    tier: str

    def rows(self, asked: Asked) -> list[pa.Table]:
        """Rows that are asked for, in tables that are each in order of prediction id.

        Raises:
            FileGone: A file is not where it was; ask all sources again with `fresh`.
            DataError: A file is damaged.
        """
        ...

    def least_rows(self, asked: Asked) -> int:
        """A number of rows that is surely not above that of `rows`, without reading them."""
        ...


class HotSource:
    """Online predictions of this machine that are not folded yet; a folder that most machines do not have."""

    tier = "hot"

    def __init__(self, settings: Settings, spec: PipelineSpec) -> None:
        self._settings = settings
        self._spec = spec

    def rows(self, asked: Asked) -> list[pa.Table]:
        found = hot_rows(self._settings, self._spec, asked.low, asked.high)
        if not found.num_rows:
            return []
        days = found.column("event_time").cast(pa.date32())
        found = found.filter(pc.is_in(days, value_set=pa.array(asked.dates, pa.date32())))
        if asked.columns is not None:
            found = found.select([name for name in asked.columns if name in found.column_names])
        return [found]

    def least_rows(self, _asked: Asked) -> int:
        return 0


class WarmSource:
    """The audit table."""

    tier = "warm"

    def __init__(self, latest: LatestView, files: AuditFiles) -> None:
        self._latest = latest
        self._files = files
        self._index: tuple[TableView | None, dict[date, list[LiveFile]]] = (None, {})

    def live(self, asked: Asked) -> list[LiveFile]:
        """Files that may hold rows that are asked for, by their first id."""
        view = self._latest.get(fresh=asked.fresh)
        if view is None:
            return []
        seen, by_date = self._index
        if seen is not view:
            by_date = {}
            for file in sorted(view.files, key=lambda file: file.first_id):
                by_date.setdefault(file.event_date, []).append(file)
            self._index = (view, by_date)
        return [
            file
            for day in asked.dates
            for file in by_date.get(day, ())
            if file.first_id <= asked.high and file.last_id >= asked.low
        ]

    def rows(self, asked: Asked) -> list[pa.Table]:
        found = [
            self._files.rows(warm_file(file), asked.low, asked.high, columns=asked.columns, ids=asked.ids)
            for file in self.live(asked)
        ]
        return [table for table in found if table is not None]

    def least_rows(self, asked: Asked) -> int:
        inside = (f for f in self.live(asked) if asked.low <= f.first_id and f.last_id <= asked.high)
        return sum(file.rows for file in inside)

    def known_ascending(self, asked: Asked) -> bool:
        """Whether it is known, without reading a row, that the ids of `rows` ascend and none comes twice."""
        live = self.live(asked)
        return all(before.last_id < after.first_id for before, after in pairwise(live)) and all(
            self._files.footer(warm_file(file)).unrepeated for file in live
        )

    def steps(self, asked: Asked, rows: int) -> Iterator[str]:
        """Ids that cut [low, high] into parts, the last of which is `high`: about `rows` rows, then ever twice as many.

        A window from which a page is wanted is read in these parts until the page is full.
        """
        held = 0
        for file in sorted(self.live(asked), key=lambda file: file.last_id):
            footer = self._files.footer(warm_file(file))
            for number in footer.groups(asked.low, asked.high):
                held += footer.rows[number]
                if held >= rows and footer.bounds[number][1] < asked.high:
                    yield footer.bounds[number][1]
                    held, rows = 0, 2 * rows
        yield asked.high


class ColdSource:
    """The archive. Its records have no version to look at: on S3 what a look-up saw counts for `max_age_s`."""

    tier = "cold"

    def __init__(self, store: ObjectStore, *, max_age_s: float, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._max_age_s = max_age_s
        self._monotonic = monotonic
        self._seen: OrderedDict[date, tuple[float, ArchivedDate | None]] = OrderedDict()
        self._lock = threading.Lock()

    def archived(self, event_date: date, *, fresh: bool) -> ArchivedDate | None:
        """The archive's record of a date; None when it was never archived."""
        now = self._monotonic()
        with self._lock:
            seen_at, found = self._seen.get(event_date, (now - self._max_age_s, None))
        if not fresh and now - seen_at < self._max_age_s:
            return found
        found = archived_date(self._store, event_date)
        with self._lock:
            self._seen[event_date] = (now, found)
            self._seen.move_to_end(event_date)
            while len(self._seen) > 1_000:
                self._seen.popitem(last=False)
        return found

    def rows(self, asked: Asked) -> list[pa.Table]:
        return [self._rows(archived, asked) for archived in self._kept(asked)]

    def least_rows(self, asked: Asked) -> int:
        # Of the first and the last date a part may be outside.
        inside = asked.dates[1:-1]
        return sum(item.rows for item in self._kept(asked) if item.event_date in inside)

    def _kept(self, asked: Asked) -> list[ArchivedDate]:
        if len(asked.dates) <= _DATES_ONE_BY_ONE:
            found = [self.archived(day, fresh=asked.fresh) for day in asked.dates]
        else:
            every = archived_dates(self._store)
            found = [every.get(day) for day in asked.dates]
        return [item for item in found if item is not None and item.state == "archived"]

    def _rows(self, archived: ArchivedDate, asked: Asked) -> pa.Table:
        try:
            return cold_rows(self._store, archived, asked.low, asked.high, asked.columns)
        except NotFound as error:
            raise FileGone(error.what, which=error.which, fix=error.fix) from error


class AuditReader:
    """Reads the audit rows of one pipeline, and keeps what does not change between look-ups. May be asked by many threads.

    Kept are the table's list of files, as long as nobody commits; footers of files, `footer_bytes` of them; feature sets.

    Args:
        settings: This installation.
        spec: The pipeline.
        max_age_s: How old an answer by id may be on S3, seconds. "Not found" is never old, and windows are not.
        footer_bytes: Memory for footers.
        monotonic: Seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        settings: Settings,
        spec: PipelineSpec,
        *,
        max_age_s: float = MAX_AGE_S,
        footer_bytes: int = FOOTER_CACHE_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = open_store(settings, prefix=spec.prefix)
        remote = bool(self.store.storage_options())
        age_s = max_age_s if remote else 0.0
        self.files = AuditFiles(self.store, cache_bytes=footer_bytes)
        latest = LatestView(self.store, AUDIT_TABLE, max_age_s=age_s, monotonic=monotonic)
        self.warm = WarmSource(latest, self.files)
        self.cold = ColdSource(self.store, max_age_s=age_s, monotonic=monotonic)
        self.sources: tuple[Source, ...] = (HotSource(settings, spec), self.warm, self.cold)
        """In the order in which rows move; the first that has a row is believed."""
        self._feature_sets: dict[str, FeatureSet] = {}

    def rows(self, asked: Asked) -> list[pa.Table]:
        """Rows of all tiers, with their `tier`; a row that is in two of them comes from the first one first."""
        return [with_tier(table, source.tier) for source in self.sources for table in source.rows(asked)]

    def feature_set(self, version: str) -> FeatureSet:
        """The feature set of that version; a good answer is kept, since it cannot change.

        Raises:
            NotFound: It is gone.
            DataError: It cannot be read.
        """
        if version not in self._feature_sets:
            self._feature_sets[version] = read_feature_set(self.store, version)
        return self._feature_sets[version]


def warm_file(file: LiveFile) -> AuditFile:
    """A file of the audit table."""
    return AuditFile(f"{AUDIT_TABLE}/{file.path}", file.rows, file.size_bytes)


def with_tier(table: pa.Table, tier: str) -> pa.Table:
    """The table with the column `tier`."""
    return table.append_column("tier", pa.repeat(pa.scalar(tier), table.num_rows))


_readers: OrderedDict[tuple[object, ...], AuditReader] = OrderedDict()
_finding_one = threading.Lock()


def reader_of(settings: Settings, spec: PipelineSpec) -> AuditReader:
    """This process's reader of a pipeline's audit rows; those of the last 16 pipelines that were asked for are kept.

    A child that was forked makes its own: locks and connections are not its parent's.
    """
    key = (os.getpid(), settings, spec.prefix)
    with _finding_one:
        if key not in _readers:
            _readers[key] = AuditReader(settings, spec)
        _readers.move_to_end(key)
        while len(_readers) > _READERS:
            _readers.popitem(last=False)
        return _readers[key]


def forget_reader(spec: PipelineSpec) -> None:
    """Upkeep of this process has changed a pipeline's tiers: its next look-up reads them anew."""
    with _finding_one:
        for key in [key for key in _readers if key[2] == spec.prefix]:
            del _readers[key]
