"""Counts of numeric features: their grid, what is counted on it, and how, for many columns at once.

A short column is counted with the others as a matrix, because the calls themselves would cost most; of a long one values that
repeat are counted once (`occurrences`). Both give the same counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.core.sampling import Mask
from tasks.model.binning import AT_ONCE, ROOM, SEEN_BITS, Bins, mark
from tasks.model.occurrences import Occurrences

MAX_BINS = 64

_LIMIT = 1 << 23
"""Fixed-point values are clipped here; `unit` is 1/4096 of a standard deviation, so at 2,048 of them."""
_ROWS_AT_ONCE = 1 << 13
"""Rows taken at a time at most: sums of so many squares stay below 2**63."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NumericGrid:
    """Bins of a numeric feature: below `edges[0]`, `[edges[i], edges[i + 1])`, from `edges[-1]` up.

    The first edge is the reference's minimum and the last one is just above its maximum, so the outer bins
    count values out of the reference's range. A feature with few distinct values has one bin for each.
    """

    name: str
    edges: tuple[float, ...]
    centre: float
    unit: float

    @property
    def bins(self) -> int:
        return len(self.edges) + 1


@dataclass(frozen=True, eq=False)
class NumericCounts:
    """Counts of one numeric feature. `counts` follows the grid's bins; NaN counts as null."""

    grid: NumericGrid
    counts: IntArray
    nulls: int
    n: int
    """Finite values; infinities are in the outer bins only."""
    total: int
    """Sum of (value - centre) / unit, rounded value by value."""
    squares: int
    low: float | None
    high: float | None
    seen: int
    """512 bits, one set by each distinct value's hash; `distinct` reads it."""

    @property
    def mean(self) -> float | None:
        return None if self.n == 0 else self.grid.centre + self.grid.unit * self.total / self.n

    @property
    def std(self) -> float | None:
        """Population standard deviation; None without values."""
        if self.n == 0:
            return None
        variance = (self.squares * self.n - self.total * self.total) / (self.n * self.n)
        return float(self.grid.unit * np.sqrt(max(variance, 0.0)))

    @property
    def m2(self) -> float:
        """Sum of squared deviations from the mean."""
        return 0.0 if self.n == 0 else float((self.std or 0.0) ** 2 * self.n)

    @property
    def distinct(self) -> float:
        """About how many distinct values there are; saturates near 3,000.

        Source: Whang, Vander-Zanden & Taylor (1990), "A linear-time probabilistic counting algorithm".
        """
        empty = SEEN_BITS - self.seen.bit_count()
        return float(SEEN_BITS * np.log(SEEN_BITS / max(empty, 1)))

    @property
    def out_of_range(self) -> int:
        """Values below the reference's minimum or above its maximum."""
        return int(self.counts[0]) + (int(self.counts[-1]) if len(self.counts) > 1 else 0)

    def merge(self, other: NumericCounts) -> NumericCounts:
        return NumericCounts(
            self.grid,
            self.counts + other.counts,
            self.nulls + other.nulls,
            self.n + other.n,
            self.total + other.total,
            self.squares + other.squares,
            min((v for v in (self.low, other.low) if v is not None), default=None),
            max((v for v in (self.high, other.high) if v is not None), default=None),
            self.seen | other.seen,
        )

    def times(self, each: int) -> NumericCounts:
        """As if each row had come `each` times."""
        return NumericCounts(
            self.grid,
            self.counts * each,
            self.nulls * each,
            self.n * each,
            self.total * each,
            self.squares * each,
            self.low,
            self.high,
            self.seen,
        )

    def histogram(self) -> IntArray:
        """Bins, then nulls; shape (bins + 1,)."""
        return np.append(self.counts, self.nulls)

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts.tolist(),
            "nulls": self.nulls,
            "n": self.n,
            "total": self.total,
            "squares": self.squares,
            "low": self.low,
            "high": self.high,
            "seen": f"{self.seen:x}",
        }

    @classmethod
    def from_json(cls, grid: NumericGrid, raw: Mapping[str, Any]) -> NumericCounts:
        return cls(
            grid,
            counts_of(raw["counts"], grid.bins, grid.name),
            int(raw["nulls"]),
            int(raw["n"]),
            int(raw["total"]),
            int(raw["squares"]),
            raw["low"],
            raw["high"],
            int(raw["seen"], 16),
        )


