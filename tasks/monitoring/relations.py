"""What a feature's mean should be on a day, by the means of all other features on that day.

A column may wander with weather and season by more than a fault would move it, but then others wander with it: gusts with
wind, the share of late flights with their mean delay. Here each day's mean is compared with what the others say it should be,
so a shift that one column makes by itself shows at once, however much all of them move together.

The days of the reference are rows of a ridge regression of each mean on the others. Its error is that of days left out in
turn, and grows for a day that is unlike all of the reference.

Source: Hawkins (1991), "Multivariate quality control based on regression-adjusted variables".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.model.profile import FloatArray, Profile

LEAST_DAYS = 30
"""Reference days below which nothing is said of relations."""
LARGEST_ERROR = 0.5
"""A feature whose mean the others say no better than this, as a part of its own spread over days, is not judged."""
SMALLEST_SHIFT = 0.25
"""Standard deviations of the feature's values: a smaller shift alarms nobody, however unusual."""
_RIDGE = 1.0
_SMALLEST_SPREAD = 1e-9


@dataclass(frozen=True)
class Shift:
    """How far a feature's mean is from what the others say."""

    z: float
    """In errors of that; never below 0."""
    deviations: float
    """In standard deviations of its values, with a sign."""

    def in_words(self, name: str) -> str:
        """What it means."""
        side = "above" if self.deviations > 0 else "below"
        return f"The mean of {name} is {abs(self.deviations):.2f} standard deviations {side} what those of the other features say"


@dataclass(frozen=True, eq=False)
class Relations:
    """How the means of F features hang together on n reference days."""

    names: tuple[str, ...]
    centre: FloatArray
    """Shape (F,): mean over days."""
    scale: FloatArray
    """Shape (F,): spread over days."""
    spread: FloatArray
    """Shape (F,): standard deviation of the values of a usual day."""
    precision: FloatArray
    """Shape (F, F): inverse of the days' products, ridge included. Every regression follows from it."""
    error: FloatArray
    """Shape (F,): of a day that was left out, in spreads over days."""
    days: int
    rows: float
    """Of a usual day."""

    def shifts(self, profile: Profile, confirmed: Sequence[Profile] = ()) -> dict[str, Shift]:
        """By feature, for those that can be judged and whose shift is large enough to matter.

        Args:
            confirmed: Days that a person has confirmed as normal: what is shifted as on one of them has not moved.
        """
        standard = self._standard([profile, *confirmed])
        residuals, leverage = _residuals(standard, self.precision)
        moved = residuals[0]
        for other in residuals[1:]:
            moved = np.where(np.abs(moved - other) < np.abs(moved), moved - other, moved)
        fewer = max(1.0, self.rows / max(profile.rows, 1)) ** 0.5
        z = np.abs(moved) / (self.error * np.sqrt(1 + leverage[0] + 1 / self.days) * fewer)
        deviations = moved * self.scale / self.spread
        judged = (
            np.isfinite(standard[0]) & (self.error <= LARGEST_ERROR) & (np.abs(deviations) >= SMALLEST_SHIFT)
        )
        return {
            name: Shift(float(z[i]), float(deviations[i])) for i, name in enumerate(self.names) if judged[i]
        }

    def _standard(self, profiles: Sequence[Profile]) -> FloatArray:
        return (_means(profiles, self.names) - self.centre) / self.scale


def relations_of(days: Sequence[Profile]) -> Relations | None:
    """The relations on reference days, each with rows; None when there are too few days or features."""
    if len(days) < LEAST_DAYS:
        return None
    names = tuple(grid.name for grid in days[0].spec.numeric)
    names = tuple(name for name in names if any(day.numeric[name].n for day in days))
    means = _means(days, names)
    spread = np.array([_usual_deviation(days, name) for name in names])
    centre, scale = np.nanmean(means, axis=0), np.nanstd(means, axis=0)
    moves = (scale > _SMALLEST_SPREAD * np.maximum(1.0, np.abs(centre))) & (spread > 0)
    if np.count_nonzero(moves) < 2:
        return None
    names = tuple(name for name, kept in zip(names, moves, strict=True) if kept)
    means, centre, scale, spread = means[:, moves], centre[moves], scale[moves], spread[moves]
    standard = (means - centre) / scale
    known = np.nan_to_num(standard)
    precision = np.linalg.inv(known.T @ known + _RIDGE * np.eye(len(names)))
    residuals, leverage = _residuals(standard, precision)
    left_out = np.abs(residuals) / np.sqrt(np.maximum(1 - leverage, 1e-6))
    error = np.maximum(
        1.4826 * np.nanmedian(left_out, axis=0), np.nanquantile(left_out, 0.9, axis=0) / 1.6449
    )
    return Relations(
        names,
        centre,
        scale,
        spread,
        precision,
        np.maximum(error, _SMALLEST_SPREAD),
        len(days),
        float(np.median([day.rows for day in days])),
    )


def _residuals(standard: FloatArray, precision: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of each day and feature: the residual of its regression on the others, and the day's leverage in that regression.

    By the inverse of a partitioned matrix both follow from one product. A mean that is not there counts as usual for the
    others, and its own residual is NaN.

    Args:
        standard: Shape (n, F), NaN for a mean that is not there.

    Returns:
        Two arrays of shape (n, F).
    """
    known, own = np.nan_to_num(standard), np.diag(precision)
    product = known @ precision
    residuals = np.where(np.isfinite(standard), product / own, np.nan)
    whole = (known * product).sum(axis=1, keepdims=True)
    return residuals, np.maximum(whole - product**2 / own, 0.0)


def _means(profiles: Sequence[Profile], names: Sequence[str]) -> FloatArray:
    """Shape (n, F); NaN where a day has no value."""
    found = [[profile.numeric[name].mean for name in names] for profile in profiles]
    return np.array([[np.nan if mean is None else mean for mean in day] for day in found], dtype=np.float64)


def _usual_deviation(days: Sequence[Profile], name: str) -> float:
    return float(np.median([std for day in days if (std := day.numeric[name].std) is not None]))
