"""Tiers 1 and 2 for a day or a window of days, from profiles alone: no row is read again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from types import MappingProxyType

from tasks.core.errors import DataError
from tasks.core.spec import PipelineSpec
from tasks.model.profile import Profile, ProfileSpec
from tasks.monitoring.answers import Confirmed
from tasks.monitoring.contract import ContractLimits, check_contract, limits_of, widened
from tasks.monitoring.drift import (
    POOL_DAYS,
    Baseline,
    calibrate,
    channel_drift,
    same_weekdays,
    score_band,
)
from tasks.monitoring.leaning import not_judged
from tasks.monitoring.relations import days_before
from tasks.monitoring.signals import ChannelDrift, DaySignals

logger = logging.getLogger(__name__)

_OLD_REFERENCE_DAYS = 56


@dataclass(frozen=True)
class Monitor:
    """A model bundle's reference, calibrated once and used for every day it scores."""

    baseline: Baseline
    limits: ContractLimits
    confirmed: Mapping[str, Sequence[Profile]] = field(default_factory=dict)
    """By channel, days that a person has confirmed as the new normal."""

    @classmethod
    def of(cls, spec: PipelineSpec, grid: ProfileSpec, reference: Mapping[date, Profile]) -> Monitor:
        """Calibrate on the reference days of a bundle (its `profile_spec` and profiles by day)."""
        baseline = calibrate(spec, grid, reference)
        logger.info("calibrated: %s", baseline.method)
        return cls(baseline, limits_of(baseline))

    def taught(self, shifts: Sequence[Confirmed], known: Mapping[date, Profile]) -> Monitor:
        """The same with shifts that people have confirmed, as far as `known` holds profiles of their days."""
        grid, limits = self.baseline.grid, self.limits
        confirmed: dict[str, list[Profile]] = {}
        for shift in shifts:
            days = [known[day] for day in shift.days if day in known and known[day].rows]
            if not days:
                continue
            limits = widened(limits, grid, shift.channels, days)
            for channel in shift.channels & set(grid.channels):
                confirmed.setdefault(channel, []).extend(days)
        return replace(self, limits=limits, confirmed=confirmed)


def measure_day(
    spec: PipelineSpec,
    monitor: Monitor,
    *,
    day: date,
    profile: Profile,
    history: Mapping[date, Profile],
    recent: tuple[DaySignals, ...] = (),
    seen: Mapping[date, Profile] = MappingProxyType({}),
    dead_letters: int = 0,
) -> DaySignals:
    """The signals of one day. Pure.

    Args:
        profile: All of the day's rows, merged from its shards.
        history: Days scored before it with the same grid; days with a data fault are best left out, so that
            a fault that lasts does not become the reference. Reference days of the bundle are added.
        seen: The days that are left out: a batch that comes again is recognised among all.
        recent: Signals of the days before, for persistence; only the two days before `day` are read.
        dead_letters: Rows of the day that could not be scored.

    Raises:
        DataError: `profile` was counted on another grid than the monitor's bundle.
    """
    baseline = monitor.baseline
    if profile.spec.digest != baseline.grid.digest:
        raise DataError(
            f"was counted on grid {profile.spec.digest}; the reference uses {baseline.grid.digest}",
            which=f"profile of {day}",
            fix="monitor each day with the reference of the model bundle that scored it",
        )

    def earlier(days: Mapping[date, Profile]) -> dict[date, Profile]:
        return {
            other: past
            for other, past in days.items()
            if other != day and past.spec.digest == baseline.grid.digest
        }

    known = earlier({**baseline.days, **history})
    pool = same_weekdays(day, known, min_rows=spec.drift.min_rows)
    pooled = Profile.merged(baseline.grid, (known[other] for other in pool))
    findings, expected = check_contract(
        spec,
        baseline,
        monitor.limits,
        day,
        profile,
        known,
        pool=pool,
        pooled=pooled,
        seen={**known, **earlier(seen)},
        dead_letters=dead_letters,
    )
    statements = _statements(spec, baseline, day, profile, pool)
    drift: tuple[ChannelDrift, ...] = ()
    band: tuple[float, ...] | None = None
    if profile.rows >= spec.drift.min_rows and baseline.normal and len(pool) == POOL_DAYS:
        near = [s for s in recent if day - timedelta(days=3) < s.day < day]
        zs = [{c.channel: c.z for c in s.drift} for s in sorted(near, key=lambda s: s.day)]
        earlier_days = [known[other] for other in days_before(day, known, min_rows=spec.drift.min_rows)]
        drift = channel_drift(
            spec, baseline, day, profile, pooled, zs, monitor.confirmed, earlier=earlier_days
        )
        band = score_band(baseline, pooled)
        if leaning := not_judged(spec, baseline.attributions, profile, pooled):
            statements = (*statements, leaning)
    return DaySignals(
        day=day,
        rows=profile.rows,
        expected_rows=expected,
        findings=findings,
        drift=drift,
        statements=statements,
        compared_with=pool,
        score_mean=profile.score.mean,
        score_band=band,
        expected_auc=profile.score.expected_auc,
        expected_brier=profile.score.expected_brier,
        grid=baseline.grid.digest,
    )


