"""Bootstrap intervals by resampling whole days.

Rows of one day share shocks (a storm, a promotion), so rows are not independent and a bootstrap over rows is
too sure of itself. Days are resampled instead: a cluster bootstrap (Field & Welsh, 2007).

A resample is a vector of how often each day was drawn, and almost every metric is a function of sums over
days, so a resample costs a few small matrix products instead of a pass over the rows:

- AUC: `U[i, j]` counts the pairs (positive of day i, negative of day j) that are ranked right, ties half. For
  day weights w the AUC is w'Uw / ((w'P)(w'N)), exactly.
- Brier, log loss, calibration gap: day sums. ECE: day sums per bin, bins fixed on the full sample.
- PR-AUC has no such form: one weighted cumulative sum over the sorted rows for each resample.

All models are measured on the same resamples, so differences are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.evaluation.records import CalibrationBin, Interval
from tasks.model import metrics
from tasks.model.metrics import FloatArray, IntArray

SEED = 20_240_229


@dataclass(frozen=True)
class Estimate:
    """A metric on the full sample and on each resample; replicates shape (samples,), NaN where undefined."""

    value: float
    replicates: FloatArray

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.replicates - other.replicates)


def draw_days(days: int, samples: int, seed: int = SEED) -> FloatArray:
    """Day weights of every resample, shape (samples, days); each row sums to `days`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(days, np.full(days, 1 / days), size=samples).astype(np.float64)


def auc_pairs(labels: IntArray, scores: FloatArray, day: IntArray, days: int) -> FloatArray:
    """`U[i, j]`: pairs (positive of day i, negative of day j) ranked right, ties half; shape (days, days)."""
    order = np.argsort(scores, kind="stable")
    labels, scores, day = labels[order], scores[order], day[order]
    positive = labels == 1
    high, high_day = scores[positive], day[positive]
    pairs = np.zeros((days, days))
    for j in range(days):
        low = scores[~positive & (day == j)]
        if len(low):
            wins = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
            pairs[:, j] = np.bincount(high_day, weights=wins, minlength=days) / 2
    return pairs


def auc_estimate(labels: IntArray, scores: FloatArray, day: IntArray, weights: FloatArray) -> Estimate:
    """AUC with its replicates under the day `weights` (samples, days)."""
    days = weights.shape[1]
    pairs = auc_pairs(labels, scores, day, days)
    positives = np.bincount(day, weights=labels, minlength=days)
    negatives = np.bincount(day, minlength=days) - positives
    whole = np.vstack([np.ones(days), weights])
    ranked = np.einsum("bi,bi->b", whole @ pairs, whole)
    values = _ratio(ranked, (whole @ positives) * (whole @ negatives))
    return Estimate(float(values[0]), values[1:])


def mean_estimate(values: FloatArray, day: IntArray, weights: FloatArray) -> Estimate:
    """Mean of a per-row quantity with its replicates."""
    days = weights.shape[1]
    sums, counts = np.bincount(day, weights=values, minlength=days), np.bincount(day, minlength=days)
    replicates = _ratio(weights @ sums, weights @ counts.astype(np.float64))
    return Estimate(float(np.mean(values)) if len(values) else float("nan"), replicates)


def ece_estimate(labels: IntArray, scores: FloatArray, day: IntArray, weights: FloatArray) -> Estimate:
    """ECE less its bootstrap bias, never below 0.

    The plug-in ECE adds noise of both signs as if it were error. The resamples repeat that mistake around the
    plug-in value, so (their mean - plug-in) estimates it (Efron & Tibshirani, 1993, ch. 10). For a perfectly
    calibrated model this removes about two fifths of the bias: what is left errs against the model.
    """
    plugin = metrics.ece(labels, scores)
    if not len(scores):
        return Estimate(plugin, np.full(len(weights), np.nan))
    _, gaps, counts = _binned(labels, scores, day, weights.shape[1])
    replicates = _ratio(np.abs(weights @ gaps).sum(axis=1), weights @ counts.sum(axis=1))
    bias = float(np.nanmean(replicates)) - plugin
    return Estimate(max(plugin - bias, 0.0), np.maximum(replicates - 2 * bias, 0.0))


