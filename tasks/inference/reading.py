"""Read a shard's row groups, and nothing else, of a partition file whose digest was checked once.

A partition on a local disk is read where it lies. One on S3 is copied to `<cache_dir>/partitions/` first, streamed,
once for all processes of a machine. Each process takes the SHA-256 of a file before it first reads it, and again
when the file's inode, size or time of change differ from what it checked. Memory is bounded by the row groups.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import DataError, NotFound, disk_error
from tasks.core.object_store import LocalStore, ObjectStore
from tasks.core.records import PartitionFile

log = logging.getLogger(__name__)

CACHE_BYTES = 4 << 30
"""Copies that were used longest ago go when the folder holds more; the one in use stays."""

_Identity = tuple[int, int, int]


class PartitionReader:
    """Reads row groups of verified partitions; one for each process that scores.

    Args:
        store: The pipeline's store.
        cache_dir: Where copies of remote partitions go; safe to delete at any time.
    """

    def __init__(self, store: ObjectStore, cache_dir: Path) -> None:
        self._store = store
        self._folder = cache_dir / "partitions"
        self._verified: dict[Path, _Identity] = {}

    def read(self, partition: PartitionFile, row_groups: Sequence[int]) -> pa.Table:
        """The rows of these row groups.

        Raises:
            NotFound: The object is gone.
            DataError: It is truncated, damaged, not Parquet, or lacks a row group.
        """
        with self._open(partition) as source:
            try:
                file = pq.ParquetFile(source, pre_buffer=False)
                return file.read_row_groups(list(row_groups))
            except (pa.ArrowException, IndexError) as error:
                raise DataError(
                    f"is not readable as Parquet: {error}",
                    which=self._store.url(partition.key),
                    fix="delete the object and take the snapshot again",
                ) from error

    def _open(self, partition: PartitionFile) -> pa.NativeFile:
        if isinstance(self._store, LocalStore):
            path = Path(self._store.url(partition.key))
            try:
                self._verify(path, partition)
                return pa.OSFile(str(path))
            except FileNotFoundError as error:
                raise NotFound(
                    "does not exist",
                    which=str(path),
                    fix="restore the object from a backup, or take the snapshot again",
                ) from error
        path = self._folder / f"{partition.sha256}.parquet"
        for _ in range(3):
            try:
                self._verify(path, partition)
                # The time of access orders evictions; the time of change says whether the bytes are those checked.
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                return pa.OSFile(str(path))
            except FileNotFoundError:  # never copied, or removed by another process meanwhile
                self._copy(partition, path)
            except DataError:  # a damaged copy says nothing about the object
                path.unlink(missing_ok=True)
            except OSError as error:
                raise disk_error(error, str(path)) from error
        self._verify(path, partition)
        return pa.OSFile(str(path))

    def _verify(self, path: Path, partition: PartitionFile) -> None:
        status = path.stat()
        if self._verified.get(path) == _identity(status):
            return
        self._refuse_other_bytes(path, status.st_size, partition)
        self._verified[path] = _identity(status)

    def _refuse_other_bytes(self, path: Path, size: int, partition: PartitionFile) -> None:
        if size == partition.size_bytes:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == partition.sha256:
                    return
        how = (
            f"is truncated: {size:,} of {partition.size_bytes:,} bytes"
            if size < partition.size_bytes
            else f"is damaged: its SHA-256 is not the recorded {partition.sha256[:16]}…"
        )
        raise DataError(
            how,
            which=self._store.url(partition.key),
            fix="restore the object from a backup, or delete it and take the snapshot again: "
            "equal source rows write it anew",
        )

    def _copy(self, partition: PartitionFile, path: Path) -> None:
        """Copy the object; the copy appears under its name only with the right digest."""
        # Not by process id: threads share one, and so may processes of two containers with one cache folder.
        staged = path.with_name(f"{path.name}.{secrets.token_hex(6)}.new")
        try:
            self._evict(keep=partition.size_bytes)
            self._store.get_file(partition.key, staged)
            self._refuse_other_bytes(staged, staged.stat().st_size, partition)
            staged.replace(path)
            with suppress(FileNotFoundError):  # evicted by another process already: then it is copied again
                self._verified[path] = _identity(path.stat())
        except OSError as error:
            raise disk_error(error, str(path)) from error
        finally:
            with suppress(OSError):
                staged.unlink(missing_ok=True)

    def _evict(self, *, keep: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        found = []
        for path in self._folder.glob("*.parquet"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_atime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found) + keep
        for _, size, path in sorted(found):
            if total <= CACHE_BYTES:
                return
            path.unlink(missing_ok=True)  # a reader that has it open keeps it
            total -= size


def _identity(status: os.stat_result) -> _Identity:
    return status.st_ino, status.st_size, status.st_mtime_ns
