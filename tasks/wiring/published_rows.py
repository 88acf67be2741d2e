"""The rows of the newest published days, by entity key, for requests that bring no row."""

from __future__ import annotations

import logging
from datetime import date
from typing import TYPE_CHECKING

from tasks.core import PipelineSpec, Settings

if TYPE_CHECKING:
    from tasks.serving.entities import EntityRows

log = logging.getLogger(__name__)

MAX_ROWS = 500_000
"""Of all days together; older days are left out beyond it."""
_PATIENCE_S = 5.0

Published = tuple[tuple[tuple[date, str], ...], frozenset[str]]
"""Newest first: a day, and the run whose predictions are visible for it; and digests of the entities that were erased."""


class PublishedRows:
    """What was published: the input rows of the runs whose predictions are visible.

    Args:
        settings: This installation.
        spec: The pipeline.
        days: How many of the newest days.
        max_rows: See there.
    """

    def __init__(
        self, settings: Settings, spec: PipelineSpec, *, days: int, max_rows: int = MAX_ROWS
    ) -> None:
        self._settings = settings
        self._spec = spec
        self._days = days
        self._max_rows = max_rows

    def __call__(self, known: Published | None) -> tuple[Published, EntityRows] | None:
        """What is published now and its rows; None when that is what is known.

        Raises:
            ServiceUnavailable, NotFound, DataError: The database or the store does not have it.
        """
        from tasks.core import open_store
        from tasks.core.erasures import erasures
        from tasks.core.partitions import load_snapshot, read_partition
        from tasks.metadata import MetadataStore
        from tasks.serving.entities import EntityRows, Part

        metadata = MetadataStore.open(self._settings, patience_s=_PATIENCE_S)
        found = metadata.published_days(self._spec)
        newest = tuple(sorted(found.items(), reverse=True)[: self._days])
        store = open_store(self._settings, prefix=self._spec.prefix)
        published = newest, frozenset(erasure.entity_digest for erasure, _ in erasures(store))
        if published == known:
            return None
        parts: list[Part] = []
        rows = 0
        for day, run_id in newest:
            run = metadata.run(self._spec, run_id)
            if run is None or run.snapshot_id is None:
                continue
            snapshot = load_snapshot(store, run.snapshot_id)
            partition = next((one for one in snapshot.partitions if one.day == day), None)
            if partition is None:
                continue
            rows += partition.rows
            if rows > self._max_rows:
                log.warning("Days before %s are left out: %d rows would be too many to keep", day, rows)
                break
            parts.append(Part(run.snapshot_id, read_partition(store, partition)))
        return published, EntityRows(parts, self._spec, erased=published[1])
