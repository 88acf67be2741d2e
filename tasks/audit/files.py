"""Parquet files of audit rows, read by row group: footers are kept, a row group comes in one request."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.audit.rows import AUDIT_SCHEMA, TEXT_MAP
from tasks.core.errors import DataError, NotFound
from tasks.core.object_store import ObjectStore
from tasks.core.table_files import AUDIT_GROUP_ROWS, UNREPEATED

FOOTER_CACHE_BYTES = 192 << 20
"""Memory for parsed footers: about 300 files of 83,000 rows."""

ONE_VALUE = (
    "pipeline",
    "bundle_digest",
    "run_id",
    "explainer",
    "explainer_version",
    "background_id",
    "feature_set_version",
    "feature_computation_version",
    "source_snapshot",
    "source_key",
)
"""Text that a run repeats on each of its rows: read as a dictionary, which costs a third less."""

_PARSED_BYTES = 8
"""Memory of a parsed footer for each byte of it in the file (measured)."""
_GROUP_BYTES = 2_560
"""Of a footer, at most, for each row group."""


class FileGone(DataError):
    """A file that was to be read is not there: it was moved meanwhile, or is lost."""


@dataclass(frozen=True)
class AuditFile:
    """One Parquet file of audit rows. Its key is never used for other content."""

    key: str
    rows: int
    size_bytes: int


@dataclass(frozen=True)
class Footer:
    """What a file says of itself, parsed."""

    metadata: pq.FileMetaData
    columns: tuple[str, ...]
    bounds: tuple[tuple[str, str], ...]
    """First and last prediction id of each row group; one that does not say has bounds that hold every id."""
    rows: tuple[int, ...]
    """Of each row group."""
    end: int
    """Where the rows end and the footer begins."""
    unrepeated: bool
    """Whether its writer saw that its prediction ids ascend and none comes twice."""

    def groups(self, low: str, high: str) -> list[int]:
        """Row groups that may hold ids in [low, high]."""
        return [number for number, (first, last) in enumerate(self.bounds) if first <= high and last >= low]

    def span(self, groups: Sequence[int]) -> tuple[int, int]:
        """First and last byte, exclusive, of these row groups and what lies between them."""
        after = max(groups) + 1
        stop = self.end if after == len(self.bounds) else self._start(after)
        return self._start(min(groups)), stop

    def _start(self, group: int) -> int:
        chunk = self.metadata.row_group(group).column(0)
        pages = [chunk.data_page_offset]
        if chunk.has_dictionary_page:
            pages.append(chunk.dictionary_page_offset)
        return int(min(pages))


class AuditFiles:
    """Reads files of audit rows. May be asked by many threads.

    Args:
        store: The pipeline's store.
        cache_bytes: Memory for parsed footers; the one that was not asked for longest goes first.
    """

    def __init__(self, store: ObjectStore, *, cache_bytes: int = FOOTER_CACHE_BYTES) -> None:
        self._store = store
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._footers: OrderedDict[str, Footer] = OrderedDict()
        self._held_bytes = 0

    def footer(self, file: AuditFile) -> Footer:
        """The footer of a file.

        Raises:
            FileGone: The file is not there.
            DataError: It has no readable footer.
        """
        with self._lock:
            known = self._footers.get(file.key)
            if known is not None:
                self._footers.move_to_end(file.key)
                return known
        with self._reading(file):
            found = _read_footer(self._store, file)
        with self._lock:
            if file.key not in self._footers:
                self._footers[file.key] = found
                self._held_bytes += _held(found)
            while self._held_bytes > self._cache_bytes and len(self._footers) > 1:
                _, dropped = self._footers.popitem(last=False)
                self._held_bytes -= _held(dropped)
        return found

    def rows(
        self,
        file: AuditFile,
        low: str,
        high: str,
        *,
        columns: Collection[str] | None = None,
        ids: pa.Array | None = None,
    ) -> pa.Table | None:
        """Rows with low <= prediction_id <= high and, when given, an id among `ids`; None when there are none.

        Row groups that cannot hold one are not read. Columns that the file does not have are left out; what an earlier
        release wrote instead of `feature_texts` comes as it is.

        Args:
            file: Which.
            low: First id, or a text that sorts as one.
            high: Last id, or a text that sorts as one.
            columns: Which columns; default: all of `AUDIT_SCHEMA`. The id is read only where it decides.
            ids: In order.

        Raises:
            FileGone: The file is not there.
            DataError: It is damaged.
        """
        footer = self.footer(file)
        groups = footer.groups(low, high)
        if ids is not None:
            wanted = ids.to_pylist()
            groups = [number for number in groups if _holds_one(wanted, *footer.bounds[number])]
        if not groups:
            return None
        whole = ids is None and all(
            low <= footer.bounds[number][0] and footer.bounds[number][1] <= high for number in groups
        )
        named = set(AUDIT_SCHEMA.names if columns is None else columns)
        if "feature_texts" in named and TEXT_MAP in footer.columns:
            named |= {TEXT_MAP, "feature_set_version"}
        table = self._groups(
            file, footer, groups, named if whole or columns is None else named | {"prediction_id"}
        )
        if whole:
            return table
        found = _between(table, low, high) if ids is None else _among(table, ids)
        if not found.num_rows:
            return None
        return (
            found if columns is None else found.select([name for name in found.column_names if name in named])
        )

    def _groups(self, file: AuditFile, footer: Footer, groups: list[int], named: Collection[str]) -> pa.Table:
        columns = [name for name in footer.columns if name in named] or ["prediction_id"]
        with self._reading(file), self._store.open_range(file.key, *footer.span(groups)) as raw:
            opened = pq.ParquetFile(
                raw,
                metadata=footer.metadata,
                read_dictionary=[name for name in ONE_VALUE if name in columns],
                pre_buffer=False,
                page_checksum_verification=True,
            )
            # Threads would only move the work, and a look-up is too small for them.
            return opened.read_row_groups(groups, columns=columns, use_threads=False)

    @contextmanager
    def _reading(self, file: AuditFile) -> Iterator[None]:
        which = self._store.url(file.key)
        try:
            yield
        except NotFound as error:
            raise FileGone(
                "a file with audit rows is gone",
                which=which,
                fix="restore it from a backup; `penstock inference verify` of its run says what it held",
            ) from error
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise DataError(
                f"an audit file is damaged: {error}",
                which=which,
                fix="verify the run that wrote it, and restore the file from a backup",
            ) from error


def _read_footer(store: ObjectStore, file: AuditFile) -> Footer:
    groups = file.rows // AUDIT_GROUP_ROWS + 1
    start = max(0, file.size_bytes - (1 << 14) - _GROUP_BYTES * groups)
    with store.open_range(file.key, start, file.size_bytes) as raw:
        tail = _from(raw, start)
    if len(tail) < 8 or tail[-4:] != b"PAR1":
        raise ValueError("it does not end as a Parquet file does")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < length <= file.size_bytes:  # from another writer, with more to say
        start = file.size_bytes - length
        with store.open_range(file.key, start, file.size_bytes) as raw:
            tail = _from(raw, start)
    metadata = pq.read_metadata(pa.BufferReader(tail))
    schema = metadata.schema
    paths = [schema.column(number).path for number in range(metadata.num_columns)]
    if "prediction_id" not in paths:
        raise ValueError("it has no column prediction_id")
    at = paths.index("prediction_id")
    bounds, rows = [], []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        found = group.column(at).statistics
        bounds.append((found.min, found.max) if found is not None and found.has_min_max else ("", "~"))
        rows.append(group.num_rows)
    columns = tuple(dict.fromkeys(path.partition(".")[0] for path in paths))
    unrepeated = (metadata.metadata or {}).get(UNREPEATED) == b"1"
    return Footer(metadata, columns, tuple(bounds), tuple(rows), file.size_bytes - length, unrepeated)


def _from(raw: Any, start: int) -> bytes:
    raw.seek(start)
    data: bytes = raw.read()
    return data


def _held(footer: Footer) -> int:
    return int(footer.metadata.serialized_size) * _PARSED_BYTES


def _holds_one(wanted: list[str], first: str, last: str) -> bool:
    """Whether one of these ids, which are in order, is in [first, last]."""
    at = bisect_left(wanted, first)
    return at < len(wanted) and wanted[at] <= last


def _between(table: pa.Table, low: str, high: str) -> pa.Table:
    ids = table.column("prediction_id")
    if low == high:  # one id: its rows lie together, and to look for them is cheaper than to compare all
        at = pc.index(ids, low).as_py()
        if at < 0:
            return table.slice(0, 0)
        stop = at + 1
        while stop < len(ids) and ids[stop].as_py() == low:
            stop += 1
        return table.slice(at, stop - at)
    return table.filter(pc.and_(pc.greater_equal(ids, low), pc.less_equal(ids, high)))


def _among(table: pa.Table, ids: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table.column("prediction_id"), value_set=ids))
