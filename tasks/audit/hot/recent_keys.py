"""Identities of rows whose segment is closed, for as long as a retry is recognised."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

_GENERATIONS = 4
"""Closings within so small a part of the window are kept, and forgotten, together."""

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class _Generation:
    """Keys of segments that were closed within a quarter of the window."""

    first: datetime
    last: datetime
    keys: Words
    """Shape (n, 2): the halves of each key, in order of the first ones."""

    def among(self, wanted: Words) -> npt.NDArray[np.bool_]:
        """Which of the wanted keys, shape (m, 2), in order of their first halves, are here; shape (m,)."""
        heads = self.keys[:, 0]
        start = np.searchsorted(heads, wanted[:, 0])
        found = np.zeros(len(wanted), np.bool_)
        looking = np.flatnonzero(heads[np.minimum(start, len(heads) - 1)] == wanted[:, 0])
        for at in looking.tolist():  # a retry, or one of 2**64
            place = int(start[at])
            while place < len(heads) and heads[place] == wanted[at, 0]:
                found[at] |= self.keys[place, 1] == wanted[at, 1]
                place += 1
        return found


class RecentKeys:
    """What `tasks.audit.hot.rows.row_keys` gave for rows of segments that are closed.

    A key takes 16 bytes and is kept for the window, a quarter longer at most.

    Args:
        window: How long a key is kept.
    """

    def __init__(self, window: timedelta) -> None:
        self._window = window
        self._generations: list[_Generation] = []

    def add(self, closed_at: datetime, keys: Collection[bytes]) -> None:
        """Keep the keys of a segment."""
        if not keys:
            return
        words = _words(keys)
        first = last = closed_at
        newest = self._generations[-1] if self._generations else None
        if newest:
            both = min(newest.first, first), max(newest.last, last)
            if both[1] - both[0] < self._window / _GENERATIONS:
                words = np.concatenate([newest.keys, words])
                first, last = both
                self._generations.pop()
        order = np.argsort(words[:, 0], kind="stable")  # of parts that are in order, so it merges
        self._generations.append(_Generation(first, last, words[order]))

    def forget(self, now: datetime) -> None:
        """Let keys go whose window is over."""
        self._generations = [one for one in self._generations if now - one.last < self._window]

    def among(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of the keys that are kept."""
        if not self._generations or not keys:
            return set()
        words = _words(keys)
        order = np.argsort(words[:, 0])
        ordered = words[order]
        found = np.zeros(len(keys), np.bool_)
        for one in self._generations:
            found |= one.among(ordered)
        return {keys[at] for at in order[found].tolist()}


def _words(keys: Collection[bytes]) -> Words:
    return np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
