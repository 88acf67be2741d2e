"""What a backup is: one record that names every object by key, size and digest."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.core.records import JsonRecord

METADATA = "metadata.db"
"""Key of the metadata database in a manifest."""


@dataclass(frozen=True)
class KeptObject(JsonRecord):
    """One object of an installation; its content lies once in the place, under its digest."""

    key: str
    """Relative to `PENSTOCK_STORE`, or to `PENSTOCK_HOME/hot` for online rows."""
    size_bytes: int
    sha256: str
    modified_at_utc: str
    """By the clock of the store that it was copied from."""


@dataclass(frozen=True)
class Manifest(JsonRecord):
    """A finished backup. It is written last: without it there is none."""

    begun_at_utc: str
    cut_at_utc: str
    """By the object store's clock: commit records that are newer are not in the backup."""
    finished_at_utc: str
    store: str
    """URL of the object store that was copied."""
    database: str
    """URL of the metadata database, without secrets."""
    schema: str | None
    """Its revision."""
    metadata: KeptObject
    hot: tuple[KeptObject, ...]
    objects: tuple[KeptObject, ...]
    tables: dict[str, int]
    """Folder of each Delta table and its version."""
    vanished: tuple[str, ...] = ()
    """Keys that upkeep deleted while they were being copied; nothing else of the backup needs them."""
    protocol: int = 1

    @property
    def everything(self) -> tuple[KeptObject, ...]:
        """All that the backup holds."""
        return (self.metadata, *self.hot, *self.objects)

    @property
    def size_bytes(self) -> int:
        return sum(kept.size_bytes for kept in self.everything)
