"""What a feature's mean should be on a day, by the means of all other features on that day.

A column may wander with weather and season by more than a fault would move it, but then others wander with it: gusts with
wind, the share of late flights with their mean delay. Here each day's mean is compared with what the others say it should be,
so a shift that one column makes by itself shows, however much all of them move together.

The days of the reference are rows of a ridge regression of each mean on the others. What counts is its residual on a day less
its mean two to six weeks before: relations have seasons too, and a slow shift must not be compared with its own beginning. The error
of that is measured on days left out in turn, and grows for a day that is unlike all of the reference.

Source: Hawkins (1991), "Multivariate quality control based on regression-adjusted variables".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from tasks.model.profile import FloatArray, Profile

LEAST_DAYS = 30
"""Reference days that can be compared with earlier ones, below which nothing is said of relations."""
EARLIER = (timedelta(days=42), timedelta(days=15))
"""A day is compared with those from so long to so long before it."""
LEAST_EARLIER = 14
LARGEST_ERROR = 0.5
"""A feature whose mean the others say no better than this, as a part of its own spread over days, is not judged."""
SMALLEST_SHIFT = 0.25
"""Standard deviations of the feature's values: a smaller shift alarms nobody, however unusual."""
_RIDGE = 1.0
_SMALLEST_SPREAD = 1e-9


@dataclass(frozen=True)
class Shift:
    """How much farther a feature's mean is from what the others say than it was weeks before."""

    z: float
    """In errors of that; never below 0."""
    deviations: float
    """In standard deviations of its values, with a sign."""

    def in_words(self, name: str) -> str:
        """What it means."""
        side = "higher" if self.deviations > 0 else "lower"
        return f"The mean of {name} is {abs(self.deviations):.2f} standard deviations {side} than the means of the other features suggest"


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
    """Shape (F,): of a day that was left out, beside those weeks before it, in spreads over days."""
    days: int
    rows: float
    """Counted of a usual day."""

    def shifts(
        self, profile: Profile, earlier: Sequence[Profile], confirmed: Sequence[Profile] = ()
    ) -> dict[str, Shift]:
        """By feature, for those that can be judged and whose shift is large enough to matter.

        Args:
            earlier: The days that `days_before` names; with fewer than 14 nothing is judged.
            confirmed: Days that a person has confirmed as normal: what is shifted as on one of them has not moved.
        """
        if len(earlier) < LEAST_EARLIER:
            return {}
        standard = (_means([profile, *earlier, *confirmed], self.names) - self.centre) / self.scale
        residuals, leverage = _residuals(standard, self.precision)
        moved = residuals[0] - _mean(residuals[1 : 1 + len(earlier)])
        for other in residuals[1 + len(earlier) :]:
            nearer = np.abs(residuals[0] - other) < np.abs(moved)
            moved = np.where(nearer, residuals[0] - other, moved)
        fewer = max(1.0, self.rows / max(profile.counted, 1)) ** 0.5
        z = np.abs(moved) / (self.error * np.sqrt(1 + leverage[0] + 1 / self.days) * fewer)
        deviations = moved * self.scale / self.spread
        judged = np.isfinite(moved) & (self.error <= LARGEST_ERROR) & (np.abs(deviations) >= SMALLEST_SHIFT)
        return {
            name: Shift(float(z[i]), float(deviations[i])) for i, name in enumerate(self.names) if judged[i]
        }


def days_before(day: date, known: Mapping[date, Profile], *, min_rows: int) -> list[date]:
    """The days with at least `min_rows` rows with which a day is compared, in order."""
    first, last = (day - ago for ago in EARLIER)
    return sorted(
        other
        for other, profile in known.items()
        if first <= other <= last and profile.rows >= max(min_rows, 1)
    )


def relations_of(days: Mapping[date, Profile]) -> Relations | None:
    """The relations on reference days, each with rows; None when there are too few days or features."""
    before = {day: days_before(day, days, min_rows=1) for day in days}
    before = {day: found for day, found in before.items() if len(found) >= LEAST_EARLIER}
    if len(before) < LEAST_DAYS:
        return None
    profiles = list(days.values())
    names = tuple(grid.name for grid in profiles[0].spec.numeric)
    names = tuple(name for name in names if any(profile.numeric[name].n for profile in profiles))
    means = _means(profiles, names)
    spread = np.array([_usual_deviation(profiles, name) for name in names])
    centre, scale = np.nanmean(means, axis=0), np.nanstd(means, axis=0)
    moves = (scale > _SMALLEST_SPREAD * np.maximum(1.0, np.abs(centre))) & (spread > 0)
    if np.count_nonzero(moves) < 2:
        return None
    names = tuple(name for name, kept in zip(names, moves, strict=True) if kept)
    means, centre, scale, spread = means[:, moves], centre[moves], scale[moves], spread[moves]
    standard = (means - centre) / scale
    known = np.nan_to_num(standard)
    precision = np.linalg.inv(known.T @ known + _RIDGE * np.eye(len(names)))
    return Relations(
        names,
        centre,
        scale,
        spread,
        precision,
        _error(standard, precision, list(days), before),
        len(days),
        float(np.median([profile.counted for profile in profiles])),
    )


def _error(
    standard: FloatArray, precision: FloatArray, days: Sequence[date], before: Mapping[date, Sequence[date]]
) -> FloatArray:
    """Shape (F,): how far days that took no part are from what the others say, less those before; infinite where that is not known."""
    residuals, leverage = _residuals(standard, precision)
    rest = np.maximum(1 - leverage, 1e-6)
    left_out = residuals / rest
    place = {day: number for number, day in enumerate(days)}
    judged = [place[day] for day in before]
    usual = np.array([_mean(left_out[[place[one] for one in found]]) for found in before.values()])
    missed = np.abs(left_out[judged] - usual) / np.sqrt(1 / rest[judged] + 1 / len(days))
    error = np.full(standard.shape[1], np.inf)
    for i in np.flatnonzero(np.isfinite(missed).sum(axis=0) >= LEAST_DAYS):
        found = missed[np.isfinite(missed[:, i]), i]
        error[i] = max(1.4826 * np.median(found), np.quantile(found, 0.9) / 1.6449, _SMALLEST_SPREAD)
    return error


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


def _mean(residuals: FloatArray) -> FloatArray:
    """Over days, shape (F,), of those that are known; NaN where none is."""
    known = np.isfinite(residuals)
    count = known.sum(axis=0)
    total = np.where(known, residuals, 0.0).sum(axis=0)
    found: FloatArray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def _means(profiles: Sequence[Profile], names: Sequence[str]) -> FloatArray:
    """Shape (n, F); NaN where a day has no value."""
    found = [[profile.numeric[name].mean for name in names] for profile in profiles]
    return np.array([[np.nan if mean is None else mean for mean in day] for day in found], dtype=np.float64)


def _usual_deviation(profiles: Sequence[Profile], name: str) -> float:
    found = [std for profile in profiles if (std := profile.numeric[name].std) is not None]
    return float(np.median(found))
