"""How well scores rank: the area under the ROC curve (AUC), from labels or from what calibrated scores imply.

The AUC is the chance that a positive row scores above a negative one, ties counting half. The ranks and their sums are
whole and half numbers, exact in float64 up to about 10**8 rows, so an AUC is rounded once, in its division, and
does not depend on the order of the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def auc(labels: npt.NDArray[Any], scores: npt.NDArray[np.floating]) -> float:
    """Area under the ROC curve; unitless, in [0, 1], NaN when one of the classes has no row. O(n log n).

    Args:
        labels: Shape (n,), 0 or 1.
        scores: Shape (n,), not NaN; probabilities or logits, for only their order counts.

    Source: Hanley & McNeil (1982), "The meaning and use of the area under a receiver operating characteristic
    (ROC) curve".
    """
    positive = labels == 1
    negatives = len(labels) - int(np.count_nonzero(positive))
    return auc_of_ranks(midranks(scores)[positive], negatives)


def auc_of_ranks(ranks: FloatArray, negatives: int) -> float:
    """The AUC from the mid-ranks of the positives among all rows; NaN when one of the classes has no row.

    Args:
        ranks: Shape (p,), the positives' part of `midranks` over p + `negatives` rows.
        negatives: Number of negative rows.
    """
    positives = len(ranks)
    if not positives or not negatives:
        return float("nan")
    return (float(np.sum(ranks)) - positives * (positives + 1) / 2) / (positives * negatives)


def auc_of_groups(positives: FloatArray, negatives: FloatArray) -> float:
    """The AUC of rows in groups of equal score; NaN when one of the classes has no weight.

    Args:
        positives: Shape (k,), >= 0, positives of each group by rising score; expected numbers need not be whole.
        negatives: Shape (k,), >= 0, the same of negatives.
    """
    total = positives.sum() * negatives.sum()
    if not total > 0:
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / total)


def midranks(values: npt.NDArray[np.floating]) -> FloatArray:
    """Rank of each value, from 1 for the lowest; equal values share the mean of their ranks. Shape (n,) as `values`."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return ranks