def measure_days(
    spec: PipelineSpec,
    monitor: Monitor,
    *,
    profiles: Mapping[date, Profile],
    first_day: date,
    last_day: date,
    dead_letters: Mapping[date, int] | None = None,
    confirmed: Sequence[Confirmed] = (),
    excluded: frozenset[date] = frozenset(),
) -> tuple[DaySignals, ...]:
    """Signals of every day from `first_day` to `last_day` that was scored, in day order. Pure.

    Days of `profiles` before `first_day` serve as history. Every scored day is measured on the way, so a day
    with a data fault never becomes the reference of a later one; it is still recognised when it comes again.

    Args:
        confirmed: Shifts that people have confirmed as the new normal.
        excluded: Days that never become the reference of a later one, whatever is found.
    """
    monitor = monitor.taught(confirmed, profiles)
    signals: list[DaySignals] = []
    clean: dict[date, Profile] = {}
    seen: dict[date, Profile] = {}
    for day in sorted(day for day in profiles if day <= last_day):
        found = measure_day(
            spec,
            monitor,
            day=day,
            profile=profiles[day],
            history=clean,
            recent=tuple(signals[-2:]),
            seen=seen,
            dead_letters=(dead_letters or {}).get(day, 0),
        )
        signals.append(found)
        seen[day] = profiles[day]
        if not found.faults and day not in excluded:
            clean[day] = profiles[day]
    window = tuple(found for found in signals if found.day >= first_day)
    logger.info(
        "measured %d days, %d with a data fault, %d with channels in alarm",
        len(window),
        sum(bool(found.faults) for found in window),
        sum(bool(found.alarms) for found in window),
    )
    return window


def unjudged_day(day: date, rows: int, why: str, *, grid: str) -> DaySignals:
    """A scored day of which no profile can be read: nothing is judged of it, and `why` is said."""
    return DaySignals(
        day=day,
        rows=rows,
        expected_rows=None,
        findings=(),
        drift=(),
        statements=(why,),
        compared_with=(),
        score_mean=None,
        score_band=None,
        expected_auc=None,
        expected_brier=None,
        grid=grid,
    )


def _statements(
    spec: PipelineSpec, baseline: Baseline, day: date, profile: Profile, pool: tuple[date, ...]
) -> tuple[str, ...]:
    said = []
    if profile.counted < profile.rows:
        said.append(
            f"Of {profile.rows:,} rows {profile.counted:,} were counted, a sample spread over all of them."
        )
    if profile.rows < spec.drift.min_rows:
        said.append(
            f"{profile.rows:,} rows are too few to judge drift (drift.min_rows is {spec.drift.min_rows:,})."
        )
    if not baseline.normal:
        said.append(
            f"Drift is not judged: {baseline.method}; at least 5 are needed, each with 4 of its weekday."
        )
    elif len(pool) < POOL_DAYS:
        said.append(
            f"Drift is not judged: {len(pool)} earlier {day:%A}s with enough rows are known, 4 are needed."
        )
    elif (day - pool[-1]).days > _OLD_REFERENCE_DAYS:
        said.append(f"The newest comparable {day:%A} is {(day - pool[-1]).days} days old ({pool[-1]}).")
    return tuple(said)
