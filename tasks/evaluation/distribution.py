"""Whether the predictions look like predictions: spread, extremes, level, and how far they are from the champion's."""

from __future__ import annotations

import numpy as np

from tasks.evaluation import resampling
from tasks.evaluation.records import Interval, ScoreShape
from tasks.model.metrics import FloatArray, IntArray

EXTREME_LOGIT = float(np.log(1000.0))
"""A prediction whose odds are a thousand times the label rate's, or a thousandth, is extreme: relative to the rate, so
that a model of rare events is not refused for small numbers."""
EQUAL_DIGITS = 6


def measure_shape(
    labels: IntArray,
    scores: FloatArray,
    champion: FloatArray | None,
    day: IntArray,
    weights: FloatArray,
    confidence: float,
) -> ScoreShape:
    """The shape of the candidate's predictions on labelled rows, no row of which may be missing.

    Args:
        labels: Shape (n,), both classes present.
        scores: Shape (n,), finite.
        champion: Shape (n,), the champion's predictions of the same rows, or None.
        day: Shape (n,), index of each row's day.
        weights: Shape (samples, days).
        confidence: Of the interval.
    """
    values, counts = np.unique(np.round(scores, EQUAL_DIGITS), return_counts=True)
    most = int(np.argmax(counts))
    kept = np.clip(scores, 1e-15, 1 - 1e-15)
    rate = float(labels.mean())
    distance = np.abs(np.log(kept / (1 - kept)) - np.log(rate / (1 - rate)))
    predicted = resampling.mean_estimate(scores, day, weights)
    happened = resampling.mean_estimate(labels.astype(np.float64), day, weights)
    return ScoreShape(
        most_common=float(values[most]),
        repeated_share=float(counts[most] / len(scores)),
        extreme_share=float(np.mean(distance > EXTREME_LOGIT)),
        mean_ratio=_ratio(predicted, happened, weights.shape[1], confidence),
        champion_distance=None if champion is None else ks_distance(scores, champion),
    )


def ks_distance(first: FloatArray, second: FloatArray) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest gap between their distribution functions, in [0, 1].

    At some threshold, this share of rows more lies above it for one model than for the other.
    """
    first, second = np.sort(first), np.sort(second)
    at = np.concatenate([first, second])
    gap = np.searchsorted(first, at, "right") / len(first) - np.searchsorted(second, at, "right") / len(
        second
    )
    return float(np.abs(gap).max())


def _ratio(
    predicted: resampling.Estimate, happened: resampling.Estimate, days: int, confidence: float
) -> Interval:
    usable = happened.replicates > 0
    replicates = np.full(len(usable), np.nan)
    np.divide(predicted.replicates, happened.replicates, out=replicates, where=usable)
    return resampling.interval(
        resampling.Estimate(predicted.value / happened.value, replicates), days, confidence
    )
