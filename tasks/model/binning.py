"""Where values fall: bins of a grid's edges, and marks of distinct values, for several columns at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from copy import copy

import numpy as np
import numpy.typing as npt

from tasks.core.sampling import Mask
from tasks.core.splitmix import mix

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SEEN_BITS = 512
"""Marks of a column's distinct values."""
AT_ONCE = 3 << 14
"""Values of all columns that are taken at a time, so that what is computed of them stays in the processor's cache."""
_CELLS = 2048
_WIDTH = _CELLS + 2


class Room(threading.local):
    """Memory of each thread for what is computed of a few values at a time: new memory would cost more than the computing."""

    def __init__(self) -> None:
        self._floats = np.empty((3, AT_ONCE))
        self._integers = np.empty((2, AT_ONCE), np.int64)

    def floats(self, number: int, shape: tuple[int, ...]) -> FloatArray:
        """One of three arrays; new memory where it does not fit."""
        size = math.prod(shape)
        return self._floats[number, :size].reshape(shape) if size <= AT_ONCE else np.empty(shape)

    def integers(self, number: int, shape: tuple[int, ...]) -> IntArray:
        """One of two arrays; new memory where it does not fit."""
        size = math.prod(shape)
        return self._integers[number, :size].reshape(shape) if size <= AT_ONCE else np.empty(shape, np.int64)


ROOM = Room()


class Bins:
    """Finds bins of F columns: `searchsorted(edges, values, side="right")` of each, much faster, with equal results.

    A table over equal cells says how many edges lie in lower ones, and the next edge is compared; so it answers for every cell that
    holds at most one edge. It is made once for a grid. The cell of a value is a monotone function of it, rounding included, so
    edges of lower cells are below it and of higher ones above.
    The last edge, which is next to the largest value of the reference, is compared by itself: else the two would share a cell.
    """

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        """Args: edges: Of each column, ascending, finite."""
        inner = [np.asarray(of[:-1], dtype=np.float64) for of in edges]
        sizes = np.array([of.size for of in inner], np.int64)
        self.width = int(sizes.max(initial=0)) + 3
        """Places of a column: its bins, of which the column with most edges has all but one, and a last one that no value takes."""
        self.starts: IntArray = np.arange(len(inner))[:, None] * self.width
        """The first place of each column, shape (F, 1)."""
        there = np.arange(self.width) < sizes[:, None]
        self._edges = np.full(there.shape, np.inf)
        self._edges[there] = np.concatenate([*inner, []])
        self._inner = inner
        self._last = np.array([of[-1] if len(of) else np.inf for of in edges])
        start = np.arange(len(inner), dtype=np.float64)[:, None] * _WIDTH
        self._scale, self._first = _lines(self._edges, sizes, start + 1)
        self._lowest, self._highest = start, start + _WIDTH - 1
        cells = self._cells(np.where(there, self._edges, 0.0), np.empty(there.shape))[there].astype(np.int64)
        held = np.bincount(cells, minlength=len(inner) * _WIDTH).reshape(-1, _WIDTH)
        # in as few bytes as will do: the table is looked up all over, and should lie in a near cache
        following = np.cumsum(held, axis=1) - held + self.starts
        self._following = following.astype(np.min_scalar_type(there.size)).reshape(-1)
        crowd = held > 1
        self._crowd = crowd.reshape(-1)
        self._crowded: IntArray = np.flatnonzero(crowd.any(axis=1))

    def of(self, column: int) -> Bins:
        """For this column alone; its tables are not made again, which takes as long as finding thousands of bins."""
        one, tables = slice(column, column + 1), slice(column * _WIDTH, (column + 1) * _WIDTH)
        found = copy(self)
        found.starts = self.starts[:1]
        found._inner, found._last, found._edges = self._inner[one], self._last[one], self._edges[one]
        found._scale, found._first = self._scale[one], self._first[one] - self._lowest[one]
        found._lowest, found._highest = self._lowest[:1], self._highest[:1]
        found._following = self._following[tables] - self._following.dtype.type(self.starts[column, 0])
        found._crowd = self._crowd[tables]
        found._crowded = np.zeros(int(column in self._crowded), np.int64)
        return found

    def __call__(self, values: FloatArray) -> IntArray:
        """`starts` and the bins of finite values, both of shape (F, n); they lie in `ROOM.integers(1)`."""
        cells, places = (ROOM.integers(number, values.shape) for number in (0, 1))
        room = ROOM.floats(0, values.shape)
        np.copyto(cells, self._cells(values, room), casting="unsafe")
        # `clip` where nothing is to clip: without a check, and faster
        np.copyto(places, self._following.take(cells, mode="clip"))
        places += values >= self._edges.take(places, out=room, mode="clip")
        for i in self._crowded:
            several = np.flatnonzero(self._crowd.take(cells[i], mode="clip"))
            found = np.searchsorted(self._inner[i], values[i, several], side="right")
            places[i, several] = found + self.starts[i]
        for i in np.flatnonzero(values.max(axis=1, initial=-np.inf) >= self._last):
            places[i] += values[i] >= self._last[i]
        return places

    def _cells(self, values: FloatArray, out: FloatArray) -> FloatArray:
        """Places in the tables of all columns, one after the other; whole when their fractions are cut off."""
        with np.errstate(over="ignore"):
            np.multiply(values, self._scale, out=out)
        out += self._first
        return np.clip(out, self._lowest, self._highest, out=out)


def _lines(edges: FloatArray, sizes: IntArray, start: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What to multiply values by, and what to add, for the first edges to come to `start` and the last ones `_CELLS` after it.

    All values come to `start` where there are no two edges or their distance is no usable number. All have shape (F, 1).
    """
    first = edges[:, :1]
    last = np.take_along_axis(edges, np.maximum(sizes, 1)[:, None] - 1, axis=1)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scale = _CELLS / (last - first)
        at = start - first * scale
    usable = (sizes > 1)[:, None] & np.isfinite(scale) & np.isfinite(at)
    return np.where(usable, scale, 0.0), np.where(usable, at, start)


def mark(marks: Mask, values: FloatArray, left_out: IntArray | None = None) -> None:
    """Set the marks where hashes of values (the finalizer of SplitMix64) fall.

    Args:
        marks: Shape (F * 512 + 1,): those of each column, and one of no meaning.
        values: Shape (F, n), finite.
        left_out: Shape (m,): places, in the values row by row, of those that set no mark.
    """
    hashed, shifted = (ROOM.floats(number, values.shape) for number in (0, 1))
    bits, some = (
        np.add(values, 0.0, out=hashed).view(np.uint64),
        shifted.view(np.uint64),
    )  # minus zero is zero
    mix(bits, some)
    bits >>= np.uint64(55)
    bits += np.arange(0, marks.size - 1, SEEN_BITS, dtype=np.uint64)[:, None]
    if left_out is not None:
        bits.reshape(-1)[left_out] = marks.size - 1
    marks[bits.view(np.int64)] = True
