"""A feature's mean beside what the other features say: shifts that one column makes alone are seen, common moves are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta

import monitored_shop as shop
import numpy as np
import pyarrow as pa
import pytest

from tasks.model.profile import Profile, ProfileSpec
from tasks.monitoring import Monitor, measure_days
from tasks.monitoring.relations import LEAST_DAYS, Relations, relations_of

FIRST = date(2024, 1, 1)
DAYS, ROWS = 84, 400


def rows(index: int, *, own: float = 0.0, common: float = 0.0, n: int = ROWS) -> pa.Table:
    """A day: wind and gusts follow the weather, which wanders far; noise follows nothing; `own` shifts wind alone."""
    rng = np.random.default_rng(index)
    weather = 3 * np.sin(index / 4) + rng.normal() + common
    wind = weather + rng.normal(0, 1, n)
    gusts = 1.5 * weather + rng.normal(0, 1, n)
    return pa.table({"wind": wind + own, "gusts": gusts, "noise": rng.normal(rng.normal(), 1, n)})


def profile(grid: ProfileSpec, table: pa.Table) -> Profile:
    return Profile.of(grid, table, np.full(table.num_rows, 0.5))


def grid_of(tables: Sequence[pa.Table], *names: str) -> ProfileSpec:
    features = shop.SPEC.features.model_copy(update={"numeric": names, "categorical": ()})
    drift = shop.SPEC.drift.model_copy(update={"pairs": ()})
    spec = shop.SPEC.model_copy(update={"features": features, "drift": drift})
    return ProfileSpec.fit(pa.concat_tables(tables), None, spec)


GRID = grid_of([rows(i) for i in range(DAYS)], "wind", "gusts", "noise")
REFERENCE = {FIRST + timedelta(days=i): profile(GRID, rows(i)) for i in range(DAYS)}


def earlier(index: int) -> list[Profile]:
    """The days two to six weeks before a day, without a fault."""
    return [profile(GRID, rows(i)) for i in range(index - 42, index - 14)]


@pytest.fixture(scope="module")
def relations() -> Relations:
    found = relations_of(REFERENCE)
    assert found is not None
    return found


def test_a_shift_of_one_column_alone_is_seen_though_all_of_them_move_further_together(relations):
    together = relations.shifts(profile(GRID, rows(100, common=3.0)), earlier(100))
    alone = relations.shifts(profile(GRID, rows(100, own=1.0)), earlier(100))
    assert {name: shift.z for name, shift in together.items() if shift.z > 3.5} == {}
    assert alone["wind"].z > 5 and 0.7 < alone["wind"].deviations < 1.3
    assert "wind is" in alone["wind"].in_words(
        "wind"
    ) and "higher than the means of the other features suggest" in alone["wind"].in_words("wind")


def test_a_column_that_follows_no_other_is_not_judged(relations):
    table = rows(101)
    moved = table.set_column(2, "noise", pa.array(table["noise"].to_numpy() + 50))
    assert "noise" not in relations.shifts(profile(GRID, moved), earlier(101))


def test_a_shift_that_is_small_beside_the_values_is_left_out_however_sure_it_is(relations):
    shifts = relations.shifts(profile(GRID, rows(102, own=0.1)), earlier(102))
    assert all(abs(shift.deviations) >= 0.25 for shift in shifts.values())


def test_a_day_of_few_rows_needs_a_larger_shift(relations):
    whole = relations.shifts(profile(GRID, rows(103, own=1.0)), earlier(103))["wind"]
    few = relations.shifts(profile(GRID, rows(103, own=1.0, n=25)), earlier(103))
    assert "wind" not in few or few["wind"].z < whole.z / 2


def test_what_is_shifted_as_on_a_confirmed_day_has_not_moved(relations):
    confirmed = [profile(GRID, rows(110, own=1.0))]
    again = relations.shifts(profile(GRID, rows(111, own=1.0)), earlier(111), confirmed)
    further = relations.shifts(profile(GRID, rows(111, own=2.0)), earlier(111), confirmed)
    assert "wind" not in again or again["wind"].z < 3.5
    assert further["wind"].z > 3.5


def test_a_mean_that_is_not_there_is_not_judged_and_the_others_are(relations):
    table = rows(104, own=1.0)
    without = table.set_column(0, "wind", pa.array([None] * ROWS, pa.float64()))
    assert "wind" not in relations.shifts(profile(GRID, without), earlier(104))
    noiseless = table.set_column(2, "noise", pa.array([None] * ROWS, pa.float64()))
    assert relations.shifts(profile(GRID, noiseless), earlier(104))["wind"].z > 5


def test_every_regression_and_its_error_are_those_of_a_ridge_fitted_for_it_alone(relations):
    """The partitioned inverse against the plain way: a fit without each day in turn, and a day that took no part."""
    names, days = relations.names, list(REFERENCE)

    def standard(of: Profile) -> np.ndarray:
        means = np.array([of.numeric[name].mean for name in names])
        return (means - relations.centre) / relations.scale

    def fitted(z: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
        others = np.delete(z, i, axis=1)
        gram = np.linalg.inv(others.T @ others + np.eye(others.shape[1]))
        return gram @ others.T @ z[:, i], gram

    def residual(day: np.ndarray, i: int, weights: np.ndarray) -> float:
        return float(day[i] - np.delete(day, i) @ weights)

    z = np.array([standard(day) for day in REFERENCE.values()])
    today, before = profile(GRID, rows(105, own=2.0)), earlier(105)
    found = relations.shifts(today, before)
    for i, name in enumerate(names):
        left_out = [residual(z[k], i, fitted(np.delete(z, k, axis=0), i)[0]) for k in range(DAYS)]
        missed = []
        for k in range(14 + 14, DAYS):
            pool = [days[j] for j in range(max(0, k - 42), k - 14)]
            _, gram = fitted(np.delete(z, k, axis=0), i)
            leverage = np.delete(z[k], i) @ gram @ np.delete(z[k], i)
            beside = left_out[k] - np.mean([left_out[days.index(one)] for one in pool])
            missed.append(abs(beside) / np.sqrt(1 + leverage + 1 / DAYS))
        error = max(1.4826 * np.median(missed), np.quantile(missed, 0.9) / 1.6449)
        assert relations.error[i] == pytest.approx(error, rel=1e-6)
        if name in found:
            weights, gram = fitted(z, i)
            new = standard(today)
            usual = np.mean([residual(standard(day), i, weights) for day in before])
            moved = abs(residual(new, i, weights) - usual)
            leverage = np.delete(new, i) @ gram @ np.delete(new, i)
            assert found[name].z == pytest.approx(moved / (error * np.sqrt(1 + leverage + 1 / DAYS)))
    assert "wind" in found


def test_too_few_days_and_columns_that_never_move_say_nothing():
    assert relations_of(dict(list(REFERENCE.items())[: 28 + LEAST_DAYS - 1])) is None
    still = [rows(i).set_column(2, "noise", pa.array(np.ones(ROWS))) for i in range(DAYS)]
    grid = grid_of(still, "wind", "gusts", "noise")
    days = dict(zip(REFERENCE, (profile(grid, table) for table in still), strict=True))
    found = relations_of(days)
    assert found is not None and found.names == ("wind", "gusts")
    alone = grid_of(still, "wind")
    days = dict(zip(REFERENCE, (profile(alone, table) for table in still), strict=True))
    assert relations_of(days) is None


def test_the_monitor_says_which_mean_is_not_what_the_others_say():
    monitor = Monitor.of(shop.SPEC, GRID, REFERENCE)
    first = FIRST + timedelta(days=DAYS)
    shifted = {
        first + timedelta(days=i): profile(GRID, rows(DAYS + i, own=0.9 if i >= 5 else 0.0)) for i in range(8)
    }
    found = measure_days(shop.SPEC, monitor, profiles=shifted, first_day=first, last_day=max(shifted))
    quiet = replace(monitor, baseline=replace(monitor.baseline, relations=None))
    before = measure_days(shop.SPEC, quiet, profiles=shifted, first_day=first, last_day=max(shifted))
    words = [c.detail for s in found[5:] for c in s.alarms if c.channel == "wind"]
    assert words and all("The mean of wind" in text for text in words)
    assert not any(c.detail for s in found[:5] for c in s.alarms)
    assert not any(c.channel == "wind" for s in before[5:] for c in s.alarms)
