"""Intervals and corrections that several rooms judge by."""

from __future__ import annotations

import math
from collections.abc import Sequence


def share_at_least(found: int, tried: int, alpha: float) -> float:
    """Lower end of the exact one-sided level-`alpha` confidence interval for a share.

    Args:
        found: Of `tried` independent rows, those that have it.
        tried: At least `found`.
        alpha: Error of the bound, 0 to 1.

    Source: Clopper & Pearson (1934), "The use of confidence or fiducial limits illustrated in the case of the binomial".
    """
    from scipy.stats import beta

    return float(beta.ppf(alpha, found, tried - found + 1)) if found else 0.0


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses are rejected with family-wise error at most `alpha`, in the given order.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    known = [1.0 if math.isnan(value) else value for value in p_values]
    rejected = [False] * len(known)
    for step, index in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        if known[index] > alpha / (len(known) - step):
            break
        rejected[index] = True
    return rejected
