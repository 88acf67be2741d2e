"""Rows that failed a row-level expectation: kept whole, with the reasons, away from everything downstream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.object_store import ObjectStore
from tasks.core.partitions import read_partition, write_partition
from tasks.core.records import PartitionFile, Snapshot

REASON = "quarantine_reason"
EXPECTATIONS = "quarantine_expectations"
_EXAMPLES = 20


class Quarantine:
    """Collects rows in a local Parquet file, one row group a batch, then uploads it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "quarantine.parquet"
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0
        self.by_expectation: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []

    def add(self, rows: pa.Table, reasons: Sequence[Sequence[tuple[str, str]]]) -> None:
        """Take `rows`; `reasons` gives each row's failed expectations as (name, reason in words)."""
        names = [[name for name, _ in row] for row in reasons]
        texts = ["; ".join(reason for _, reason in row) for row in reasons]
        table = rows.append_column(REASON, pa.array(texts, pa.string())).append_column(
            EXPECTATIONS, pa.array(names, pa.list_(pa.string()))
        )
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table.cast(self._writer.schema))
        self.rows += table.num_rows
        self.by_expectation.update(name for row in names for name in row)
        self.examples += table.slice(0, max(0, _EXAMPLES - len(self.examples))).to_pylist()

    def upload(self, store: ObjectStore, key: str) -> str | None:
        """Store what was collected under `key`; None when no row was."""
        if self._writer is None:
            return None
        self._writer.close()
        store.put_file(key, self._path)
        return key


def clean_partitions(
    store: ObjectStore, snapshot: Snapshot, removed: Mapping[int, set[int]]
) -> list[PartitionFile]:
    """The partitions of `snapshot` without the rows in `removed` (partition index -> positions)."""
    kept: list[PartitionFile] = []
    for index, partition in enumerate(snapshot.partitions):
        positions = removed.get(index)
        if not positions:
            kept.append(partition)
        elif len(positions) < partition.rows:
            table = read_partition(store, partition)
            stay = pa.array([position not in positions for position in range(table.num_rows)], pa.bool_())
            kept.append(write_partition(store, partition.day, table.filter(stay)))
    return kept
