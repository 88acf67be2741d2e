"""Tier 2: how far each channel moved, in units of how far it normally moves.

For every channel, S is the Jensen-Shannon distance of a day's histogram to the pooled last four same
weekdays, and z = (log S - median) / scale, with median and scale from the reference days of the same weekday
class, each compared only with days before it. A raw distance or a p-value answers "did it move"; on
thousands of rows the answer is always yes. z answers "did it move more than it does on a normal day".

A numeric feature has a second way to move: its mean, beside what the means of the other features say (`relations`). Its z is the
larger of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from tasks.core.spec import PipelineSpec
from tasks.model.attribution_sums import AttributionSums
from tasks.model.profile import PairCounts, Profile, ProfileSpec
from tasks.monitoring.leaning import (
    CHANNEL,
    KIND,
    in_words,
    least_explained,
    pair_rows,
    reasons,
    weighty,
)
from tasks.monitoring.relations import Relations, relations_of
from tasks.monitoring.signals import ChannelDrift

FloatArray = npt.NDArray[np.float64]

POOL_DAYS = 4
SMALLEST_EFFECT = 0.03
"""A distance below it raises no alarm, however unusual: too little moved to matter."""
_FLOOR = 0.001
"""Distances below it are equal, so that the logarithm of a channel that never moves stays finite."""
SMALLEST_SCALE = 0.05
LEAST_ASSOCIATION = 0.02
"""Bits of mutual information below which two features count as independent."""
MIN_CLASS_DAYS = 10
"""Reference distances that a weekday class needs for a median of its own."""
SURE_CLASS_DAYS = 30
"""Reference distances from which a class's own spread is trusted although it is the smaller one."""
MIN_DAYS = 5
"""Reference distances below which there is no calibration at all."""


def weekday_class(day: date) -> str:
    """`workday`, `saturday` or `sunday`."""
    return {5: "saturday", 6: "sunday"}.get(day.weekday(), "workday")


