"""Partitions and snapshots in the pipeline's store: written once, named by their content, checked when read.

    data/<day>/<first 16 of sha256>.parquet      one day's rows
    snapshots/<snapshot_id>.json                 which partitions belong together, written last

Nothing here is ever replaced. Two writers with equal rows write equal bytes to an equal key, so whoever
comes second finds the work done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date

import pyarrow as pa

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import DataError, NotFound
from tasks.core.ids import canonical_json, digest_bytes
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.core.records import PartitionFile, Snapshot

ROW_GROUP_ROWS = 65_536
"""Upper bound on the rows of a row group, so that a shard can read its part of a day alone."""


def write_partition(store: ObjectStore, day: date, table: pa.Table) -> PartitionFile:
    """Write one day's rows; a partition with equal content is left as it is.

    Args:
        store: The pipeline's store.
        day: The local day that the rows belong to.
        table: At least one row. Chunking, dictionary encoding and schema metadata do not change the result.

    Raises:
        DataError: `table` has no rows or no columns.
    """
    if not table.num_rows or not table.num_columns:
        raise DataError(
            "has no rows",
            which=f"partition {day}",
            fix="leave the day out, or find out why nothing arrived for it",
        )
    data = _parquet_bytes(table)
    sha256 = digest_bytes(data)
    key = f"data/{day.isoformat()}/{sha256[:16]}.parquet"
    if not store.exists(key):
        with suppress(AlreadyExists):  # the key is the content's digest: another writer stored these bytes
            store.put_exclusive(key, data)
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(pa.BufferReader(data))
    return PartitionFile(
        day=day,
        key=key,
        rows=table.num_rows,
        size_bytes=len(data),
        sha256=sha256,
        row_group_rows=tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)),
    )


def read_partition(
    store: ObjectStore,
    partition: PartitionFile,
    columns: Sequence[str] | None = None,
    row_groups: Sequence[int] | None = None,
) -> pa.Table:
    """Read a partition, or some columns and row groups of it. The whole file is checked against its digest.

    Raises:
        NotFound: The object is gone.
        DataError: It is truncated or damaged, or lacks a column of `columns`.
    """
    which = store.url(partition.key)
    data = store.get(partition.key)
    if len(data) != partition.size_bytes or digest_bytes(data) != partition.sha256:
        how = (
            f"is truncated: {len(data):,} of {partition.size_bytes:,} bytes"
            if len(data) < partition.size_bytes
            else f"is damaged: its SHA-256 is not the recorded {partition.sha256[:16]}…"
        )
        raise DataError(
            how,
            which=which,
            fix="restore the object from a backup, or delete it and take the snapshot again: "
            "equal source rows write it anew",
        )
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        present = set(file.schema_arrow.names)
        missing = [name for name in columns or () if name not in present]
        if missing:
            raise DataError(
                f"has no column {', '.join(missing)}",
                which=which,
                fix=f"ask for some of: {', '.join(file.schema_arrow.names)}",
            )
        names = list(columns) if columns is not None else None
        if row_groups is not None:
            return file.read_row_groups(list(row_groups), columns=names)
        return file.read(columns=names)
    except pa.ArrowException as error:
        raise DataError(
            f"is not readable as Parquet: {error}",
            which=which,
            fix="delete the object and take the snapshot again",
        ) from error


def save_snapshot(store: ObjectStore, snapshot: Snapshot) -> Snapshot:
    """Record a snapshot whose partitions are all written. Returns what is stored: the first one of equal content."""
    key = _snapshot_key(snapshot.snapshot_id)
    try:
        store.put_exclusive(key, canonical_json(snapshot.to_json()))
    except AlreadyExists:
        return load_snapshot(store, snapshot.snapshot_id)
    return snapshot


def load_snapshot(store: ObjectStore, snapshot_id: str) -> Snapshot:
    """The snapshot of that id.

    Raises:
        NotFound: There is none.
        DataError: Its manifest is not readable.
    """
    key = _snapshot_key(snapshot_id)
    try:
        raw = json.loads(store.get(key))
        return Snapshot.from_json(raw)
    except NotFound as error:
        raise NotFound(
            "is not a snapshot of this pipeline",
            which=snapshot_id,
            fix=f"look below {store.url('snapshots')} for the ids there are, or take a snapshot",
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"is not a readable manifest: {error}",
            which=store.url(key),
            fix="delete it and take the snapshot again",
        ) from error


def derive_snapshot(
    store: ObjectStore, parent: Snapshot, partitions: Iterable[PartitionFile], *, clock: Clock = utc_now
) -> Snapshot:
    """Record the snapshot that `parent` becomes with other partitions of the same schema.

    Equal partitions are the parent itself, and it is what comes back.

    Raises:
        DataError: No partition is left.
    """
    ordered = tuple(sorted(partitions, key=lambda part: part.day))
    if not ordered:
        raise DataError(
            "has no rows left", which=f"snapshot {parent.snapshot_id}", fix="see why every row was removed"
        )
    identity = Snapshot.identity(parent.pipeline, parent.kind, parent.schema, ordered)
    if identity == parent.snapshot_id:
        return parent
    return save_snapshot(
        store,
        Snapshot(
            snapshot_id=identity,
            pipeline=parent.pipeline,
            kind=parent.kind,
            schema=parent.schema,
            partitions=ordered,
            created_at_utc=iso_utc(clock()),
            parent_snapshot_id=parent.snapshot_id,
        ),
    )


def table_schema(table: pa.Table) -> tuple[tuple[str, str], ...]:
    """(column, Arrow type) in order, as a snapshot records it."""
    return tuple((field.name, str(field.type)) for field in _canonical_schema(table.schema))


def _snapshot_key(snapshot_id: str) -> str:
    return f"snapshots/{snapshot_id}.json"


def _canonical_schema(schema: pa.Schema) -> pa.Schema:
    """Plain types, no metadata: what decides about equal content."""
    return pa.schema(
        [
            pa.field(field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
            for field in schema
        ]
    )


def _parquet_bytes(table: pa.Table) -> bytes:
    """The same bytes for the same rows, under one pyarrow version."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table.cast(_canonical_schema(table.schema)).combine_chunks(),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        version="2.6",
        write_statistics=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data
