"""Prediction ids of whole columns (I5), as numbers until somebody needs their text.

`tasks.core.ids.prediction_id` says what an id is, row by row; this is the same for a table, faster: only the hash
itself is taken row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import DataError
from tasks.core.spec import PipelineSpec

_LENGTH = 36
_GROUPS = ((0, 8, 0), (8, 12, 9), (12, 16, 14), (16, 20, 19), (20, 32, 24))
"""First and last digit of each group of a UUID's text, and where the group begins in it."""
_PAIRS = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint16)
"""The two hexadecimal digits of each byte, as they lie in memory."""


@dataclass(frozen=True)
class PredictionIds:
    """The ids of n rows.

    Args:
        halves: uint64, shape (n, 2): the upper and the lower 64 bits of each UUID.
    """

    halves: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, entities: pa.Array, micros: npt.NDArray[np.int64], spec: PipelineSpec) -> PredictionIds:
        """The ids of rows.

        Args:
            entities: `tasks.core.rows.entity_column` of the rows, shape (n,).
            micros: `tasks.core.rows.event_micros` of the rows, shape (n,).
            spec: Names the pipeline and the event time.

        Raises:
            DataError: A time is before 1970 or too late for an id.
        """
        millis = micros // 1000
        if not len(millis):
            return cls(np.zeros((0, 2), np.uint64))
        if millis.min() < 0 or millis.max() >= 1 << 48:
            bad = int(millis[(millis < 0) | (millis >= 1 << 48)][0])
            raise DataError(
                f"holds a time that no prediction id can carry ({bad} ms since 1970)",
                which=f"column {spec.event_time}",
                fix="check the unit and the values of the event time",
            )
        return cls.of_parts(spec.name, entities, millis)

    @classmethod
    def of_parts(
        cls, pipelines: str | pa.Array, entities: pa.Array, millis: npt.NDArray[np.int64]
    ) -> PredictionIds:
        """The ids of rows whose times are known to fit into an id.

        Args:
            pipelines: Name of the pipeline, or one for each row.
            entities: Entity ids, none of them null, shape (n,).
            millis: Event times, milliseconds since 1970, from 0 to 2**48 - 1; shape (n,).
        """
        if not len(millis):
            return cls(np.zeros((0, 2), np.uint64))
        seeds = pc.binary_join_element_wise(pipelines, entities, pa.array(millis).cast(pa.string()), "\x1f")
        new, tails = hashlib.blake2b(digest_size=10).copy, []  # a copy costs a fifth less than its arguments
        for seed in seeds.cast(pa.binary()).to_pylist():
            digest = new()
            digest.update(seed)
            tails.append(digest.digest())
        return cls(_uuid8(millis, np.frombuffer(b"".join(tails), np.uint8).reshape(-1, 10)))

    @classmethod
    def concat(cls, parts: Sequence[PredictionIds]) -> PredictionIds:
        """The ids of all parts, one after the other."""
        return cls(np.concatenate([np.zeros((0, 2), np.uint64), *(part.halves for part in parts)]))

    def __len__(self) -> int:
        return len(self.halves)

    def take(self, indices: npt.NDArray[np.int64]) -> PredictionIds:
        """The ids at these positions."""
        return PredictionIds(self.halves[indices])

    def order(self) -> npt.NDArray[np.int64]:
        """Positions in ascending order of the ids, which is that of their texts; shape (n,)."""
        upper, lower = self.halves[:, 0], self.halves[:, 1]
        order = np.argsort(upper)
        # Equal upper halves (the same millisecond and 12 equal hash bits) are few: only those are ordered by the lower.
        equal = upper[order[1:]] == upper[order[:-1]]
        if equal.any():
            tied = np.flatnonzero(np.append(equal, False) | np.insert(equal, 0, False))
            rows = order[tied]
            order[tied] = rows[np.lexsort((lower[rows], upper[rows]))]
        return order

    def repeated(self) -> PredictionIds:
        """The ids that equal their predecessor. For ids in order."""
        return PredictionIds(self.halves[1:][(self.halves[1:] == self.halves[:-1]).all(axis=1)])

    def below_share(self, share: float | npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Where the last 32 bits of an id, which are hash bits, fall below `share` of their range; shape (n,).

        Args:
            share: 0 to 1, for all rows or for each, shape (n,).
        """
        last: npt.NDArray[np.uint64] = self.halves[:, 1] & np.uint64(0xFFFFFFFF)
        return last.astype(np.float64) < share * 2.0**32

    def texts(self) -> pa.Array:
        """The usual 36-character form, a string array of shape (n,)."""
        n = len(self.halves)
        digits = _PAIRS[self.halves.astype(">u8").view(np.uint8)].view(np.uint8).reshape(n, 32)
        texts = np.full((n, _LENGTH), ord("-"), np.uint8)
        for first, last, at in _GROUPS:
            texts[:, at : at + last - first] = digits[:, first:last]
        offsets = np.arange(0, _LENGTH * n + 1, _LENGTH, dtype=np.int32)
        buffers: list[Any] = [None, pa.py_buffer(offsets), pa.py_buffer(texts)]
        return pa.Array.from_buffers(pa.string(), n, buffers)


def _uuid8(millis: npt.NDArray[np.int64], tails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """48 bits of time, then the 74 low bits of the 80-bit tails, laid as `ids.prediction_id` lays them."""
    padded = np.zeros((len(millis), 16), np.uint8)
    padded[:, 6:] = tails
    words = padded.view(">u8").astype(np.uint64)  # tail bits 79..64 in the low 16 bits of the first word
    halves = np.empty((len(millis), 2), np.uint64)
    rand_a = ((words[:, 0] << np.uint64(2)) | (words[:, 1] >> np.uint64(62))) & np.uint64(0xFFF)
    halves[:, 0] = (millis.astype(np.uint64) << np.uint64(16)) | np.uint64(8 << 12) | rand_a
    halves[:, 1] = np.uint64(0b10 << 62) | (words[:, 1] & np.uint64((1 << 62) - 1))
    return halves
