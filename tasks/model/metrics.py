"""Metrics of a binary classifier, each a function of labels and probabilities.

All take `labels` (n,) in {0, 1} and `scores` (n,), probabilities in [0, 1], and return a float; NaN where the
metric is not defined (average precision without a positive, anything of no rows). The AUC lies in `tasks.model.ranking`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[Any]

_LOG_FLOOR = 1e-15
MAX_BINS = 15


def pr_auc(labels: IntArray, scores: FloatArray) -> float:
    """Average precision: the step-wise area under the precision-recall curve, without interpolation."""
    order = PrecisionOrder.of(labels, scores)
    return order.average_precision(np.ones(len(labels)))


class PrecisionOrder:
    """Rows sorted by falling score, so that average precision under many row weights costs O(n) each."""

    def __init__(self, order: IntArray, hits: FloatArray, ends: IntArray) -> None:
        self.order = order
        self._hits = hits
        self._ends = ends

    @classmethod
    def of(cls, labels: IntArray, scores: FloatArray) -> PrecisionOrder:
        """Sort once; `ends` are the last places of each run of equal scores."""
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(scores) else order
        return cls(order, labels[order].astype(np.float64), ends)

    def average_precision(self, weights: FloatArray) -> float:
        """Average precision when row i (in the original order) counts `weights[i]` times."""
        return self.of_sorted(weights[self.order])

    def of_sorted(self, weights: FloatArray) -> float:
        """As `average_precision`, with the weights already in the sorted order."""
        hits = np.cumsum(weights * self._hits)[self._ends]
        if not len(hits) or hits[-1] <= 0:
            return float("nan")
        seen = np.cumsum(weights)[self._ends]
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        return float(np.sum(np.diff(hits, prepend=0.0) * precision) / hits[-1])


def log_losses(labels: IntArray, scores: FloatArray) -> FloatArray:
    """Negative log likelihood of each row, nats, shape (n,); scores are kept 1e-15 away from 0 and 1."""
    kept = np.clip(scores, _LOG_FLOOR, 1 - _LOG_FLOOR)
    return np.asarray(-np.where(labels == 1, np.log(kept), np.log1p(-kept)))


def brier_losses(labels: IntArray, scores: FloatArray) -> FloatArray:
    """Squared error of each row, shape (n,)."""
    return np.asarray((scores - labels) ** 2)


def log_loss(labels: IntArray, scores: FloatArray) -> float:
    """Mean of `log_losses`."""
    return _mean(log_losses(labels, scores))


def brier(labels: IntArray, scores: FloatArray) -> float:
    """Mean squared error of the probabilities (Brier, 1950)."""
    return _mean(brier_losses(labels, scores))


def calibration_gap(labels: IntArray, scores: FloatArray) -> float:
    """Mean prediction minus share of positives: above 0 the model predicts too much on average."""
    return _mean(scores - labels)


def bin_count(rows: int) -> int:
    """How many equal-mass bins `rows` can fill with about 100 each: 5 to 15."""
    return int(np.clip(rows // 100, 5, MAX_BINS))


def equal_mass_bins(scores: FloatArray, bins: int) -> IntArray:
    """The bin of each score, shape (n,): bins of nearly equal counts, equal scores always in one bin."""
    edges = np.unique(np.quantile(scores, np.arange(1, bins) / bins)) if len(scores) else np.zeros(0)
    return np.asarray(np.searchsorted(edges, scores, side="left"))


def ece(labels: IntArray, scores: FloatArray, *, bins: int | None = None) -> float:
    """Expected calibration error over equal-mass bins: the mean over rows of |mean score - share of positives|.

    This is the plug-in estimate. It is biased upwards, since noise in a bin's label share never cancels;
    `resampling.measure` reports it less its bootstrap estimate of that bias.

    Source: Naeini et al. (2015); equal-mass bins after Roelofs et al. (2022), "Mitigating bias in
    calibration error estimation".
    """
    if not len(scores):
        return float("nan")
    index = equal_mass_bins(scores, bins or bin_count(len(scores)))
    return float(np.sum(np.abs(np.bincount(index, weights=scores - labels))) / len(scores))


def roc_points(labels: IntArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(false positive rate, true positive rate) at every distinct threshold, starting at (0, 0)."""
    hits, misses = _cumulative(labels, scores)
    return _from_zero(misses / max(misses[-1], 1.0)), _from_zero(hits / max(hits[-1], 1.0))


def pr_points(labels: IntArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(recall, precision) at every distinct threshold, recall rising."""
    hits, misses = _cumulative(labels, scores)
    return hits / max(hits[-1], 1.0), hits / (hits + misses)


def _cumulative(labels: IntArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    order = np.argsort(-scores, kind="stable")
    falling, hit = scores[order], labels[order].astype(np.float64)
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return np.cumsum(hit)[ends], np.cumsum(1 - hit)[ends]


def _from_zero(values: FloatArray) -> FloatArray:
    return np.concatenate([[0.0], values])


def _mean(values: FloatArray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
