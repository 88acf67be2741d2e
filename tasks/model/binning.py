"""Where values fall: bins of a grid's edges, and marks of distinct values, for several columns at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

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
        self._inner = inner
        self._last = np.array([of[-1] if len(of) else np.inf for of in edges])
        self._scale = np.array([[_scale(of)] for of in inner])
        self._first = np.array([[of[0] if _scale(of) else 0.0] for of in inner])
        self._start = np.arange(len(inner), dtype=np.float64)[:, None] * _WIDTH + 1
        self._below = np.zeros(len(inner) * _WIDTH, np.int64)
        self._only = np.full(len(inner) * _WIDTH, np.nan)  # a comparison with NaN is false: no edge here
        self._crowd = np.zeros(len(inner) * _WIDTH, np.bool_)
        for i, of in enumerate(inner):
            part = slice(i * _WIDTH, (i + 1) * _WIDTH)
            cells = self._cells(of[None], slice(i, i + 1), np.empty((1, of.size)))[0].astype(np.int64)
            cells -= part.start
            held = np.bincount(cells, minlength=_WIDTH)
            self._below[part] = np.cumsum(held) - held
            self._only[part][cells] = of
            self._crowd[part] = held > 1
        self._crowded: IntArray = np.flatnonzero(self._crowd.reshape(len(inner), _WIDTH).any(axis=1))

    def __call__(self, values: FloatArray) -> IntArray:
        """Bins of finite values, both of shape (F, n); they lie in `ROOM.integers(1)`."""
        cells, bins = (ROOM.integers(number, values.shape) for number in (0, 1))
        raw, only = (ROOM.floats(number, values.shape) for number in (0, 1))
        np.copyto(cells, self._cells(values, slice(None), raw), casting="unsafe")
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

    def _cells(self, values: FloatArray, columns: slice, out: FloatArray) -> FloatArray:
        """Places in the tables of all columns, one after the other; whole when their fractions are cut off."""
        with np.errstate(over="ignore"):
            np.subtract(values, self._first[columns], out=out)
            out *= self._scale[columns]
        np.clip(out, -1, _CELLS, out=out)
        out += self._start[columns]
        return out


def _scale(edges: FloatArray) -> float:
    """Cells by unit; 0, one cell for all values, where there are no two edges or their distance is no usable number."""
    if edges.size < 2:
        return 0.0
    with np.errstate(over="ignore", divide="ignore"):
        scale = float(_CELLS / (edges[-1] - edges[0]))
    return scale if np.isfinite(scale) else 0.0


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