def js_distance(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Jensen-Shannon distance of two histograms: 0 for equal shares, 1 for disjoint ones.

    Args:
        one: Shape (k,), counts, not all zero.
        other: Shape (k,), counts, not all zero.

    Source: Endres & Schindelin (2003), "A new metric for probability distributions".
    """
    p = np.asarray(one, dtype=np.float64)
    q = np.asarray(other, dtype=np.float64)
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log2(p / middle), 0.0)
        right = np.where(q > 0, q * np.log2(q / middle), 0.0)
    return float(np.sqrt(max((left.sum() + right.sum()) / 2, 0.0)))


def same_weekdays(day: date, known: Mapping[date, Profile], *, min_rows: int) -> tuple[date, ...]:
    """The last four days before `day` on its weekday that have at least `min_rows` rows, oldest first."""
    found = sorted(
        other
        for other, profile in known.items()
        if other < day and other.weekday() == day.weekday() and profile.rows >= max(min_rows, 1)
    )
    return tuple(found[-POOL_DAYS:])


@dataclass(frozen=True)
class Normal:
    """How far a channel moves on normal days, on the log scale."""

    median: float
    scale: float

    def z(self, distance: float) -> float:
        return (float(np.log(max(distance, _FLOOR))) - self.median) / self.scale


@dataclass(frozen=True)
class Baseline:
    """The reference days of a model bundle and what is normal for them. Made once, by `calibrate`."""

    grid: ProfileSpec
    days: Mapping[date, Profile]
    normal: Mapping[str, Mapping[str, Normal]]
    """By weekday class, then channel. Empty when there are too few reference days."""
    method: str
    """How it was calibrated, in words."""
    null_shifts: Mapping[str, tuple[float, float]]
    """By feature: (median, spread) of a day's null share minus that of its last four same weekdays."""
    pair_losses: Mapping[str, tuple[float, float]]
    """By pair: (median, spread) of the share of its association that a day lacks beside those days."""
    score_spread: float
    """Spread of a day's mean score around that of its last four same weekdays, on the logit scale."""
    attributions: AttributionSums | None = None
    """Of all reference days; None when none was explained, as in bundles of earlier releases."""
    reasons: Mapping[str, Mapping[str, Normal]] = field(default_factory=dict)
    """By weekday class, then feature: how far its attributions are from those of other days with the same values."""
    pair_rows: float = 0.0
    """Explained rows behind a usual reference comparison, as `leaning.pair_rows` counts them."""
    relations: Relations | None = None
    """How the means of the features hang together; None when there are too few days."""


def calibrate(spec: PipelineSpec, grid: ProfileSpec, reference: Mapping[date, Profile]) -> Baseline:
    """What is normal, from the reference days that a model bundle carries.

    Days with fewer rows than `spec.drift.min_rows` are left out. Each day is compared with the four same
    weekdays before it; when that leaves fewer than ten comparisons (under about six weeks of reference), with
    four other same weekdays on either side.
    """
    days = {day: reference[day] for day in sorted(reference) if reference[day].rows >= spec.drift.min_rows}
    pools = {day: same_weekdays(day, days, min_rows=spec.drift.min_rows) for day in days}
    pools = {day: pool for day, pool in pools.items() if len(pool) == POOL_DAYS}
    method = f"{len(pools)} reference days, each against the four same weekdays before it"
    if len(pools) < MIN_CLASS_DAYS:
        pools = {day: _either_side(day, days) for day in days}
        pools = {day: pool for day, pool in pools.items() if len(pool) == POOL_DAYS}
        method = f"{len(pools)} reference days, each against four other same weekdays (a short reference)"
    explained = Profile.merged(grid, days.values()).attributions
    if len(pools) < MIN_DAYS:
        said = f"only {len(pools)} reference days can be compared"
        return Baseline(grid, days, {}, said, {}, {}, 0.0, explained)
    distances: dict[date, dict[str, float]] = {}
    leaning: dict[date, dict[str, float]] = {}
    sizes: list[float] = []
    shifts = []
    features = [*(g.name for g in grid.numeric), *(g.name for g in grid.categorical)]
    nulls: dict[str, list[float]] = {name: [] for name in features}
    losses: dict[str, list[float]] = {pair.name: [] for pair in grid.pairs}
    for day, pool in pools.items():
        pooled = Profile.merged(grid, (days[other] for other in pool))
        distances[day] = channel_distances(days[day], pooled)
        if found := reason_distances(days[day], pooled, least=least_explained(spec)):
            leaning[day] = found
            sizes.append(pair_rows(days[day], pooled))
        for name in features:
            nulls[name].append(null_share(days[day], name) - null_share(pooled, name))
        for pair, lost in losses.items():
            lost.append(association_loss(days[day], pooled, pair))
        shifts.append(_logit(days[day].score.mean) - _logit(pooled.score.mean))
    normal = _normals(distances, grid.channels)
    null_shifts = {name: _centre_and_spread(np.asarray(found)) for name, found in nulls.items()}
    return Baseline(
        grid,
        days,
        normal,
        method,
        null_shifts,
        {pair: _centre_and_spread(np.asarray(found)) for pair, found in losses.items()},
        max(_centre_and_spread(np.asarray(shifts))[1], SMALLEST_SCALE),
        explained,
        _normals(leaning, grid.features) if len(leaning) >= MIN_DAYS else {},
        float(np.median(sizes)) if sizes else 0.0,
        relations_of(days),
    )


def _normals(
    distances: Mapping[date, Mapping[str, float]], names: Sequence[str]
) -> dict[str, dict[str, Normal]]:
    """What is normal by weekday class and name, from the distances of each day; without names that were compared on too few."""
    known = {name: {day: found[name] for day, found in distances.items() if name in found} for name in names}
    known = {name: found for name, found in known.items() if len(found) >= MIN_DAYS}
    every = {name: _normal([*found.values()]) for name, found in known.items()}
    return {
        kind: {
            name: _class_normal(
                [one for day, one in found.items() if weekday_class(day) == kind], every[name]
            )
            for name, found in known.items()
        }
        for kind in ("workday", "saturday", "sunday")
    }


def null_share(profile: Profile, channel: str) -> float:
    """Nulls of a feature over rows, where rows whose null is expected are left out of both; 0 for no rows."""
    counts = profile.numeric.get(channel) or profile.categorical[channel]
    rows = rows_of_nulls(profile, channel)
    return (counts.nulls - (profile.rows - rows)) / rows if rows else 0.0


def rows_of_nulls(profile: Profile, channel: str) -> int:
    """The rows that `null_share` is a share of."""
    return profile.rows - profile.expected_nulls.get(channel, 0)


def association(counts: PairCounts, second: int, *, each: float = 1.0) -> float:
    """Mutual information of a pair in bits, without the bias of a small sample; never below 0.

    The mix of each feature alone hardly moves it, so it is much steadier from day to day than the counts are.

    Args:
        counts: Of a grid of known combinations; others are left out.
        second: Categories of the pair's second feature.
        each: Rows for which each counted one stands.

    Source: Miller (1955), "Note on the bias of information estimates".
    """
    n = int(counts.counts.sum())
    if n == 0:
        return 0.0
    row, column = np.divmod(np.asarray(counts.grid.cells, dtype=np.int64), second)
    rows, columns = (np.bincount(at, weights=counts.counts) for at in (row, column))
    held = counts.counts > 0
    joint, apart = counts.counts[held] / n, (rows[row] * columns[column])[held] / n**2
    freedom = np.count_nonzero(held) - np.count_nonzero(rows) - np.count_nonzero(columns) + 1
    return max(float((joint * np.log2(joint / apart)).sum() - freedom * each / (2 * n * np.log(2))), 0.0)


def association_loss(profile: Profile, pooled: Profile, pair: str) -> float:
    """Share of a pair's association in `pooled` that is missing in `profile`; negative when it is stronger.

    0 where the features of the pair are as good as independent: there is nothing to lose.
    """
    name = pooled.pairs[pair].grid.second
    second = next(len(grid.categories) for grid in pooled.spec.categorical if grid.name == name)
    usual, now = (association(days.pairs[pair], second, each=days.each) for days in (pooled, profile))
    return 0.0 if usual < LEAST_ASSOCIATION else 1 - now / usual


def channel_distances(profile: Profile, pooled: Profile) -> dict[str, float]:
    """Jensen-Shannon distance of every channel; both profiles hold at least one row."""
    return {
        channel: js_distance(profile.histogram(channel), pooled.histogram(channel))
        for channel in profile.spec.channels
    }


def added_by_sampling(profile: Profile, pooled: Profile, channel: str) -> float:
    """What counting samples in place of all rows adds to the square of a channel's distance, on average; 0 without samples.

    With small differences between shares p and q the divergence is sum((p - q)**2 / p) / (8 ln 2) bits, and chance makes the sum
    (k - 1) * (1 / n + 1 / m), of k bins that hold anything.
    """
    held = int(np.count_nonzero(profile.histogram(channel) + pooled.histogram(channel)))
    fewer = sum(1 / max(days.counted, 1) - 1 / max(days.rows, 1) for days in (profile, pooled))
    return float(max(held - 1, 0) * fewer / (8 * np.log(2)))


def reason_distances(profile: Profile, pooled: Profile, *, least: int) -> dict[str, float]:
    """By feature: Jensen-Shannon distance of its attributions to those that its values had before; empty: not comparable."""
    found = reasons(profile, pooled, least=least)
    return {
        name: js_distance(one, other) if one.any() and other.any() else 0.0
        for name, (one, other) in found.items()
    }


def channel_drift(
    spec: PipelineSpec,
    baseline: Baseline,
    day: date,
    profile: Profile,
    pooled: Profile,
    recent: Sequence[Mapping[str, float]],
    confirmed: Mapping[str, Sequence[Profile]] = MappingProxyType({}),
    earlier: Sequence[Profile] = (),
) -> tuple[ChannelDrift, ...]:
    """Every channel's distance and z, with its alarm.

    Multiplicity: a single crossing must pass `z_alarm`, which is set so high that the family of all channels
    together, not each one, is expected to stay quiet; the lower `z_persistent` counts only when the same
    channel crosses it on two of three days. Neither counts for an effect below `SMALLEST_EFFECT`.

    Args:
        recent: z by channel of the (at most) two days before.
        confirmed: By channel, days that a person has confirmed as normal: a day that is near any of them has not moved.
        earlier: The days that `relations.days_before` names.
    """
    normal = baseline.normal[weekday_class(day)]
    kinds = {grid.name: "numeric" for grid in baseline.grid.numeric}
    kinds |= {grid.name: "categorical" for grid in baseline.grid.categorical}
    kinds |= {grid.name: "pair" for grid in baseline.grid.pairs}
    shifts = (
        {} if baseline.relations is None else baseline.relations.shifts(profile, earlier, _days_of(confirmed))
    )
    found = []
    for channel, moved in channel_distances(profile, pooled).items():
        counted = profile.histogram(channel)
        near = (js_distance(counted, day.histogram(channel)) for day in confirmed.get(channel, ()))
        distance = min(moved, *near) if channel in confirmed else moved
        z = normal[channel].z(distance)
        added = added_by_sampling(profile, pooled, channel)
        effect = max(distance**2 - added, 0.0) ** 0.5 if added else distance
        alarm, detail = None if effect < SMALLEST_EFFECT else _alarm(spec, channel, z, recent), ""
        shift = shifts.get(channel)
        if shift is not None and (by_others := _alarm(spec, channel, shift.z, recent)):
            alarm, detail = alarm or by_others, shift.in_words(channel)
        found.append(
            ChannelDrift(
                channel=channel,
                kind=kinds.get(channel, "score"),
                distance=round(distance, 6),
                expected=round(float(np.exp(normal[channel].median)), 6),
                z=round(z if shift is None else max(z, shift.z), 4),
                alarm=alarm,
                detail=detail,
            )
        )
    return (*found, *_attribution_drift(spec, baseline, day, profile, pooled, recent))


def _days_of(confirmed: Mapping[str, Sequence[Profile]]) -> list[Profile]:
    """Every day of it once."""
    return list({id(day): day for days in confirmed.values() for day in days}.values())


def _attribution_drift(
    spec: PipelineSpec,
    baseline: Baseline,
    day: date,
    profile: Profile,
    pooled: Profile,
    recent: Sequence[Mapping[str, float]],
) -> tuple[ChannelDrift, ...]:
    """The channel `attributions`; nothing where it cannot be judged."""
    known, own = baseline.attributions, profile.attributions
    if not baseline.reasons or known is None or own is None or own.selection != known.selection:
        return ()
    distances = reason_distances(profile, pooled, least=least_explained(spec))
    if not distances:
        return ()
    # Fewer explained rows than reference days had are farther off by chance alone.
    fewer = max(1.0, baseline.pair_rows / pair_rows(profile, pooled)) ** 0.5
    normal = baseline.reasons[weekday_class(day)]
    zs = {
        name: normal[name].z(distances[name] / fewer)
        for name in weighty(profile, pooled) & distances.keys() & normal.keys()
        if distances[name] >= SMALLEST_EFFECT
    }
    name = max(sorted(zs), key=zs.__getitem__, default=None)
    z = zs[name] if name else 0.0
    alarm = _alarm(spec, CHANNEL, z, recent)
    limit = spec.drift.z_alarm if alarm == "once" else spec.drift.z_persistent
    return (
        ChannelDrift(
            channel=CHANNEL,
            kind=KIND,
            distance=round(distances[name], 6) if name else 0.0,
            expected=round(float(np.exp(normal[name].median)), 6) if name else 0.0,
            z=round(z, 4),
            alarm=alarm,
            detail=in_words(profile, pooled, {n: v for n, v in zs.items() if v > limit}) if alarm else "",
        ),
    )


def _alarm(spec: PipelineSpec, channel: str, z: float, recent: Sequence[Mapping[str, float]]) -> str | None:
    if z > spec.drift.z_alarm:
        return "once"
    again = any(earlier.get(channel, 0.0) > spec.drift.z_persistent for earlier in recent[-2:])
    return "persistent" if z > spec.drift.z_persistent and again else None


def score_band(baseline: Baseline, pooled: Profile, *, width: float = 1.645) -> tuple[float, ...] | None:
    """(low, high) for a day's mean score, nine normal days in ten: `width` spreads around the pooled days' mean, on the logit scale."""
    if pooled.score.mean is None or baseline.score_spread == 0.0:
        return None
    centre = _logit(pooled.score.mean)
    low, high = (centre + side * width * baseline.score_spread for side in (-1, 1))
    return (1 / (1 + float(np.exp(-low))), 1 / (1 + float(np.exp(-high))))


def _either_side(day: date, days: Mapping[date, Profile]) -> tuple[date, ...]:
    others = [other for other in days if other != day and other.weekday() == day.weekday()]
    return tuple(sorted(sorted(others, key=lambda other: (abs((other - day).days), other))[:POOL_DAYS]))


def _class_normal(distances: Sequence[float], pooled: Normal) -> Normal:
    """A class's own normal; its spread never below the pooled one while it rests on few days."""
    if len(distances) < MIN_CLASS_DAYS:
        return pooled
    own = _normal(distances)
    return own if len(distances) >= SURE_CLASS_DAYS else Normal(own.median, max(own.scale, pooled.scale))


def _normal(distances: Sequence[float]) -> Normal:
    logs = np.log(np.maximum(np.asarray(distances), _FLOOR))
    centre, spread = _centre_and_spread(logs)
    return Normal(centre, max(spread, SMALLEST_SCALE))


def _centre_and_spread(values: FloatArray) -> tuple[float, float]:
    """Median, and max(MAD, upper-decile spread), both scaled to a normal distribution's deviation."""
    centre = float(np.median(values))
    mad = 1.4826 * float(np.median(np.abs(values - centre)))
    return centre, max(mad, (float(np.quantile(values, 0.9)) - centre) / 1.2816)


def _logit(share: float | None) -> float:
    clipped = min(max(share if share is not None else 0.5, 1e-6), 1 - 1e-6)
    return float(np.log(clipped / (1 - clipped)))
