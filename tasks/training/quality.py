"""Calibration and the headline numbers of a training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.model import metrics
from tasks.model.bundle import Calibration
from tasks.model.ranking import auc

Array = npt.NDArray[np.floating]

ECE_BINS = 15


def platt(logits: Array, labels: Array) -> Calibration:
    """Slope and intercept that minimise the log loss of `sigmoid(slope * logit + intercept)`.

    Newton's method on Platt's smoothed targets, which keep separable data finite.

    Source: Platt (1999), with the corrections of Lin, Lin & Weng (2007).
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    positive, negative = y.sum(), len(y) - y.sum()
    target = np.where(y > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    design = np.stack([z, np.ones_like(z)], axis=1)

    def loss(at: Array) -> float:
        score = design @ at
        return float(np.logaddexp(0.0, score).sum() - target @ score)

    beta = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-(design @ beta)))
        gradient = design.T @ (p - target)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while scale > 1e-6 and loss(beta - scale * step) > loss(beta):
            scale /= 2
        beta = beta - scale * step
        if np.abs(scale * step).max() < 1e-9:
            break
    return Calibration(float(beta[0]), float(beta[1]))


def expected_calibration_error(scores: Array, labels: Array, *, bins: int = ECE_BINS) -> float:
    """Mean |observed rate - mean score| over equal-count bins, weighted by rows; 0 is perfect.

    Not the evaluation's ECE: there the number of bins follows that of rows, and equal scores share a bin.

    Args:
        scores: Shape (n,), probabilities.
        labels: Shape (n,), 0 or 1.
        bins: Number of bins.

    Source: Naeini, Cooper & Hauskrecht (2015); equal-count bins as in Nixon et al. (2019).
    """
    gaps = [
        abs(float(labels[part].mean()) - float(scores[part].mean())) * len(part)
        for part in equal_count_bins(scores, bins=bins)
    ]
    return sum(gaps) / len(scores)


def equal_count_bins(scores: Array, *, bins: int = ECE_BINS) -> list[npt.NDArray[np.intp]]:
    """Rows of each bin by rising score, as indices into `scores`; at most `bins` bins, none of them empty.

    Counts differ by one at most, so rows of one score may lie in two bins.
    """
    order = np.argsort(scores, kind="stable")
    return [part for part in np.array_split(order, bins) if len(part)]


def headline(scores: Array, labels: Array, *, prefix: str) -> dict[str, float]:
    """AUC, PR-AUC, log loss, Brier score, ECE and label rate, each named `<prefix>_...`; both classes needed."""
    clipped = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)
    found = {
        "auc": auc(labels, clipped),
        "pr_auc": metrics.pr_auc(labels, clipped),
        "log_loss": metrics.log_loss(labels, clipped),
        "brier": metrics.brier(labels, clipped),
        "ece": expected_calibration_error(clipped, labels),
        "label_rate": float(np.mean(labels)),
    }
    return {f"{prefix}_{name}": float(value) for name, value in found.items()}
