"""Intervals that several rooms judge by."""

from __future__ import annotations


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
