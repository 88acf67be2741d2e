"""The finalizer of SplitMix64, over arrays. Source: Steele, Lea & Flood (2014), "Fast splittable pseudorandom number generators"."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]


def mix(bits: Bits, room: Bits | None = None) -> Bits:
    """Mix in place, and return `bits`, but for the last shift (by 31), which the upper 31 bits do not need.

    Args:
        bits: Any shape.
        room: Of the same shape, for what lies between; made where it is not given.
    """
    shifted = np.empty_like(bits) if room is None else room
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(bits, np.uint64(shift), out=shifted)
        bits ^= shifted
        bits *= np.uint64(factor)
    return bits
