"""Nulls that the pipeline lets expect hold nothing, however many they are; those beside them are caught as ever."""

from __future__ import annotations

from datetime import date, timedelta

import monitored_shop as shop
import numpy as np
import pyarrow as pa
import pytest

from tasks.core.spec import DriftSpec
from tasks.model.profile import Profile, ProfileSpec
from tasks.monitoring import DaySignals, Monitor, measure_days
from tasks.monitoring.answers import Confirmed

SPEC = shop.SPEC.model_copy(
    update={
        "drift": DriftSpec.model_validate(
            {**shop.SPEC.drift.model_dump(), "null_when": {"visits": {"sensor": "off"}}}
        )
    }
)
DAY = shop.MONITORED + timedelta(days=9)
GRID = ProfileSpec.fit(
    pa.concat_tables([shop.rows(shop.FIRST + timedelta(days=i)) for i in range(28)]), None, SPEC
)


def profile(day: date, *, off: float = 0.02, broken: float = 0.0) -> Profile:
    """A day whose sensor is off in some rows, where `visits` is null; it is also null in a share of the others."""
    features = shop.rows(day)
    rng = np.random.default_rng([1, day.toordinal()])
    sensor = np.where(rng.random(features.num_rows) < off, "off", "on")
    visits = features["visits"].to_numpy().copy()
    visits[(sensor == "off") | (rng.random(features.num_rows) < broken)] = np.nan
    features = shop.with_column(features, "visits", visits)
    rows = features.append_column("sensor", pa.array(sensor))
    return Profile.of(GRID, features, shop.probabilities(features), rows=rows)


@pytest.fixture(scope="module")
def monitor() -> Monitor:
    return Monitor.of(SPEC, GRID, {day: profile(day) for day in shop.REFERENCE})


def signals(monitor: Monitor, days: dict[date, Profile], confirmed: tuple[Confirmed, ...] = ()) -> DaySignals:
    usual = {
        shop.MONITORED + timedelta(days=i): profile(shop.MONITORED + timedelta(days=i)) for i in range(9)
    }
    last = max(days)
    return measure_days(
        SPEC, monitor, profiles=usual | days, first_day=last, last_day=last, confirmed=confirmed
    )[-1]


@pytest.mark.parametrize("off", [0.2, 0.7])
def test_expected_nulls_are_drift_and_no_fault(monitor: Monitor, off: float) -> None:
    found = signals(monitor, {DAY: profile(DAY, off=off)})
    assert not found.faults
    assert "visits" in {channel.channel for channel in found.alarms}


def test_the_same_nulls_are_a_fault_where_nothing_is_said_of_them() -> None:
    spec = shop.SPEC
    grid = ProfileSpec.from_json({k: v for k, v in GRID.to_json().items() if k != "null_conditions"})

    def silent(profile: Profile) -> Profile:
        return Profile.from_json(grid, {**profile.to_json(), "grid": grid.digest})

    days = {
        shop.MONITORED + timedelta(days=i): silent(profile(shop.MONITORED + timedelta(days=i)))
        for i in range(9)
    }
    days[DAY] = silent(profile(DAY, off=0.2))
    monitor = Monitor.of(spec, grid, {day: silent(profile(day)) for day in shop.REFERENCE})
    found = measure_days(spec, monitor, profiles=days, first_day=DAY, last_day=DAY)[-1]
    assert [(f.check, f.channel) for f in found.faults] == [("nulls", "visits")]


@pytest.mark.parametrize("off", [0.0, 0.02, 0.4])
def test_a_burst_beside_expected_nulls_is_a_fault_on_the_first_day_and_says_what_was_left_out(
    monitor: Monitor, off: float
) -> None:
    found = signals(monitor, {DAY: profile(DAY, off=off, broken=0.05)})
    assert [(f.check, f.channel) for f in found.faults] == [("nulls", "visits")]
    assert "of visits is null, rows aside where sensor is off; up to" in found.faults[0].detail
    assert found.faults[0].value == pytest.approx(0.05, abs=0.02)


def test_a_day_without_any_value_is_a_fault_in_spite_of_the_condition_until_a_person_confirms_it(
    monitor: Monitor,
) -> None:
    empty = profile(DAY, off=1.0)
    (fault,) = signals(monitor, {DAY: empty}).faults
    assert (fault.check, fault.channel) == ("nulls", "visits")
    assert fault.detail == (
        "all of visits is null, which it may be where sensor is off; no reference day was without any value"
    )
    after = DAY + timedelta(days=1)
    confirmed = (Confirmed((DAY,), frozenset({"nulls:visits"})),)
    assert not signals(monitor, {DAY: empty, after: profile(after, off=1.0)}, confirmed).faults


def test_a_feature_that_was_empty_on_a_training_day_may_be_so_again() -> None:
    reference = {day: profile(day, off=1.0 if day.day == 20 else 0.02) for day in shop.REFERENCE}
    assert not signals(Monitor.of(SPEC, GRID, reference), {DAY: profile(DAY, off=1.0)}).faults
