"""On what scores rest: exact sums of attributions, by feature and by the value that the feature had; they merge in any order.

A feature's values are divided into a few cells, read off the grid of profiles. So one can ask how much weight a value has,
apart from how often it comes. Attributions are rounded to fixed-point values row by row and summed as integers: a mean of
floats would depend on how rows were cut into shards, and on which shard came first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.core.ids import digest_json
from tasks.core.spec import ExplanationSpec, PipelineSpec

IntArray = npt.NDArray[np.int64]

ANY_ROW = "any"
"""`selection` of rows chosen by nothing but the hash of their id: a fair sample of all rows."""
MIXED = "mixed"
"""`selection` of sums over rows that were chosen in different ways; they answer nothing."""
NUMERIC_CELLS = 8
"""Cells of a numeric feature, of about equally many training rows; one more holds its nulls."""
CATEGORY_CELLS = 15
"""Cells of a categorical feature's most frequent categories; two more hold all others, and nulls."""

_ONE_LOGIT = 1 << 20
_LIMIT = 1 << 11
"""Logits. 2**31 of fixed point for a row leave room for 2**32 rows in 63 bits."""
_BLOCK = 1 << 13
"""Rows summed in floating point at a time: of whole numbers up to 2**31 sums stay exact, below 2**53; and within the cache."""
_MARK = 1 << 39
"""2**13 of them stay below 2**53, with sums of less than half of one beside them."""


@dataclass(frozen=True)
class ExplainedRows:
    """Which of some rows were explained, and how. n rows, k of them explained, F features."""

    explained: npt.NDArray[np.bool_]
    """Shape (n,)."""
    attributions: npt.NDArray[np.float32]
    """Shape (k, F), logit scale, features in the order of `features.names`."""
    selection: str = ANY_ROW
    """How they were chosen, `selection_of` the pipeline."""

    @classmethod
    def every(cls, attributions: npt.NDArray[np.float32], selection: str) -> ExplainedRows:
        """Rows all of which were explained."""
        return cls(np.ones(len(attributions), dtype=np.bool_), attributions, selection)