def counts_of(values: Sequence[int], size: int, channel: str) -> IntArray:
    """Counts of a channel from JSON, shape (size,). Raises `ValueError` when they are not as many."""
    counts = np.asarray(values, dtype=np.int64)
    if counts.shape != (size,):
        raise ValueError(f"{channel} has {counts.size} counts instead of {size}")
    return counts


def fit_numeric(name: str, values: FloatArray) -> NumericGrid:
    """The grid of a feature's training values; NaN and infinities are left out."""
    finite = np.sort(values[np.isfinite(values)])
    if finite.size == 0:
        return NumericGrid(name, (), 0.0, 1.0)
    distinct = np.unique(finite)
    if distinct.size > MAX_BINS - 2:
        quantiles = np.quantile(finite, np.linspace(0, 1, MAX_BINS - 1)[:-1], method="inverted_cdf")
        distinct = np.unique(quantiles)
    edges = np.append(distinct, np.nextafter(finite[-1], np.inf))
    spread = float(finite.std())
    scale = spread if np.isfinite(spread) and spread > 0 else max(abs(float(finite[0])), 1.0)
    return NumericGrid(name, tuple(edges.tolist()), float(np.median(finite)), scale / 4096)


class NumericTables:
    """What counting needs to know of the grids of F features, made once."""

    def __init__(self, grids: Sequence[NumericGrid]) -> None:
        self.grids = tuple(grids)
        self.bins = Bins([grid.edges for grid in grids])
        self.centre = np.array([[grid.centre] for grid in grids])
        """Shape (F, 1), as `unit`."""
        self.unit = np.array([[grid.unit] for grid in grids])
        self.last = self.bins.starts[:, 0] + np.array([grid.bins - 1 for grid in grids], np.int64)
        """Place of the last bin of each feature, shape (F,)."""

    def of(self, feature: int) -> NumericTables:
        """Of this one alone."""
        one = slice(feature, feature + 1)
        found = copy(self)
        found.grids, found.bins = self.grids[one], self.bins.of(feature)
        found.centre, found.unit = self.centre[one], self.unit[one]
        found.last = self.last[one] - self.bins.starts[feature]
        return found


