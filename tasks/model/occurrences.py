"""How often each value of a column occurs: few values come often in most columns, and then all that is counted follows from these.

A table of slots holds one value each, chosen by a sample. A row whose value is the one in its slot costs a look-up; the other
rows are kept as they are. So counts are exact whatever the table holds, and only the time depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_SLOT_BITS = 12
_SLOTS = 1 << _SLOT_BITS
_SHIFT = np.uint64(64 - _SLOT_BITS)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Spreads bit patterns over slots. Source: Knuth, The Art of Computer Programming 3, section 6.4 (multiplicative hashing)."""
LEAST_ROWS = 2 * _SLOTS
"""Rows below which the table costs more than it saves."""
_LEAST_HITS = 0.5
_AT_ONCE = 1 << 14
"""Rows looked up at a time, so that what is computed of them stays in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Occurrences:
    """The rows of a column, those with a value of the table counted by value. NaN and both zeros are values like any other."""

    values: FloatArray
    """Shape (k,): the table; k is 0 when values hardly repeat."""
    counts: IntArray
    """Shape (k,): rows of each; 0 for a slot that holds none."""
    rest: FloatArray
    """Shape (m,): values of the other rows, in order."""
    _slots: IntArray
    """Shape (n,): the slot of each row; nothing when k is 0."""
    _rest_at: IntArray
    """Shape (m,): positions of `rest`; nothing when k is 0."""

    @classmethod
    def of(cls, column: FloatArray, room: IntArray) -> Occurrences:
        """Count a column.

        Args:
            column: Shape (n,); not copied when values hardly repeat.
            room: Shape (n,), overwritten, and used as long as the result is: new memory for each column costs as much as counting it.
        """
        nothing = np.zeros(0, np.int64)
        plain = cls(np.zeros(0), nothing, column, nothing, nothing)
        if column.size < LEAST_ROWS:
            return plain
        bits = np.ascontiguousarray(column).view(np.uint64)
        table = np.zeros(_SLOTS, np.uint64)  # 0.0 in every slot, which only its own slot can find
        sample = bits.take(_sampled(bits.size))
        table[_slots_of(sample, np.empty_like(sample))] = sample
        slots = room.view(np.uint64)
        found, hit = np.empty(_AT_ONCE, np.uint64), np.empty(bits.size, np.bool_)
        for start in range(0, bits.size, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            block = bits[part]
            at = _slots_of(block, slots[part])
            table.take(at, out=found[: block.size], mode="clip")
            hits = np.equal(found[: block.size], block, out=hit[part])
            if start == 0 and np.count_nonzero(hits) < _LEAST_HITS * block.size:
                return plain
        counts = np.bincount(room, minlength=_SLOTS)
        rest_at = np.flatnonzero(~hit)
        if rest_at.size:
            counts -= np.bincount(room[rest_at], minlength=_SLOTS)
        return cls(table.view(np.float64), counts, column[rest_at], room, rest_at)

    def each(self, of: Callable[[FloatArray], IntArray], out: IntArray) -> None:
        """Write `of` the value of every row to `out`, shape (n,), computing it once for each value of the table."""
        if not self.values.size:
            out[:] = of(self.rest)
            return
        of(self.values).take(self._slots, out=out, mode="clip")
        out[self._rest_at] = of(self.rest)


def _slots_of(bits: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]) -> IntArray:
    np.multiply(bits, _GOLDEN, out=out)
    np.right_shift(out, _SHIFT, out=out)
    return out.view(np.int64)


@lru_cache(maxsize=8)
def _sampled(rows: int) -> IntArray:
    """Positions of a sample, by steps of the golden ratio: even, and in step with nothing that repeats in the rows."""
    return np.arange(_SLOTS, dtype=np.int64) * int(rows * 0.6180339887498949) % rows
