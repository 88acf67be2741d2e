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
AT_ONCE = 1 << 15
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

    A table over equal cells answers for every cell that holds at most one edge; it is made once for a grid. The cell of a
    value is a monotone function of it, rounding included, so edges of lower cells are below it and of higher ones above.
    The last edge, which is next to the largest value of the reference, is compared by itself: else the two would share a cell.
    """

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        """Args: edges: Of each column, ascending, finite."""
        inner = [np.asarray(of[:-1], dtype=np.float64) for of in edges]
        sizes = np.array([of.size for of in inner], np.int64)
        there = np.arange(sizes.max(initial=1)) < sizes[:, None]
        filled = np.zeros(there.shape)
        filled[there] = np.concatenate([*inner, []])
        self._inner = inner
        self._last = np.array([of[-1] if len(of) else np.inf for of in edges])
        first, last = filled[:, 0], filled[np.arange(len(inner)), np.maximum(sizes, 1) - 1]
        scale = _scales(first, last, sizes)
        self._scale, self._first = scale[:, None], np.where(scale > 0, first, 0.0)[:, None]
        self._start = np.arange(len(inner), dtype=np.float64)[:, None] * _WIDTH + 1
        cells = self._cells(filled, np.empty(filled.shape))[there].astype(np.int64)
        held = np.bincount(cells, minlength=len(inner) * _WIDTH).reshape(-1, _WIDTH)
        self._below = (np.cumsum(held, axis=1) - held).reshape(-1)
        self._only = np.full(held.size, np.nan)  # a comparison with NaN is false: no edge here
        self._only[cells] = filled[there]
        crowd = held > 1
        self._crowd = crowd.reshape(-1)
        self._crowded: IntArray = np.flatnonzero(crowd.any(axis=1))

    def of(self, column: int) -> Bins:
        """For this column alone; its tables are not made again, which takes as long as finding thousands of bins."""
        one, tables = slice(column, column + 1), slice(column * _WIDTH, (column + 1) * _WIDTH)
        found = copy(self)
        found._inner, found._last = self._inner[one], self._last[one]
        found._scale, found._first, found._start = self._scale[one], self._first[one], self._start[:1]
        found._below, found._only, found._crowd = self._below[tables], self._only[tables], self._crowd[tables]
        found._crowded = np.zeros(int(column in self._crowded), np.int64)
        return found

    def __call__(self, values: FloatArray) -> IntArray:
        """Bins of finite values, both of shape (F, n); they lie in `ROOM.integers(1)`."""
        cells, bins = (ROOM.integers(number, values.shape) for number in (0, 1))
        raw, only = (ROOM.floats(number, values.shape) for number in (0, 1))
        np.copyto(cells, self._cells(values, raw), casting="unsafe")
        # `clip` where nothing is to clip: without a check, and faster
        self._below.take(cells, out=bins, mode="clip")
        self._only.take(cells, out=only, mode="clip")
        bins += values >= only
        for i in self._crowded:
            several = np.flatnonzero(self._crowd.take(cells[i], mode="clip"))
            bins[i, several] = np.searchsorted(self._inner[i], values[i, several], side="right")
        for i in np.flatnonzero(values.max(axis=1, initial=-np.inf) >= self._last):
            bins[i] += values[i] >= self._last[i]
        return bins

    def _cells(self, values: FloatArray, out: FloatArray) -> FloatArray:
        """Places in the tables of all columns, one after the other; whole when their fractions are cut off."""
        with np.errstate(over="ignore"):
            np.subtract(values, self._first, out=out)
            out *= self._scale
        np.clip(out, -1, _CELLS, out=out)
        out += self._start
        return out


def _scales(first: FloatArray, last: FloatArray, sizes: IntArray) -> FloatArray:
    """Cells by unit; 0, one cell for all values, where there are no two edges or their distance is no usable number."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scales = _CELLS / (last - first)
    return np.where((sizes > 1) & np.isfinite(scales), scales, 0.0)


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
