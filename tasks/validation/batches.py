"""A snapshot cut into batches of bounded size: whole days together, or parts of one large day."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from tasks.core.day_span import day_span
from tasks.core.object_store import ObjectStore
from tasks.core.partitions import read_partition
from tasks.core.records import PartitionFile, Snapshot

BATCH_ROWS = 250_000
"""Rows of a batch. One validation costs about 0.2 CPU-s whatever its size, so 120 days of 900 rows are one
batch, not 120; and 250,000 rows of 30 columns stay under 0.5 GB."""


@dataclass(frozen=True)
class Part:
    """Rows of one partition inside a batch."""

    partition_index: int
    table: pa.Table
    last: bool
    """True when no further part of this partition follows."""


@dataclass(frozen=True)
class Batch:
    """Parts in day order."""

    parts: tuple[Part, ...]
    first_day: str
    last_day: str

    @property
    def name(self) -> str:
        return day_span(self.first_day, self.last_day)

    def table(self) -> pa.Table:
        """All rows; positions follow the parts in order."""
        return pa.concat_tables([part.table for part in self.parts])


def read_batches(store: ObjectStore, snapshot: Snapshot, *, batch_rows: int = BATCH_ROWS) -> Iterator[Batch]:
    """Read `snapshot` once, batch by batch. Raises what `read_partition` raises."""
    held: list[Part] = []
    rows = 0
    for index, partition in enumerate(snapshot.partitions):
        if held and rows + partition.rows > batch_rows:
            yield _batch(snapshot, held)
            held, rows = [], 0
        if partition.rows > batch_rows:
            yield from _split(store, snapshot, index, partition, batch_rows)
        else:
            held.append(Part(index, read_partition(store, partition), last=True))
            rows += partition.rows
    if held:
        yield _batch(snapshot, held)


def _split(
    store: ObjectStore, snapshot: Snapshot, index: int, partition: PartitionFile, batch_rows: int
) -> Iterator[Batch]:
    groups: list[list[int]] = [[]]
    rows = 0
    for group, group_rows in enumerate(partition.row_group_rows):
        if groups[-1] and rows + group_rows > batch_rows:
            groups.append([])
            rows = 0
        groups[-1].append(group)
        rows += group_rows
    for number, some in enumerate(groups):
        table = read_partition(store, partition, row_groups=some)
        yield _batch(snapshot, [Part(index, table, last=number == len(groups) - 1)])


def _batch(snapshot: Snapshot, parts: list[Part]) -> Batch:
    days = [snapshot.partitions[part.partition_index].day.isoformat() for part in parts]
    return Batch(tuple(parts), days[0], days[-1])
