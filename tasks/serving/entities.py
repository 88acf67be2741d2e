"""Rows by entity key: the newest published row of each entity, so that who asks need not bring it.

A row is answered as the source had it, with its own event time: so score and prediction id are those that batch scoring gives that row.
Nothing is made up: no row is moved to another time, and none is put together from several.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.core.clock import epoch_micros
from tasks.core.erasures import entity_digest
from tasks.core.rows import entity_ids
from tasks.core.spec import PipelineSpec

log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Part:
    """A day's rows, and the snapshot that they are of."""

    snapshot_id: str
    rows: pa.Table


@dataclass(frozen=True)
class FoundRow:
    """A source row."""

    values: dict[str, Any]
    """By column."""
    entity: str
    event_time: datetime
    snapshot_id: str


class EntityRows:
    """An index over rows: 20 bytes for each beside the rows themselves.

    Args:
        parts: Any number, none twice.
        spec: Names the entity key and the event time.
        erased: `entity_digest` of the entities that nobody may ask for any more.
    """

    def __init__(
        self, parts: Sequence[Part], spec: PipelineSpec, *, erased: frozenset[str] = frozenset()
    ) -> None:
        self._erased = erased
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(part.rows.num_rows for part in parts)])
        hashes, times = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for part in parts:
            hashes.append(np.array([hash(one) for one in entity_ids(part.rows, spec)], np.int64))
            column = part.rows.column(spec.event_time).combine_chunks()
            times.append(column.cast(_US, safe=False).cast(pa.int64()).to_numpy(zero_copy_only=False))
        all_hashes, all_times = np.concatenate(hashes), np.concatenate(times)
        order = np.lexsort((all_times, all_hashes))
        self._hashes, self._times = all_hashes[order], all_times[order]
        self._order = order.astype(np.int32)
        self._spec = spec

    def __len__(self) -> int:
        return len(self._hashes)

    def newest(self, entity: str, as_of: datetime | None = None) -> FoundRow | None:
        """The entity's last row whose event time is not after `as_of`, or its last of all; None when there is none."""
        if self._erased and entity_digest(self._spec.name, entity) in self._erased:
            return None
        first, end = (np.searchsorted(self._hashes, hash(entity), side) for side in ("left", "right"))
        if as_of is not None:
            end = first + np.searchsorted(self._times[first:end], epoch_micros(as_of), "right")
        for place in range(int(end) - 1, int(first) - 1, -1):
            row = int(self._order[place])
            number = int(np.searchsorted(self._starts, row, "right")) - 1
            part = self._parts[number]
            one = part.rows.slice(row - int(self._starts[number]), 1)
            if entity_ids(one, self._spec)[0] == entity:  # and not one with an equal hash
                when = _EPOCH + timedelta(microseconds=int(self._times[place]))
                return FoundRow(one.to_pylist()[0], entity, when, part.snapshot_id)
        return None


Newest = Callable[[Any], "tuple[Any, EntityRows] | None"]
"""Given what it told last, or None: what is published now, and its rows; None when that is the same. Raises `PenstockError`."""


class EntityFollower:
    """A thread that indexes anew when something was published; what it had answers until then, and when that fails.

    Args:
        newest: See `Newest`.
        every_s: How often it is asked.
    """

    def __init__(self, newest: Newest, every_s: float) -> None:
        self.rows: EntityRows | None = None
        self._newest = newest
        self._every_s = every_s
        self._known: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="entities", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def follow_once(self) -> None:
        """Ask, and index if there is something new."""
        try:
            found = self._newest(self._known)
        except Exception as error:
            log.error("Published rows cannot be read, those that are known stay: %s", error)
            return
        if found is not None:
            self._known, self.rows = found
            log.info("%d rows can be asked for by entity key", len(self.rows))

    def _run(self) -> None:
        self.follow_once()
        while not self._stop.wait(self._every_s):
            self.follow_once()