def calibration_bins(
    labels: IntArray, scores: FloatArray, day: IntArray, weights: FloatArray, confidence: float
) -> tuple[CalibrationBin, ...]:
    """The reliability diagram: mean score and label rate by equal-mass bin."""
    days = weights.shape[1]
    index, _, counts = _binned(labels, scores, day, days)
    found = []
    for b in range(counts.shape[1]):
        inside = index == b
        rate = mean_estimate(labels[inside].astype(np.float64), day[inside], weights)
        bounds = interval(rate, days, confidence)
        found.append(
            CalibrationBin(
                rows=int(inside.sum()),
                mean_score=float(scores[inside].mean()),
                label_rate=rate.value,
                low=bounds.low,
                high=bounds.high,
            )
        )
    return tuple(found)


def measure(labels: IntArray, scores: FloatArray, day: IntArray, weights: FloatArray) -> dict[str, Estimate]:
    """Every metric of one model with its replicates.

    Args:
        labels: Shape (n,), 0 or 1.
        scores: Shape (n,), probabilities.
        day: Shape (n,), index of each row's day, 0 <= day < days.
        weights: Shape (samples, days), from `draw_days`.
    """
    order = metrics.PrecisionOrder.of(labels, scores)
    sorted_day = day[order.order]
    precision = np.array([order.of_sorted(row[sorted_day]) for row in weights])
    return {
        "auc": auc_estimate(labels, scores, day, weights),
        "pr_auc": Estimate(metrics.pr_auc(labels, scores), precision),
        "log_loss": mean_estimate(metrics.log_losses(labels, scores), day, weights),
        "brier": mean_estimate(metrics.brier_losses(labels, scores), day, weights),
        "ece": ece_estimate(labels, scores, day, weights),
        "calibration_gap": mean_estimate(scores - labels, day, weights),
    }


def interval(estimate: Estimate, days: int, confidence: float) -> Interval:
    """Percentile interval, widened for few days.

    With D days the percentile interval is too narrow by sqrt((D - 1) / D) and uses normal instead of t tails;
    both are undone by moving the percentiles outward (the "expanded percentile" interval). One day has no interval.

    Source: Hesterberg (2015), "What teachers should know about the bootstrap", section 5.3.
    """
    from scipy import stats

    if not np.isfinite(estimate.value):
        return Interval(None)
    usable = estimate.replicates[np.isfinite(estimate.replicates)]
    if days < 2 or len(usable) < 0.5 * max(len(estimate.replicates), 1):
        return Interval(estimate.value)
    widen = float(np.sqrt(days / (days - 1)))
    tail = float(stats.norm.cdf(widen * stats.t.ppf((1 - confidence) / 2, days - 1)))
    low, high = np.quantile(usable, [tail, 1 - tail])
    return Interval(
        value=estimate.value,
        low=float(min(low, estimate.value)),
        high=float(max(high, estimate.value)),
        se=float(np.std(usable)) * widen,
    )


def _binned(
    labels: IntArray, scores: FloatArray, day: IntArray, days: int
) -> tuple[IntArray, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(bin of each row, sum of score - label by day and bin, rows by day and bin); only bins with rows."""
    _, index = np.unique(metrics.equal_mass_bins(scores, metrics.bin_count(len(scores))), return_inverse=True)
    bins = int(index.max()) + 1
    cell = day * bins + index
    gaps = np.bincount(cell, weights=scores - labels, minlength=days * bins)
    counts = np.bincount(cell, minlength=days * bins).astype(np.float64)
    return index, np.asarray(gaps, dtype=np.float64).reshape(days, bins), counts.reshape(days, bins)


def _ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    out = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return out