def count_columns(tables: NumericTables, columns: FloatArray) -> list[NumericCounts]:
    """Counts of each of F features.

    Args:
        tables: Of their grids.
        columns: One of each feature, shape (F, n); NaN is null.
    """
    sums = _Sums(tables)
    size = min(_ROWS_AT_ONCE, max(AT_ONCE // max(len(tables.grids), 1), 1))
    for start in range(0, columns.shape[1] if tables.grids else 0, size):
        sums.add(columns[:, start : start + size])
    return sums.counts()


class _Sums:
    """Running sums of F features."""

    def __init__(self, tables: NumericTables) -> None:
        self._tables, features = tables, len(tables.grids)
        self._histogram = np.zeros(features * tables.bins.width, np.int64)
        self._n = np.zeros(features, np.int64)
        self._totals, self._squares = [0] * features, [0] * features
        self._low, self._high = np.full(features, np.inf), np.full(features, -np.inf)
        self._marks = np.zeros(features * SEEN_BITS + 1, np.bool_)

    def add(self, columns: FloatArray) -> None:
        """Args: columns: Shape (F, k), k at least 1 and at most `_ROWS_AT_ONCE`."""
        rows = columns.shape[1]
        values = ROOM.floats(2, columns.shape)
        values[:] = columns
        places, low, high, odd = self._found(values)
        self._histogram += np.bincount(places.ravel(), minlength=self._histogram.size)
        self._n += rows - np.bincount(odd // rows, minlength=len(columns))
        np.minimum(self._low, low, out=self._low)
        np.maximum(self._high, high, out=self._high)
        self._add_moments(
            _fixed(values, self._tables.centre, self._tables.unit, ROOM.floats(0, values.shape))
        )
        if not self._marks[:-1].all():  # else nothing more can change
            mark(self._marks, values, odd)

    def _found(self, values: FloatArray) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
        """Where values are counted; the lowest and the highest of each column; which values are not finite, shape (m,), places in all of them.

        Those lie at their centre afterwards, which adds nothing to the moments.
        """
        flat = values.reshape(-1)  # of the same memory
        odd = np.flatnonzero(~np.isfinite(flat))
        column, raw = odd // values.shape[1], flat[odd]
        flat[odd] = np.inf
        low = values.min(axis=1)
        flat[odd] = -np.inf
        high = values.max(axis=1)
        flat[odd] = self._tables.centre[column, 0]
        bins = self._tables.bins
        places = bins(values)
        first, last = bins.starts[column, 0], self._tables.last[column]
        null = first + bins.width - 1
        places.reshape(-1)[odd] = np.where(np.isnan(raw), null, np.where(raw > 0, last, first))
        return places, low, high, odd

    def _add_moments(self, fixed: FloatArray) -> None:
        """Exact: in floating point where the squares stay below 2**53 together, else as integers."""
        largest = np.maximum(fixed.max(axis=1), -fixed.min(axis=1))
        sums, squares = fixed.sum(axis=1).tolist(), np.einsum("ij,ij->i", fixed, fixed).tolist()
        for i, whole in enumerate((largest * largest * fixed.shape[1] < 2.0**53).tolist()):
            self._totals[i] += int(sums[i])
            exact = None if whole else fixed[i].astype(np.int64)
            self._squares[i] += int(squares[i]) if exact is None else int(exact @ exact)

    def counts(self) -> list[NumericCounts]:
        """Of all that was added."""
        found = []
        marks = _packed(self._marks[:-1].reshape(-1, SEEN_BITS))
        histograms = self._histogram.reshape(-1, self._tables.bins.width)
        for i, grid in enumerate(self._tables.grids):
            found.append(
                NumericCounts(
                    grid,
                    histograms[i, : grid.bins],
                    int(histograms[i, -1]),
                    int(self._n[i]),
                    self._totals[i],
                    self._squares[i],
                    *_extremes(self._low[i], self._high[i]),
                    marks[i],
                )
            )
        return found


def count_long(tables: NumericTables, column: Occurrences) -> NumericCounts:
    """Counts of one feature: values that repeat with how often they come, the others one by one, or beside them when they are few.

    Args:
        tables: Of its grid.
        column: Its values.
    """
    some = column.counts > 0
    values, times = column.values[some], column.counts[some]
    if not values.size:
        return count_columns(tables, column.rest[None])[0]
    if column.rest.size <= _ROWS_AT_ONCE:
        values = np.concatenate([values, column.rest])
        return _repeated(tables, values, np.concatenate([times, np.ones(column.rest.size, np.int64)]))
    rest = count_columns(tables, column.rest[None])[0]
    return rest.merge(_repeated(tables, values, times))


def _repeated(tables: NumericTables, values: FloatArray, times: IntArray) -> NumericCounts:
    """Counts of values that each come so many times."""
    grid = tables.grids[0]
    nulls, above, below = (
        int(times[odd].sum()) for odd in (np.isnan(values), values == np.inf, values == -np.inf)
    )
    finite = np.isfinite(values)
    if not finite.all():
        values, times = values[finite], times[finite]
    places = tables.bins(values[None])[0]
    counts = np.bincount(places, weights=times, minlength=grid.bins).astype(np.int64)
    counts[-1] += above
    counts[0] += below
    fixed, n = _fixed(values, grid.centre, grid.unit, np.empty(values.size)), int(times.sum())
    largest = float(np.abs(fixed).max(initial=0.0))
    if largest * largest * n < 2.0**53:  # exact in floating point
        total, squares = int(fixed @ times), int((fixed * fixed) @ times)
    else:
        pairs = list(zip(fixed.astype(np.int64).tolist(), times.tolist(), strict=True))
        total, squares = sum(f * t for f, t in pairs), sum(f * f * t for f, t in pairs)
    marks = np.zeros(SEEN_BITS + 1, np.bool_)
    mark(marks, values[None])
    extremes = _extremes(values.min(initial=np.inf), values.max(initial=-np.inf))
    return NumericCounts(grid, counts, nulls, n, total, squares, *extremes, _packed(marks[None, :-1])[0])


def _fixed(
    values: FloatArray, centre: FloatArray | float, unit: FloatArray | float, out: FloatArray
) -> FloatArray:
    """Finite values in units of the grid, whole numbers."""
    with np.errstate(over="ignore"):
        np.subtract(values, centre, out=out)
        out /= unit
    np.rint(out, out=out)
    return np.clip(out, -_LIMIT, _LIMIT, out=out)


def _extremes(low: float, high: float) -> tuple[float | None, float | None]:
    if low > high:  # no value
        return None, None
    return float(low) + 0.0, float(high) + 0.0  # minus zero has one JSON form with zero


def _packed(marks: Mask) -> list[int]:
    """Args: marks: Shape (F, 512)."""
    return [int.from_bytes(row.tobytes(), "big") for row in np.packbits(marks, axis=1)]