@dataclass(frozen=True, eq=False)
class AttributionSums:
    """Sums over explained rows. F features; C cells in all, those of the first feature first."""

    rows: int
    """Explained rows whose attributions are all numbers; others are left out."""
    magnitude: IntArray
    """Sum of |attribution| by feature, shape (F,), in units of 2**-20 logits: how much of the scores rests on it."""
    signed: IntArray
    """Sum of attributions by cell, shape (C,), in the same unit: how much values raised or lowered the scores."""
    counts: IntArray
    """Rows by cell, shape (C,)."""
    widths: tuple[int, ...]
    """Cells of each feature."""
    selection: str = ANY_ROW
    """How the rows were chosen: `ANY_ROW`, a digest of the choosing clauses, or `MIXED`."""

    @classmethod
    def of(
        cls, attributions: npt.ArrayLike, cells: IntArray, widths: tuple[int, ...], selection: str = ANY_ROW
    ) -> AttributionSums:
        """Sums of k rows.

        Args:
            attributions: Shape (k, F), on the logit scale; clipped beyond 2,048 logits.
            cells: Shape (F, k), the cell of each value within its feature.
            widths: Cells of each feature.
            selection: How the rows were chosen.
        """
        given = np.asarray(attributions)
        if given.dtype != np.float32:
            given = given.astype(np.float64)
        if given.size and not np.isfinite([given.min(), given.max()]).all():  # NaN passes through both
            whole = np.isfinite(given).all(axis=1)
            given, cells = given[whole], cells[:, whole]
        magnitude = np.zeros(len(widths), np.int64)
        signed, counts = np.zeros((2, sum(widths)), np.int64)
        for start in range(0, len(given), _BLOCK):
            with np.errstate(over="ignore"):
                fixed = given[start : start + _BLOCK] * given.dtype.type(_ONE_LOGIT)  # a power of two: exact
            np.rint(fixed, out=fixed)
            largest = max(float(fixed.max()), -float(fixed.min()))
            if largest > _LIMIT * _ONE_LOGIT:
                np.clip(fixed, -_LIMIT * _ONE_LOGIT, _LIMIT * _ONE_LOGIT, out=fixed)
            sums = _block_sums(
                fixed, cells[:, start : start + _BLOCK], widths, marked=largest < _MARK // 2 // _BLOCK
            )
            for total, found in zip((magnitude, signed, counts), sums, strict=True):
                total += found
        return cls(len(given), magnitude, signed, counts, widths, selection)

    def merge(self, other: AttributionSums) -> AttributionSums:
        """The sums over both row sets."""
        return AttributionSums(
            self.rows + other.rows,
            self.magnitude + other.magnitude,
            self.signed + other.signed,
            self.counts + other.counts,
            self.widths,
            self.selection if self.selection == other.selection else MIXED,
        )

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each feature in what the scores rest on, shape (F,); they sum to 1, or are 0 without any."""
        return self.magnitude / max(int(self.magnitude.sum()), 1)

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """Mean |attribution| of each feature in logits, shape (F,)."""
        return self.magnitude / _ONE_LOGIT / max(self.rows, 1)

    @property
    def parts(self) -> list[slice]:
        """Where each feature's cells are."""
        ends = np.cumsum(self.widths)
        return [slice(int(end) - width, int(end)) for end, width in zip(ends, self.widths, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; all numbers are integers."""
        return {
            "rows": self.rows,
            "magnitude": self.magnitude.tolist(),
            "signed": self.signed.tolist(),
            "counts": self.counts.tolist(),
            "selection": self.selection,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], widths: tuple[int, ...]) -> AttributionSums:
        """The inverse of `to_json`. Raises `ValueError` when it is about other features or cells."""
        names = ("magnitude", "signed", "counts")
        magnitude, signed, counts = (np.asarray(raw[name], dtype=np.int64) for name in names)
        cells = (sum(widths),)
        if magnitude.shape != (len(widths),) or signed.shape != cells or counts.shape != cells:
            raise ValueError(f"attributions are of {magnitude.size} features in {signed.size} cells")
        return cls(int(raw["rows"]), magnitude, signed, counts, widths, str(raw["selection"]))


def selection_of(spec: PipelineSpec) -> str:
    """How the pipeline's `explanations` choose rows, as `AttributionSums.selection` says it."""
    policy = spec.explanations
    if policy.strata is None and not policy.score_bands and not policy.canary:
        return ANY_ROW
    chosen = policy.model_dump(mode="json", include={"share", "strata", "score_bands", "canary"})
    return digest_json([chosen, spec.canary.slice_share if policy.canary else None])[:16]


def explains(policy: ExplanationSpec) -> bool:
    """Whether any prediction may be explained at all."""
    strata = policy.strata.shares.values() if policy.strata else ()
    return policy.share > 0 or any(share > 0 for share in strata) or bool(policy.score_bands) or policy.canary


def _block_sums(
    fixed: npt.NDArray[np.floating[Any]], cells: IntArray, widths: tuple[int, ...], *, marked: bool
) -> tuple[IntArray, IntArray, IntArray]:
    """(magnitude, signed, counts) of at most `_BLOCK` rows of whole numbers.

    Args:
        marked: Whether signed sums stay below half of `_MARK`. Then every row adds a mark to its cell's sum, and one pass gives
            both: how many marks there are, and what is beside them.
    """
    magnitude, ends = np.zeros(len(widths)), np.cumsum(widths)
    signed, counts = np.zeros((2, sum(widths)))
    values, positive = np.empty((2, len(fixed)))
    for i, (width, end) in enumerate(zip(widths, ends, strict=True)):
        values[:] = fixed[:, i]  # a feature's values side by side
        magnitude[i] = np.abs(values, out=positive).sum()
        if marked:
            values += _MARK
        else:
            counts[end - width : end] = np.bincount(cells[i], minlength=width)
        signed[end - width : end] = np.bincount(cells[i], weights=values, minlength=width)
    if marked:
        counts = np.rint(signed / _MARK)
        signed -= counts * _MARK
    return magnitude.astype(np.int64), signed.astype(np.int64), counts.astype(np.int64)
